//! The fake's deliveries of events: repeated, lost, late and out of order, on request.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test has its own client and server"
)]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use axum::{Router, http::StatusCode, routing::post};
use iconoclash_fakes::stripe::{Action, Config, Delivery, FakeStripe};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A fake with a webhook that records the events.
struct Webhook {
    stripe: FakeStripe,
    kinds: Arc<Mutex<Vec<String>>>,
    refusals: Arc<AtomicU32>,
}

impl Webhook {
    async fn start() -> Self {
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let refusals = Arc::new(AtomicU32::new(0));
        let url = serve(Arc::clone(&kinds), Arc::clone(&refusals)).await;

        let config = Config {
            webhook_url: Some(url),
            ..Config::default()
        };
        let stripe = FakeStripe::start(config).await.unwrap();
        stripe.add_customer("cus_1", "ada@example.org");

        Self {
            stripe,
            kinds,
            refusals,
        }
    }

    /// Creates a subscription and returns the kinds of its events in the order of arrival.
    async fn subscribe(&self) -> Vec<String> {
        self.stripe.act(Action::Subscribe("cus_1"));
        self.stripe.delivered().await;
        self.kinds.lock().unwrap().drain(..).collect()
    }

    async fn control(&self, path: &str, body: Value) -> u16 {
        let url = format!("{}/local/stripe/{path}", self.stripe.url());
        let request = reqwest::Client::new().post(url).json(&body);

        request.send().await.unwrap().status().as_u16()
    }
}

/// Serves a webhook that refuses the first `refusals` events and records the kinds of the others.
async fn serve(kinds: Arc<Mutex<Vec<String>>>, refusals: Arc<AtomicU32>) -> String {
    let receive = post(async move |body: String| {
        let refused = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        if refused.is_ok() {
            return StatusCode::INTERNAL_SERVER_ERROR;
        }

        let event: Value = serde_json::from_str(&body).unwrap();
        let kind = event["type"].as_str().unwrap().to_owned();
        kinds.lock().unwrap().push(kind);
        StatusCode::OK
    });

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", receive)).await });

    url
}

const CREATED: &str = "customer.subscription.created";
const PAID: &str = "invoice.paid";
const CHARGED: &str = "charge.succeeded";

#[tokio::test]
async fn events_arrive_as_requested() {
    let webhook = Webhook::start().await;
    assert_eq!(webhook.subscribe().await, [CREATED, PAID, CHARGED]);
    for (delivery, expected) in [
        (Delivery::Twice, &[CREATED, CREATED, PAID, CHARGED][..]),
        (Delivery::Never, &[PAID, CHARGED]),
        (Delivery::AfterNext, &[PAID, CREATED, CHARGED]),
        (Delivery::Late(300), &[PAID, CHARGED, CREATED]),
        (Delivery::Once, &[CREATED, PAID, CHARGED]),
    ] {
        webhook.stripe.deliver_next(delivery);
        assert_eq!(webhook.subscribe().await, expected, "{delivery:?}");
    }
}

#[tokio::test]
async fn a_refused_event_is_sent_again() {
    let webhook = Webhook::start().await;
    webhook.refusals.store(1, Ordering::SeqCst);
    assert_eq!(webhook.subscribe().await, [PAID, CHARGED, CREATED]);
}

#[tokio::test]
async fn a_developer_can_ask_for_disorder() {
    let webhook = Webhook::start().await;
    assert_eq!(
        webhook
            .control("deliveries", json!({"how": "twice", "always": true}))
            .await,
        200
    );
    assert_eq!(
        webhook.subscribe().await,
        [CREATED, CREATED, PAID, PAID, CHARGED, CHARGED]
    );
    assert_eq!(
        webhook
            .control("deliveries", json!({"how": "once", "always": true}))
            .await,
        200
    );
    assert_eq!(
        webhook
            .control("act", json!({"action": "refund", "target": "cus_1"}))
            .await,
        200
    );
    webhook.stripe.delivered().await;
    assert_eq!(*webhook.kinds.lock().unwrap(), ["charge.refunded"]);
    for (path, body) in [
        ("deliveries", json!({"how": "sideways"})),
        ("faults", json!({"fault": "status:200"})),
        ("act", json!({"action": "steal"})),
        ("nothing", json!({})),
    ] {
        assert_eq!(webhook.control(path, body).await, 400, "{path}");
    }
}

#[tokio::test]
async fn the_pages_show_the_account_and_escape_its_texts() {
    let webhook = Webhook::start().await;
    webhook
        .stripe
        .add_customer("cus_2", "<script>alert(1)</script>@example.org");
    webhook.subscribe().await;
    let page = reqwest::get(format!("{}/local/stripe", webhook.stripe.url()))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(
        page.contains("ada@example.org") && page.contains(CREATED) && page.contains("renews on"),
        "{page}"
    );
    assert!(!page.contains("<script>"), "{page}");
    let missing = reqwest::get(format!(
        "{}/local/stripe/checkout/cs_none",
        webhook.stripe.url()
    ))
    .await
    .unwrap();
    assert_eq!(missing.status(), 404);
}
