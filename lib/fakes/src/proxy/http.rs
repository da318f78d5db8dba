//! A reverse proxy for services over HTTP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, Request, Response, StatusCode, header};
use tokio::sync::watch;

use crate::faulty_http::{self, Body, HangUp, Server};
use crate::sync::lock;

/// Forwards requests, each after a delay, and counts them.
pub struct Http {
    server: Server,
    shared: Arc<Shared>,
}

/// The treatment of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are forwarded.
    #[default]
    Pass,
    /// An HTML page with status 502 replaces them; nothing reaches the upstream.
    Html,
    /// The first half of each is sent as if it were the whole.
    TruncatedJson,
    /// The connection closes after the upstream has answered.
    Swallow,
}

struct Shared {
    http: reqwest::Client,
    upstream: String,
    delay: Duration,
    requests: watch::Sender<u64>,
    round_trips: AtomicU64,
    in_flight: AtomicU64,
    paused: watch::Sender<bool>,
    mode: Mutex<Mode>,
}

impl Http {
    /// Listens on a free port; `upstream` is a base URL.
    pub async fn start(upstream: &str, delay: Duration) -> io::Result<Self> {
        // The client handles redirects and compression.
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(io::Error::other)?;

        let shared = Arc::new(Shared {
            http,
            upstream: upstream.trim_end_matches('/').to_owned(),
            delay,
            requests: watch::Sender::new(0),
            round_trips: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            paused: watch::Sender::new(false),
            mode: Mutex::default(),
        });

        let handler = {
            let shared = Arc::clone(&shared);
            move |request| handle(Arc::clone(&shared), request)
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start(listen, handler).await?;

        Ok(Self { server, shared })
    }

    /// The base URL that replaces the upstream's.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The requests so far.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.borrow()
    }

    /// Waits for this number of requests in total.
    pub async fn wait_for_requests(&self, count: u64) {
        let mut requests = self.shared.requests.subscribe();
        let _ = requests.wait_for(|requests| *requests >= count).await;
    }

    /// The number of requests that started while no other was in flight.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    /// Resets the counters.
    pub fn reset(&self) {
        self.shared.requests.send_replace(0);
        self.shared.round_trips.store(0, Ordering::SeqCst);
    }

    /// Accepts and counts requests, but forwards nothing.
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Forwards the requests that waited, and all later ones.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// Sets the treatment of future answers.
    pub fn mode(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
    }
}

/// A request in flight; dropping it ends it.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn begin(shared: &Arc<Shared>) -> Self {
        if shared.in_flight.fetch_add(1, Ordering::SeqCst) == 0 {
            shared.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        shared.requests.send_modify(|requests| *requests += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Bytes>) -> Result<Response<Body>, HangUp> {
    let _in_flight = InFlight::begin(&shared);
    if !shared.delay.is_zero() {
        tokio::time::sleep(shared.delay).await;
    }
    let _ = shared.paused.subscribe().wait_for(|paused| !paused).await;

    let mode = *lock(&shared.mode);
    if mode == Mode::Html {
        let page = "<!doctype html><title>502</title><h1>Bad gateway</h1>";
        let page = faulty_http::full(page);
        return Ok(faulty_http::answer(
            StatusCode::BAD_GATEWAY,
            "text/html",
            page,
        ));
    }

    // An unreachable upstream has the same effect as an unreachable proxy.
    let answer = forward(&shared, request).await.map_err(|_| HangUp::Close)?;
    let status = answer.status();
    let mut headers = answer.headers().clone();
    remove_hop_headers(&mut headers);

    let body = match mode {
        Mode::Pass | Mode::Html => {
            faulty_http::streamed(answer.bytes_stream().map_err(io::Error::other))
        }
        Mode::TruncatedJson => {
            let whole = answer.bytes().await.map_err(|_| HangUp::Close)?;
            faulty_http::full(whole.slice(..whole.len() / 2))
        }
        Mode::Swallow => {
            let _ = answer.bytes().await;
            return Err(HangUp::Close);
        }
    };

    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

async fn forward(shared: &Shared, request: Request<Bytes>) -> reqwest::Result<reqwest::Response> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", shared.upstream);

    let mut headers = parts.headers;
    headers.remove(header::HOST);
    remove_hop_headers(&mut headers);

    shared
        .http
        .request(parts.method, url)
        .headers(headers)
        .body(body)
        .send()
        .await
}

/// Removes the headers that belong to one connection.
fn remove_hop_headers(headers: &mut HeaderMap) {
    headers.remove(header::CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
}
