//! A fake Stripe: the wire format of API version 2026-10-28.endive for the application's calls,
//! pages for a developer, a clock that can be moved, and signed events that arrive twice, late, out
//! of order or never.
//!
//! A test acts with [`FakeStripe::act`], takes the events with [`FakeStripe::take_events`] and
//! delivers them itself. With a webhook URL the fake delivers them as [`Delivery`] says.
//! A developer opens `/local/stripe`, or calls
//!
//! - `POST /local/stripe/deliveries` with `{"how": "twice", "times": 3}`, or with `"always": true`;
//! - `POST /local/stripe/faults` with `{"fault": "status:500", "times": 2}`;
//! - `DELETE` of either to remove them;
//! - `POST /local/stripe/release` to release a held answer;
//! - `POST /local/stripe/act` with `{"action": "fail_payment", "target": "sub_…"}`.

mod account;
mod action;
mod api;
mod control;
mod delivery;
mod fault;
mod objects;
mod pages;
mod params;
mod serve;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use http::Method;

use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};

pub use action::{Action, UnknownAction};
pub use delivery::{Delivery, Event, sign};
pub use fault::Fault;
pub use stripe::API_VERSION;

use crate::faulty_http::Server;
use crate::sync::lock;
use account::Account;
use delivery::Deliveries;
use fault::Faults;

/// The clock of the fake.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// The price of a month of Pro.
pub const PRICE: &str = "price_local_pro";
/// A later price of the same product.
pub const NEXT_PRICE: &str = "price_local_next";

/// How a fake is started.
#[derive(Clone)]
pub struct Config {
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
    /// The secret key that is accepted.
    pub key: String,
    /// The secret that signs events.
    pub webhook_secret: String,
    /// The address that receives events; without one, a test takes them.
    pub webhook_url: Option<String>,
    /// The clock.
    pub clock: Clock,
}

impl Default for Config {
    /// For tests: a free port, `sk_test_local`, `whsec_local`, no webhook and the wall clock.
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

/// A running fake. Dropping it stops it and closes its connections.
pub struct FakeStripe {
    server: Server,
    shared: Arc<Shared>,
}

/// A request that was received.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The query or the form.
    pub params: Vec<(String, String)>,
    /// The `Idempotency-Key` header.
    pub idempotency_key: Option<String>,
}

struct Shared {
    key: String,
    webhook_secret: String,
    clock: Mutex<Clock>,
    account: Mutex<Account>,
    faults: Mutex<Faults>,
    deliveries: Deliveries,
    requests: watch::Sender<Vec<RecordedRequest>>,
    releases: Semaphore,
    /// The base URL of the pages, if it is not the fake's own address.
    pages_url: Mutex<Option<String>>,
}

impl FakeStripe {
    /// Listens and answers until it is dropped.
    pub async fn start(config: Config) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(&config));

        let handler = {
            let shared = Arc::clone(&shared);
            move |request| serve::handle(Arc::clone(&shared), request)
        };
        let server = Server::start(config.listen, handler).await?;

        let fake = Self { server, shared };
        fake.set_pages_url(fake.url());
        Ok(fake)
    }

    /// The base URL, without `/v1`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Sets the base URL of the pages, for a server that passes them on.
    pub fn set_pages_url(&self, url: String) {
        *lock(&self.shared.pages_url) = Some(url);
    }

    /// Replaces the clock.
    pub fn set_clock(&self, clock: Clock) {
        *lock(&self.shared.clock) = clock;
    }

    /// Acts as a customer, an operator at the dashboard, or a bank.
    pub fn act(&self, action: Action<'_>) {
        self.shared.act(action);
    }

    /// Adds a customer that was created before the test.
    pub fn add_customer(&self, id: &str, email: &str) {
        self.shared
            .with_account(|account| account.add_customer(id, email));
    }

    /// Ids of the customers.
    pub fn customers(&self) -> Vec<String> {
        self.shared.with_account(|account| {
            let ids = account.customers.iter().map(objects::id);
            ids.map(str::to_owned).collect()
        })
    }

    /// Ids and statuses of a customer's subscriptions, newest first.
    pub fn subscriptions(&self, customer: &str) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();

        self.shared.with_account(|account| {
            account
                .subscriptions_of(customer)
                .map(|subscription| (text(&subscription["id"]), text(&subscription["status"])))
                .collect()
        })
    }

    /// Takes the events that were not taken yet, oldest first.
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.with_account(|_| ());
        self.shared.deliveries.take()
    }

    /// Takes the events about one customer and leaves the others.
    pub fn take_events_for(&self, customer: &str) -> Vec<Event> {
        self.shared.with_account(|_| ());
        self.shared.deliveries.take_for(customer)
    }

    /// The `Stripe-Signature` of a payload that is sent now.
    pub fn sign(&self, payload: &str) -> String {
        sign(&self.shared.webhook_secret, self.shared.now(), payload)
    }

    /// Sets the delivery of the next event that has none yet.
    pub fn deliver_next(&self, delivery: Delivery) {
        self.shared.deliveries.next(delivery);
    }

    /// Waits until every event was answered, lost or given up.
    pub async fn delivered(&self) {
        self.shared.deliveries.idle().await;
    }

    /// Sets the fault of the next request that has none yet.
    pub fn next(&self, fault: Fault) {
        lock(&self.shared.faults).next.push_back(fault);
    }

    /// Sets the fault of every request, until the next call.
    pub fn always(&self, fault: Option<Fault>) {
        lock(&self.shared.faults).always = fault;
    }

    /// Releases one held answer: one that is held now, or else the next.
    pub fn release(&self) {
        self.shared.releases.add_permits(1);
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests.borrow().clone()
    }

    /// Waits for this number of requests in total.
    pub async fn wait_for_requests(&self, count: usize) {
        let mut requests = self.shared.requests.subscribe();
        let _ = requests.wait_for(|requests| requests.len() >= count).await;
    }
}

impl Shared {
    fn new(config: &Config) -> Self {
        let webhook_url = config.webhook_url.clone();
        let webhook_secret = config.webhook_secret.clone();

        Self {
            key: config.key.clone(),
            webhook_secret: webhook_secret.clone(),
            clock: Mutex::new(Arc::clone(&config.clock)),
            account: Mutex::default(),
            faults: Mutex::default(),
            deliveries: Deliveries::new(webhook_url, webhook_secret),
            requests: watch::Sender::new(Vec::new()),
            releases: Semaphore::new(0),
            pages_url: Mutex::default(),
        }
    }

    fn now(&self) -> i64 {
        let clock = Arc::clone(&lock(&self.clock));
        clock().unix_timestamp()
    }

    /// Runs `work` on the account as of now, and sends the events that result.
    fn with_account<T>(&self, work: impl FnOnce(&mut Account) -> T) -> T {
        let now = self.now();
        let mut account = lock(&self.account);
        account.advance_to(now);
        let result = work(&mut account);

        self.deliveries.send(account.events.split_off(0));
        result
    }

    fn act(&self, action: Action<'_>) {
        self.with_account(|account| account.act(action));
    }

    fn page_url(&self, path: &str) -> String {
        let base = lock(&self.pages_url);
        format!(
            "{}/local/stripe/{path}",
            base.as_deref().unwrap_or_default()
        )
    }
}
