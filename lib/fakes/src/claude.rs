//! A stand-in for Claude: the wire format of API version 2026-10-21, a prompt cache, and faults on demand.
//!
//! A test scripts it by [`StandIn::next`] and [`StandIn::always`]. A person writes `[[fault:overloaded]]`
//! into a message, or calls `POST /local/claude/faults` with `{"fault": "stall:3", "times": 2}` (or
//! `"always": true`; `key`, `model` and `organisation` narrow it, `text` gives the words, `headers` those of an
//! error), `DELETE` of the same to forget all, and `POST /local/claude/release` to let one held stream go on. [`NAMES`] lists the faults.

mod behaviour;
mod cache;
mod control;
mod prose;
mod reply;
mod request;
mod serve;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method};
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

pub use behaviour::{Behaviour, Failure, NAMES, Only, Script, UnknownBehaviour};

use crate::wire::Server;
use behaviour::Scripts;
use cache::Cache;

/// How a stand-in is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The keys it accepts.
    pub keys: Vec<String>,
    /// The pause between two pieces of text.
    pub pace: Duration,
}

impl Default for Config {
    /// For tests: a free port, the key `sk-ant-local` and no pauses.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            keys: vec!["sk-ant-local".to_owned()],
            pace: Duration::ZERO,
        }
    }
}

/// A running stand-in; dropping it stops it and closes its connections.
pub struct StandIn {
    server: Server,
    shared: Arc<Shared>,
}

/// A request as it came, answered or not.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When it came.
    pub at: Instant,
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its JSON body, `null` if there is none.
    pub body: Value,
}

impl Recorded {
    /// The key that was sent.
    pub fn key(&self) -> Option<&str> {
        key(&self.headers)
    }
}

/// The provider takes a key in either header: its documentation moved to the second, and so did its own clients.
fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    text("x-api-key").or_else(|| text("authorization")?.strip_prefix("Bearer "))
}

struct Shared {
    keys: Mutex<Vec<String>>,
    pace: Duration,
    scripts: Mutex<Scripts>,
    cache: Mutex<Cache>,
    /// By organisation, as the provider limits.
    remaining: Mutex<HashMap<String, u64>>,
    organisations: Mutex<HashMap<String, String>>,
    begun: AtomicUsize,
    requests: watch::Sender<Vec<Recorded>>,
    cancelled: watch::Sender<usize>,
    releases: Semaphore,
    ids: AtomicU64,
}

impl StandIn {
    /// Listens and answers until it is dropped.
    pub async fn start(config: Config) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            keys: Mutex::new(config.keys),
            pace: config.pace,
            scripts: Mutex::default(),
            cache: Mutex::default(),
            remaining: Mutex::default(),
            organisations: Mutex::default(),
            begun: AtomicUsize::new(0),
            requests: watch::Sender::new(Vec::new()),
            cancelled: watch::Sender::new(0),
            releases: Semaphore::new(0),
            ids: AtomicU64::new(0),
        });
        let handler = {
            let shared = Arc::clone(&shared);
            move |request| serve::handle(Arc::clone(&shared), request)
        };
        Ok(Self {
            server: Server::start(config.listen, handler).await?,
            shared,
        })
    }

    /// The base URL, without `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// Scripts the next request that has no script yet.
    pub fn next(&self, script: impl Into<Script>) {
        self.next_for(Only::default(), script);
    }

    /// Scripts the next request of a kind.
    pub fn next_for(&self, only: Only, script: impl Into<Script>) {
        lock(&self.shared.scripts).next(only, script.into());
    }

    /// Scripts every request, until the next call.
    pub fn always(&self, script: impl Into<Script>) {
        self.always_for(Only::default(), script);
    }

    /// Scripts every request of a kind.
    pub fn always_for(&self, only: Only, script: impl Into<Script>) {
        lock(&self.shared.scripts).always(only, script.into());
    }

    /// Forgets all scripts.
    pub fn clear(&self) {
        *lock(&self.shared.scripts) = Scripts::default();
    }

    /// Accepts these keys and no others from now on.
    pub fn accept(&self, keys: Vec<String>) {
        *lock(&self.shared.keys) = keys;
    }

    /// Sets how many requests the limit headers of an organisation say are left; that of a key of no other is named
    /// by the key.
    pub fn remaining(&self, organisation: impl Into<String>, requests: u64) {
        lock(&self.shared.remaining).insert(organisation.into(), requests);
    }

    /// Has a key share its organisation's limits with other keys; otherwise its organisation is its own.
    pub fn belongs(&self, key: impl Into<String>, organisation: impl Into<String>) {
        lock(&self.shared.organisations).insert(key.into(), organisation.into());
    }

    /// How many replies began, which is what the provider bills.
    pub fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Lets one stream that is held, or the next that will be, go on.
    pub fn release(&self) {
        self.shared.releases.add_permits(1);
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.borrow().clone()
    }

    /// Waits until there were this many requests.
    pub async fn wait_for_requests(&self, count: usize) -> Vec<Recorded> {
        let mut requests = self.shared.requests.subscribe();
        let seen = requests.wait_for(|requests| requests.len() >= count).await;
        seen.map(|requests| requests.clone()).unwrap_or_default()
    }

    /// How many clients went away before they had their whole answer.
    pub fn cancelled(&self) -> usize {
        *self.shared.cancelled.borrow()
    }

    /// Waits until this many clients went away before they had their whole answer.
    pub async fn wait_for_cancelled(&self, count: usize) {
        let _ = self
            .shared
            .cancelled
            .subscribe()
            .wait_for(|cancelled| *cancelled >= count)
            .await;
    }
}

impl Shared {
    async fn held(&self) {
        if let Ok(permit) = self.releases.acquire().await {
            permit.forget();
        }
    }

    fn organisation(&self, key: &str) -> String {
        lock(&self.organisations)
            .get(key)
            .cloned()
            .unwrap_or_else(|| key.to_owned())
    }

    fn id(&self, prefix: &str) -> String {
        format!(
            "{prefix}_local{:012}",
            self.ids.fetch_add(1, Ordering::Relaxed)
        )
    }
}

/// Counts a client that went away, unless it was served.
struct Cancelled {
    shared: Arc<Shared>,
    served: bool,
}

impl Cancelled {
    fn watch(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            served: false,
        }
    }

    fn served(&mut self) {
        self.served = true;
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if !self.served {
            self.shared
                .cancelled
                .send_modify(|cancelled| *cancelled += 1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
