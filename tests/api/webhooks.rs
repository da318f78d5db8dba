//! Stripe's events: forged, repeated, late, and racing each other.

use axum::body::Body;
use futures_util::{
    future::{join, join_all, join3},
    stream,
};
use http::{Method, StatusCode};
use iconoclash::billing::{self, RefreshReport};
use iconoclash_fakes::stripe::{Action, Event, Fault, sign};
use serde_json::{Value, json};
use sqlx::Executor;
use time::OffsetDateTime;

use crate::harness::TestApp;

const STORED_EVENTS_AND_SUBSCRIPTIONS: &str =
    "select (select count(*) from stripe_events), (select count(*) from subscriptions)";

const HEALED: RefreshReport = RefreshReport {
    checked: 1,
    healed: 1,
    failed: 0,
};

/// Has a user pay, and returns the events, none of which is delivered yet.
async fn pay(app: &TestApp) -> Vec<Event> {
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;

    app.stripe.take_events();
    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events()
}

#[tokio::test]
async fn an_event_without_a_fresh_valid_signature_is_refused_and_nothing_is_written() {
    let app = TestApp::start().await;
    let events = pay(&app).await;
    let requests = app.stripe.requests().len();
    let payload = &events[0].payload;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let valid = app.stripe.sign(payload);

    for (why, payload, signature) in [
        ("no signature", payload.clone(), String::new()),
        ("no v1", payload.clone(), format!("t={now},v0=00")),
        (
            "another secret",
            payload.clone(),
            sign("whsec_other", now, payload),
        ),
        ("a blank secret", payload.clone(), sign("", now, payload)),
        (
            "another body",
            payload.replace("active", "paused"),
            valid.clone(),
        ),
        (
            "another time",
            payload.clone(),
            valid.replace(&format!("t={now}"), &format!("t={}", now - 1)),
        ),
        (
            "replayed after five minutes",
            payload.clone(),
            sign("whsec_local", now - 302, payload),
        ),
        (
            "from the future",
            payload.clone(),
            sign("whsec_local", now + 302, payload),
        ),
        (
            "signed, but no event",
            "{\"id\":7}".to_owned(),
            app.stripe.sign("{\"id\":7}"),
        ),
        (
            "signed, but no JSON",
            "hello".to_owned(),
            app.stripe.sign("hello"),
        ),
    ] {
        let answer = app.webhook(&payload, &signature).await;
        assert_eq!(answer.problem(), (400, "bad_request"), "{why}");
    }
    let long = format!("{payload}{}", " ".repeat(200_000));
    let signature = app.stripe.sign(&long);
    assert_eq!(
        app.webhook(&long, &signature).await.problem(),
        (400, "bad_request"),
        "oversized"
    );
    let headers = [
        ("stripe-signature", signature.as_str()),
        ("content-length", "10000000"),
    ];
    let never = Body::from_stream(stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let announced = app
        .anonymous()
        .raw(Method::POST, "/api/billing/webhook", &headers, never)
        .await;
    assert_eq!(
        announced.problem(),
        (400, "bad_request"),
        "announced to be oversized"
    );

    assert_eq!(app.value(STORED_EVENTS_AND_SUBSCRIPTIONS).await, "0,0");
    assert_eq!(
        app.stripe.requests().len(),
        requests,
        "Stripe is not called"
    );
    assert_eq!(app.deliver(&events[0]).await.status, 200);
}

#[tokio::test]
async fn during_a_rotation_both_secrets_are_accepted() {
    let app = TestApp::with(&[("STRIPE_WEBHOOK_SECRET", "whsec_new, whsec_local")]).await;
    let events = pay(&app).await;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let new = sign("whsec_new", now, &events[0].payload);
    assert_eq!(app.webhook(&events[0].payload, &new).await.status, 200);

    // Stripe signs with both of its secrets; a signature with an unknown one is skipped.
    let unknown = sign("whsec_unknown", now, &events[1].payload);
    let known = sign("whsec_local", now, &events[1].payload);
    let both = format!(
        "{unknown},{}",
        known
            .split(',')
            .find(|part| part.starts_with("v1="))
            .unwrap()
    );
    assert_eq!(app.webhook(&events[1].payload, &both).await.status, 200);
}

#[tokio::test]
async fn an_event_that_is_delivered_twice_has_its_effect_once() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    for event in &events {
        app.deliver(event).await;
    }
    let requests = app.stripe.requests().len();
    let version = app.value("select version from stripe_customers").await;

    let answers = join_all(events.iter().chain(&events).map(|event| app.deliver(event))).await;

    for (answer, event) in answers.iter().zip(events.iter().chain(&events)) {
        let expected = if event.kind.starts_with("charge.") {
            "ignored"
        } else {
            "repeated"
        };
        assert_eq!(
            (answer.status.as_u16(), &answer.json["outcome"]),
            (200, &json!(expected)),
            "{}",
            event.kind
        );
    }
    assert_eq!(app.stripe.requests().len(), requests);
    assert_eq!(
        app.value("select version from stripe_customers").await,
        version
    );
}

#[tokio::test]
async fn the_same_event_twenty_times_at_once_is_stored_once() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    let answers = join_all((0..20).map(|_| app.deliver(&events[0]))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.json["outcome"] == "written")
            .count(),
        1
    );
    assert_eq!(app.value(STORED_EVENTS_AND_SUBSCRIPTIONS).await, "1,1");
}

#[tokio::test]
async fn events_that_do_not_concern_us_are_ignored() {
    let app = TestApp::start().await;
    pay(&app).await;

    app.stripe.add_customer("cus_elsewhere", "eve@example.org");
    app.stripe.act(Action::Subscribe("cus_elsewhere"));
    for event in app.stripe.take_events() {
        let answer = app.deliver(&event).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json["outcome"]),
            (200, &json!("ignored")),
            "{}",
            event.kind
        );
    }

    for body in [
        r#"{"id":"evt_1","type":"invented.next.year","data":{"object":{}}}"#,
        r#"{"id":"evt_2","type":"invoice.paid","data":{"object":{"customer":null}}}"#,
        r#"{"id":"evt_3","type":"customer.subscription.updated","data":{"object":[]}}"#,
    ] {
        let answer = app.webhook(body, &app.stripe.sign(body)).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json["outcome"]),
            (200, &json!("ignored")),
            "{body}"
        );
    }
    assert_eq!(app.value(STORED_EVENTS_AND_SUBSCRIPTIONS).await, "0,0");
}

#[tokio::test]
async fn while_stripe_is_down_events_are_refused_and_stripe_sends_them_again() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    for fault in [
        Fault::Drop,
        Fault::Hang,
        Fault::Status(500),
        Fault::Status(429),
        Fault::Malformed,
    ] {
        app.stripe.always(Some(fault));
        let answer = app.deliver(&events[0]).await;
        assert_eq!(answer.problem(), (500, "internal"), "{fault:?}");
        assert!(
            !answer.json.to_string().contains("This fake"),
            "{}",
            answer.json
        );
    }
    assert_eq!(app.value(STORED_EVENTS_AND_SUBSCRIPTIONS).await, "0,0");

    app.stripe.always(None);
    assert_eq!(app.deliver(&events[0]).await.json["outcome"], "written");
    assert_eq!(app.value("select plan from users").await, "pro");
}

#[tokio::test]
async fn the_cron_syncs_a_refused_event_before_stripe_sends_it_again() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    app.stripe.always(Some(Fault::Hang));
    assert_eq!(app.deliver(&events[0]).await.problem(), (500, "internal"));
    app.background.idle().await;

    app.stripe.always(None);

    // Long before the first check of the checkout is due.
    assert_eq!(billing::refresh_due(&app.app).await.unwrap(), HEALED);
    assert_eq!(app.value("select plan from users").await, "pro");
    assert_eq!(app.deliver(&events[0]).await.json["outcome"], "written");
}

#[tokio::test]
async fn an_event_that_is_refused_while_another_is_handled_is_synced_soon() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    // The answer to the first event is made before the cancellation, and stored after its event was refused.
    app.stripe.next(Fault::Hold);
    let requests = app.stripe.requests().len();
    let first = app.deliver(&events[0]);
    let second = async {
        app.stripe.wait_for_requests(requests + 1).await;
        app.stripe
            .act(Action::CancelNow(&app.newest_subscription()));
        let cancelled = app.stripe.take_events();

        app.stripe.next(Fault::Status(429));
        assert_eq!(
            app.deliver(&cancelled[0]).await.problem(),
            (500, "internal")
        );
        app.background.idle().await;
        app.stripe.release();
    };

    let (first, ()) = join(first, second).await;
    assert_eq!(first.json["outcome"], "written", "{}", first.json);
    assert_eq!(billing::refresh_due(&app.app).await.unwrap(), HEALED);
    assert_eq!(app.value("select plan from users").await, "free");
}

/// The number of statements that wait for a lock and contain this text.
fn waiting(text: &str) -> String {
    format!(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query like '%{text}%'"
    )
}

const STORES: &str = "with updated_customer as";
const LINKS: &str = "linked as (";

#[tokio::test]
async fn an_event_and_a_new_customer_of_the_same_user_do_not_block_each_other() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    ada.checkout().await;
    app.stripe.take_events();
    app.stripe.act(Action::Subscribe(&app.customer()));
    let events = app.stripe.take_events();

    let mut other = app.connect().await;
    let lock = "begin; select from users for update";
    other.execute(lock).await.unwrap();

    // The checkout takes the customer for one of another API key.
    app.stripe.next(Fault::Slow(0));
    app.stripe.next(Fault::NoSuchCustomer);
    let checkout = ada.post("/api/billing/checkout", Value::Null);
    let event = async {
        app.eventually(&waiting(LINKS), "1").await;
        app.deliver(&events[0]).await
    };
    let release = async {
        app.eventually(&waiting(STORES), "1").await;
        other.execute("commit").await.unwrap();
    };

    let (checkout, event, ()) = join3(checkout, event, release).await;
    assert_eq!(
        (checkout.status, event.status),
        (StatusCode::OK, StatusCode::OK)
    );
}

#[tokio::test]
async fn an_event_that_a_deadlock_refuses_is_written_all_the_same() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    let mut other = app.connect().await;
    let first = "set deadlock_timeout = '1min'; begin; select from users for update";
    other.execute(first).await.unwrap();
    let event = app.deliver(&events[0]);
    let deadlock = async {
        app.eventually(&waiting(STORES), "1").await;
        let second = "update stripe_customers set check_at = check_at; commit";
        other.execute(second).await.unwrap();
    };

    let (event, ()) = join(event, deadlock).await;
    assert_eq!(event.json["outcome"], "written", "{}", event.json);
    assert_eq!(app.value("select plan from users").await, "pro");
}

#[tokio::test]
async fn a_late_answer_never_overwrites_a_newer_one() {
    let app = TestApp::start().await;
    let events = pay(&app).await;

    // The first request gets the answer "active" only after the second one stored "canceled".
    app.stripe.next(Fault::Hold);
    let requests = app.stripe.requests().len();

    let late = app.deliver(&events[0]);
    let overtaken = async {
        app.stripe.wait_for_requests(requests + 1).await;
        app.stripe
            .act(Action::CancelNow(&app.newest_subscription()));
        for event in app.stripe.take_events() {
            assert_eq!(app.deliver(&event).await.json["outcome"], "written");
        }
        assert_eq!(app.value("select plan from users").await, "free");

        app.stripe.release();
    };

    let (late, ()) = join(late, overtaken).await;
    assert_eq!(
        (late.status.as_u16(), &late.json["outcome"]),
        (200, &json!("written")),
        "{}",
        late.json
    );
    assert_eq!(
        app.stripe.requests().len(),
        requests + 3,
        "it fetches again"
    );
    assert_eq!(
        app.value("select status from subscriptions").await,
        "canceled"
    );
    assert_eq!(app.value("select plan from users").await, "free");
}
