//! A reverse proxy for services over HTTP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Request, Response, StatusCode, header};
use tokio::sync::watch;

use crate::wire::{self, Body, HangUp, Server};

/// Forwards requests, each after a delay, and counts them.
pub struct Http {
    server: Server,
    shared: Arc<Shared>,
}

/// What becomes of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are passed on.
    #[default]
    Pass,
    /// A page of HTML is sent instead, with status 502; the upstream is not asked.
    Html,
    /// Half of each is sent as if it were the whole.
    TruncatedJson,
    /// The upstream is asked, and the connection closed without its answer.
    Swallow,
}

struct Shared {
    http: reqwest::Client,
    upstream: String,
    delay: Duration,
    requests: watch::Sender<u64>,
    flights: AtomicU64,
    under_way: AtomicU64,
    paused: watch::Sender<bool>,
    mode: Mutex<Mode>,
}

impl Http {
    /// Listens on a free port; `upstream` is a base URL.
    pub async fn start(upstream: &str, delay: Duration) -> io::Result<Self> {
        // A redirect or a compressed answer is the client's business.
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
            flights: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            paused: watch::Sender::new(false),
            mode: Mutex::default(),
        });
        let handler = {
            let shared = Arc::clone(&shared);
            move |request| handle(Arc::clone(&shared), request)
        };
        let server = Server::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), handler).await?;
        Ok(Self { server, shared })
    }

    /// The base URL that stands for the upstream's.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// The requests so far.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.borrow()
    }

    /// Waits until there were this many requests.
    pub async fn wait_for_requests(&self, count: u64) {
        let mut requests = self.shared.requests.subscribe();
        let _ = requests.wait_for(|requests| *requests >= count).await;
    }

    /// How often a request came while no other was under way: round trips as a caller feels them.
    pub fn flights(&self) -> u64 {
        self.shared.flights.load(Ordering::SeqCst)
    }

    /// Counts from zero.
    pub fn reset(&self) {
        self.shared.requests.send_replace(0);
        self.shared.flights.store(0, Ordering::SeqCst);
    }

    /// Goes on to accept and count, but forwards nothing.
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Forwards what was kept back, and all that comes.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// Treats answers like this from now on.
    pub fn mode(&self, mode: Mode) {
        *self
            .shared
            .mode
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

/// Marks a request as under way.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        if shared.under_way.fetch_add(1, Ordering::SeqCst) == 0 {
            shared.flights.fetch_add(1, Ordering::SeqCst);
        }
        shared.requests.send_modify(|requests| *requests += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Bytes>) -> Result<Response<Body>, HangUp> {
    let _under_way = UnderWay::begin(&shared);
    if !shared.delay.is_zero() {
        tokio::time::sleep(shared.delay).await;
    }
    let _ = shared.paused.subscribe().wait_for(|paused| !paused).await;
    let mode = *shared.mode.lock().unwrap_or_else(PoisonError::into_inner);
    if mode == Mode::Html {
        let page = wire::full("<!doctype html><title>502</title><h1>Bad gateway</h1>");
        return Ok(wire::answer(StatusCode::BAD_GATEWAY, "text/html", page));
    }

    // An upstream that is gone looks to the client as if there were no proxy.
    let answer = ask(&shared, request).await.map_err(|_| HangUp)?;
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    for hop in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
    ] {
        headers.remove(hop);
    }
    let body = match mode {
        Mode::Pass | Mode::Html => wire::streamed(answer.bytes_stream().map_err(io::Error::other)),
        Mode::TruncatedJson => {
            let whole = answer.bytes().await.map_err(|_| HangUp)?;
            wire::full(whole.slice(..whole.len() / 2))
        }
        Mode::Swallow => {
            let _ = answer.bytes().await;
            return Err(HangUp);
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

async fn ask(shared: &Shared, request: Request<Bytes>) -> reqwest::Result<reqwest::Response> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = parts.headers;
    for hop in [
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
    ] {
        headers.remove(hop);
    }
    let url = format!("{}{path}", shared.upstream);
    shared
        .http
        .request(parts.method, url)
        .headers(headers)
        .body(body)
        .send()
        .await
}
