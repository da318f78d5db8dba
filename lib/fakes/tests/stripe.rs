//! Events on their way from the stand-in: repeated, lost, late and out of order, as a test or a person asks for it.

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
use iconoclash_fakes::stripe::{Action, Config, Delivery, StandIn};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A stand-in, and what came of its events.
struct Delivered {
    stripe: StandIn,
    kinds: Arc<Mutex<Vec<String>>>,
    refusals: Arc<AtomicU32>,
}

impl Delivered {
    async fn start() -> Self {
        let (kinds, refusals) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicU32::new(0)),
        );
        let (heard, refusing) = (Arc::clone(&kinds), Arc::clone(&refusals));
        let receive = post(async move |body: String| {
            if refusing
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
            {
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            let event: Value = serde_json::from_str(&body).unwrap();
            heard
                .lock()
                .unwrap()
                .push(event["type"].as_str().unwrap().to_owned());
            StatusCode::OK
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let webhook_url = Some(format!("http://{}/", listener.local_addr().unwrap()));
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/", receive)).await });
        let stripe = StandIn::start(Config {
            webhook_url,
            ..Config::default()
        })
        .await
        .unwrap();
        stripe.add_customer("cus_1", "ada@example.org");
        Self {
            stripe,
            kinds,
            refusals,
        }
    }

    /// The kinds of the events of a new subscription, as they came.
    async fn subscribe(&self) -> Vec<String> {
        self.stripe.act(Action::Subscribe("cus_1"));
        self.stripe.delivered().await;
        self.kinds.lock().unwrap().drain(..).collect()
    }

    async fn control(&self, path: &str, body: Value) -> u16 {
        let url = format!("{}/local/stripe/{path}", self.stripe.url());
        reqwest::Client::new()
            .post(url)
            .json(&body)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }
}

const CREATED: &str = "customer.subscription.created";
const PAID: &str = "invoice.paid";
const CHARGED: &str = "charge.succeeded";

#[tokio::test]
async fn events_come_as_they_are_asked_to() {
    let it = Delivered::start().await;
    assert_eq!(it.subscribe().await, [CREATED, PAID, CHARGED]);
    for (delivery, expected) in [
        (Delivery::Twice, &[CREATED, CREATED, PAID, CHARGED][..]),
        (Delivery::Never, &[PAID, CHARGED]),
        (Delivery::AfterNext, &[PAID, CREATED, CHARGED]),
        (Delivery::Late(300), &[PAID, CHARGED, CREATED]),
        (Delivery::Once, &[CREATED, PAID, CHARGED]),
    ] {
        it.stripe.deliver_next(delivery);
        assert_eq!(it.subscribe().await, expected, "{delivery:?}");
    }
}

#[tokio::test]
async fn a_refused_event_comes_again() {
    let it = Delivered::start().await;
    it.refusals.store(1, Ordering::SeqCst);
    assert_eq!(it.subscribe().await, [PAID, CHARGED, CREATED]);
}

#[tokio::test]
async fn a_person_asks_for_disorder_too() {
    let it = Delivered::start().await;
    assert_eq!(
        it.control("deliveries", json!({"how": "twice", "always": true}))
            .await,
        200
    );
    assert_eq!(
        it.subscribe().await,
        [CREATED, CREATED, PAID, PAID, CHARGED, CHARGED]
    );
    assert_eq!(
        it.control("deliveries", json!({"how": "once", "always": true}))
            .await,
        200
    );
    assert_eq!(
        it.control("act", json!({"action": "refund", "target": "cus_1"}))
            .await,
        200
    );
    it.stripe.delivered().await;
    assert_eq!(*it.kinds.lock().unwrap(), ["charge.refunded"]);
    for (path, body) in [
        ("deliveries", json!({"how": "sideways"})),
        ("faults", json!({"fault": "status:200"})),
        ("act", json!({"action": "steal"})),
        ("nothing", json!({})),
    ] {
        assert_eq!(it.control(path, body).await, 400, "{path}");
    }
}

#[tokio::test]
async fn the_pages_show_what_there_is_and_escape_what_people_wrote() {
    let it = Delivered::start().await;
    it.stripe
        .add_customer("cus_2", "<script>alert(1)</script>@example.org");
    it.subscribe().await;
    let page = reqwest::get(format!("{}/local/stripe", it.stripe.url()))
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
    let missing = reqwest::get(format!("{}/local/stripe/checkout/cs_none", it.stripe.url()))
        .await
        .unwrap();
    assert_eq!(missing.status(), 404);
}
