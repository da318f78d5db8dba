//! A fake Claude: the wire format of API version 2026-10-21, a prompt cache, and faults on demand.
//!
//! A test scripts it with [`FakeClaude::next`] and [`FakeClaude::always`]. A developer writes
//! `[[fault:overloaded]]` into a message, or calls
//!
//! - `POST /local/claude/faults` with `{"fault": "stall:3", "times": 2}`, or with `"always": true`;
//!   `key`, `model` and `organisation` narrow it, `text` sets the reply, `headers` those of errors;
//! - `DELETE /local/claude/faults` to remove all scripts;
//! - `POST /local/claude/release` to let one held stream go on.
//!
//! [`NAMES`] lists the faults.

mod behaviour;
mod cache;
mod content;
mod control;
mod conversation;
mod limits;
mod models;
mod prose;
mod reply;
mod request;
mod script;
mod serve;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

pub use behaviour::{Behaviour, Failure, NAMES, UnknownBehaviour};
pub use script::{Only, Script};

use crate::faulty_http::{Body, HangUp, Http2, Server};
use crate::sync::lock;
use cache::Cache;
use script::Scripts;

/// How a fake is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
    /// The keys that are accepted.
    pub keys: Vec<String>,
    /// The pause between two words of a reply.
    pub pace: Duration,
    /// The replies to requests without a script.
    pub style: Style,
}

/// The kind of reply to a request without a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Three sentences that name the persona and quote the user, for tests.
    #[default]
    Terse,
    /// About two hundred words in the voices that the system text introduces, for people.
    Conversation,
}

impl Default for Config {
    /// For tests: a free port, the key `sk-ant-local`, no pauses and terse replies.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            keys: vec!["sk-ant-local".to_owned()],
            pace: Duration::ZERO,
            style: Style::Terse,
        }
    }
}

/// A running fake. Dropping it stops it and closes its connections.
pub struct FakeClaude {
    server: Server,
    shared: Arc<Shared>,
}

/// A request that was received, answered or not.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// The time of arrival.
    pub at: Instant,
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The JSON body; `null` if it is missing or not JSON.
    pub body: Value,
}

impl RecordedRequest {
    /// The API key in the headers.
    pub fn key(&self) -> Option<&str> {
        api_key(&self.headers)
    }
}

/// The provider documents two headers for the key and accepts either.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();

    text("x-api-key").or_else(|| text("authorization")?.strip_prefix("Bearer "))
}

struct Shared {
    keys: Mutex<Vec<String>>,
    pace: Duration,
    style: Style,
    scripts: Mutex<Scripts>,
    cache: Mutex<Cache>,
    /// Requests left in the minute, by organisation.
    remaining: Mutex<HashMap<String, u64>>,
    organisations: Mutex<HashMap<String, String>>,
    replies_started: AtomicUsize,
    requests: watch::Sender<Vec<RecordedRequest>>,
    cancelled: watch::Sender<usize>,
    releases: Semaphore,
    ids: AtomicU64,
}

impl FakeClaude {
    /// Listens and answers until it is dropped.
    pub async fn start(config: Config) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(config.keys, config.pace, config.style));
        let handler = handler(&shared);

        Ok(Self {
            server: Server::start(config.listen, handler).await?,
            shared,
        })
    }

    /// Answers over TLS with HTTP/2, as the provider does, and grants each connection this number of streams at a time.
    ///
    /// A fault that closes the connection of HTTP/1.1 resets its stream only.
    pub async fn start_http2(config: Config, max_streams: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(config.keys, config.pace, config.style));
        let handler = handler(&shared);

        Ok(Self {
            server: Server::start_http2(config.listen, handler, max_streams).await?,
            shared,
        })
    }

    /// The base URL, without `/v1`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The certificate of a fake with HTTP/2, in DER; a client has to trust it.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.server.http2().map(Http2::certificate)
    }

    /// The number of HTTP/2 connections so far.
    pub fn connections(&self) -> usize {
        self.server.http2().map_or(0, Http2::connections)
    }

    /// Announces on every HTTP/2 connection that it takes no more requests. Streams under way go on.
    pub fn go_away(&self) {
        self.server.http2().into_iter().for_each(Http2::go_away);
    }

    /// Closes every HTTP/2 connection in the middle of its streams.
    pub fn close_connections(&self) {
        self.server.http2().into_iter().for_each(Http2::close);
    }

    /// Scripts the next request that has no script yet.
    pub fn next(&self, script: impl Into<Script>) {
        self.next_for(Only::default(), script);
    }

    /// Scripts the next matching request.
    pub fn next_for(&self, only: Only, script: impl Into<Script>) {
        lock(&self.shared.scripts).next(only, script.into());
    }

    /// Scripts every request, until the next call.
    pub fn always(&self, script: impl Into<Script>) {
        self.always_for(Only::default(), script);
    }

    /// Scripts every matching request.
    pub fn always_for(&self, only: Only, script: impl Into<Script>) {
        lock(&self.shared.scripts).always(only, script.into());
    }

    /// Removes all scripts.
    pub fn clear(&self) {
        *lock(&self.shared.scripts) = Scripts::default();
    }

    /// Replaces the keys that are accepted.
    pub fn accept_keys(&self, keys: Vec<String>) {
        *lock(&self.shared.keys) = keys;
    }

    /// Sets the number of requests that the limit headers of an organisation report as left.
    ///
    /// A key without an organisation is an organisation named like the key.
    pub fn set_remaining_requests(&self, organisation: impl Into<String>, requests: u64) {
        lock(&self.shared.remaining).insert(organisation.into(), requests);
    }

    /// Assigns a key to an organisation, whose keys share their limits.
    pub fn set_organisation(&self, key: impl Into<String>, organisation: impl Into<String>) {
        lock(&self.shared.organisations).insert(key.into(), organisation.into());
    }

    /// The number of replies that were started. The provider bills each of them.
    pub fn replies_started(&self) -> usize {
        self.shared.replies_started.load(Ordering::Relaxed)
    }

    /// Lets one held stream go on: one that is held now, or else the next.
    pub fn release(&self) {
        self.shared.releases.add_permits(1);
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests.borrow().clone()
    }

    /// Waits for this number of requests in total and returns them.
    pub async fn wait_for_requests(&self, count: usize) -> Vec<RecordedRequest> {
        let mut requests = self.shared.requests.subscribe();
        let seen = requests.wait_for(|requests| requests.len() >= count).await;

        seen.map(|requests| requests.clone()).unwrap_or_default()
    }

    /// The number of clients that left before the end of their answer.
    pub fn cancelled(&self) -> usize {
        *self.shared.cancelled.borrow()
    }

    /// Waits until this number of clients left before the end of their answer.
    pub async fn wait_for_cancelled(&self, count: usize) {
        let mut cancelled = self.shared.cancelled.subscribe();
        let _ = cancelled.wait_for(|cancelled| *cancelled >= count).await;
    }
}

type Answer = BoxFuture<'static, Result<Response<Body>, HangUp>>;

fn handler(shared: &Arc<Shared>) -> impl Fn(Request<Bytes>) -> Answer + Clone + use<> {
    let shared = Arc::clone(shared);

    move |request| serve::handle(Arc::clone(&shared), request).boxed()
}

impl Shared {
    fn new(keys: Vec<String>, pace: Duration, style: Style) -> Self {
        Self {
            keys: Mutex::new(keys),
            pace,
            style,
            scripts: Mutex::default(),
            cache: Mutex::default(),
            remaining: Mutex::default(),
            organisations: Mutex::default(),
            replies_started: AtomicUsize::new(0),
            requests: watch::Sender::new(Vec::new()),
            cancelled: watch::Sender::new(0),
            releases: Semaphore::new(0),
            ids: AtomicU64::new(0),
        }
    }

    async fn wait_for_release(&self) {
        if let Ok(permit) = self.releases.acquire().await {
            permit.forget();
        }
    }

    fn organisation(&self, key: &str) -> String {
        let organisations = lock(&self.organisations);
        let found = organisations.get(key).cloned();

        found.unwrap_or_else(|| key.to_owned())
    }

    fn new_id(&self, prefix: &str) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);

        format!("{prefix}_local{number:012}")
    }
}

/// Counts a client as cancelled when it is dropped before [`served`](Self::served).
struct CancelGuard {
    shared: Arc<Shared>,
    served: bool,
}

impl CancelGuard {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            served: false,
        }
    }

    fn served(&mut self) {
        self.served = true;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if !self.served {
            self.shared.cancelled.send_modify(|count| *count += 1);
        }
    }
}
