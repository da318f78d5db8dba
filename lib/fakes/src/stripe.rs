//! A stand-in for Stripe: the wire format of API version 2026-10-28.endive for what we call, pages that a person can
//! click through, a clock that can be moved, and signed events that come twice, late, out of order or never.
//!
//! A test acts by [`StandIn::act`], takes the events with [`StandIn::take_events`] and delivers them itself; with an
//! address to send to, the stand-in delivers them as [`Delivery`] says. A person opens `/local/stripe`, or calls
//! `POST /local/stripe/deliveries` with `{"how": "twice", "times": 3}` (or `"always": true`),
//! `POST /local/stripe/faults` with `{"fault": "status:500", "times": 2}`, `DELETE` of either to forget them, and
//! `POST /local/stripe/release` to let a held answer go.

mod act;
mod control;
mod deliver;
mod fault;
mod object;
mod page;
mod params;
mod serve;
mod world;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Method;

use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};

pub use act::{Action, UnknownAction};
pub use deliver::{Delivery, Event, sign};
pub use fault::Fault;
pub use stripe::API_VERSION;

use crate::wire::Server;
use deliver::Deliveries;
use fault::Faults;
use world::World;

/// Where the time of the fake comes from.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// The price that is sold: Pro for a month.
pub const PRICE: &str = "price_local_pro";
/// What it may be sold for next.
pub const NEXT_PRICE: &str = "price_local_next";

/// How a stand-in is started.
#[derive(Clone)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The secret key that it takes.
    pub key: String,
    /// What it signs events with.
    pub webhook_secret: String,
    /// Where it sends events; without, a test takes them.
    pub webhook_url: Option<String>,
    /// The time.
    pub clock: Clock,
}

impl Default for Config {
    /// For tests: a free port, `sk_test_local`, `whsec_local`, events that are taken, the clock on the wall.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            key: "sk_test_local".to_owned(),
            webhook_secret: "whsec_local".to_owned(),
            webhook_url: None,
            clock: Arc::new(OffsetDateTime::now_utc),
        }
    }
}

/// A running stand-in; dropping it stops it and closes its connections.
pub struct StandIn {
    server: Server,
    shared: Arc<Shared>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its query or form, as it was sent.
    pub params: Vec<(String, String)>,
    /// What makes it the same request when it comes again.
    pub idempotency_key: Option<String>,
}

struct Shared {
    key: String,
    webhook_secret: String,
    clock: Mutex<Clock>,
    world: Mutex<World>,
    faults: Mutex<Faults>,
    deliveries: Deliveries,
    requests: watch::Sender<Vec<Recorded>>,
    releases: Semaphore,
    /// Where its pages are seen, if not at its own address.
    pages: Mutex<Option<String>>,
}

impl StandIn {
    /// Listens and answers until it is dropped.
    pub async fn start(config: Config) -> io::Result<Self> {
        let deliveries = Deliveries::new(config.webhook_url, config.webhook_secret.clone());
        let shared = Arc::new(Shared {
            key: config.key,
            webhook_secret: config.webhook_secret,
            clock: Mutex::new(config.clock),
            world: Mutex::default(),
            faults: Mutex::default(),
            deliveries,
            requests: watch::Sender::new(Vec::new()),
            releases: Semaphore::new(0),
            pages: Mutex::default(),
        });
        let handler = {
            let shared = Arc::clone(&shared);
            move |request| serve::handle(Arc::clone(&shared), request)
        };
        let server = Server::start(config.listen, handler).await?;
        let this = Self { server, shared };
        this.pages_at(this.url());
        Ok(this)
    }

    /// The base URL, without `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// Says where its pages are seen, where that is not its own address.
    pub fn pages_at(&self, url: String) {
        *lock(&self.shared.pages) = Some(url);
    }

    /// Keeps this time from now on.
    pub fn keep_time(&self, clock: Clock) {
        *lock(&self.shared.clock) = clock;
    }

    /// Does what a customer, the dashboard or time itself does.
    pub fn act(&self, action: Action<'_>) {
        self.shared.act(action);
    }

    /// A customer who was made elsewhere, such as before a test.
    pub fn add_customer(&self, id: &str, email: &str) {
        self.shared
            .with_world(|world| world.add_customer(id, email));
    }

    /// Ids of the customers.
    pub fn customers(&self) -> Vec<String> {
        self.shared.with_world(|world| {
            world
                .customers
                .iter()
                .map(|it| object::id(it).to_owned())
                .collect()
        })
    }

    /// Ids and statuses of a customer's subscriptions, newest first.
    pub fn subscriptions(&self, customer: &str) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        self.shared.with_world(|world| {
            let theirs = world
                .subscriptions
                .iter()
                .rev()
                .filter(|it| it["customer"] == customer);
            theirs
                .map(|it| (text(&it["id"]), text(&it["status"])))
                .collect()
        })
    }

    /// Takes the events that have not been taken yet, in the order in which they happened.
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.with_world(|_| ());
        self.shared.deliveries.take()
    }

    /// Takes only those about one customer, which leaves the others to whom they concern.
    pub fn take_events_of(&self, customer: &str) -> Vec<Event> {
        self.shared.with_world(|_| ());
        self.shared.deliveries.take_of(customer)
    }

    /// The `Stripe-Signature` of a payload that is sent now.
    pub fn sign(&self, payload: &str) -> String {
        sign(&self.shared.webhook_secret, self.shared.now(), payload)
    }

    /// Treats the next event that has no treatment yet like this.
    pub fn deliver_next(&self, delivery: Delivery) {
        self.shared.deliveries.next(delivery);
    }

    /// Waits until every event was answered, lost or given up.
    pub async fn delivered(&self) {
        self.shared.deliveries.idle().await;
    }

    /// Treats the next request that has no fault yet like this.
    pub fn next(&self, fault: Fault) {
        lock(&self.shared.faults).next.push_back(fault);
    }

    /// Treats every request like this, until the next call.
    pub fn always(&self, fault: Option<Fault>) {
        lock(&self.shared.faults).always = fault;
    }

    /// Lets one answer that is held, or the next that will be, go.
    pub fn release(&self) {
        self.shared.releases.add_permits(1);
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.borrow().clone()
    }

    /// Waits until there were this many requests.
    pub async fn wait_for_requests(&self, count: usize) {
        let _ = self
            .shared
            .requests
            .subscribe()
            .wait_for(|requests| requests.len() >= count)
            .await;
    }
}

impl Shared {
    fn now(&self) -> i64 {
        let clock = Arc::clone(&lock(&self.clock));
        clock().unix_timestamp()
    }

    /// Looks at the world as it is now, after what time has brought, and sends off what happens.
    fn with_world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let now = self.now();
        let mut world = lock(&self.world);
        world.pass_time(now);
        let seen = look(&mut world);
        self.deliveries.send(world.events.split_off(0));
        seen
    }

    fn act(&self, action: Action<'_>) {
        self.with_world(|world| world.act(action));
    }

    fn page_url(&self, path: &str) -> String {
        format!(
            "{}/local/stripe/{path}",
            lock(&self.pages).as_deref().unwrap_or_default()
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
