//! Stripe's events: forged, repeated, reordered, lost, and racing each other.

use axum::body::Body;
use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};
use http::Method;
use iconoclash::billing::{self, Confirmed};
use iconoclash_fakes::stripe::{Action, Event, Fault, sign};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;
use std::{collections::HashSet, time::Duration};
use time::OffsetDateTime;

use crate::harness::TestApp;

const NOTHING_WRITTEN: &str =
    "select (select count(*) from stripe_events), (select count(*) from subscriptions)";

/// A user who has paid, and the events of it, none of which has come.
async fn paid(app: &TestApp) -> Vec<Event> {
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;
    app.stripe.take_events();
    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events()
}

#[tokio::test]
async fn what_stripe_did_not_just_sign_is_refused_and_nothing_is_written() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
    let asked = app.stripe.requests().len();
    let payload = &events[0].payload;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let genuine = app.stripe.sign(payload);
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
            genuine.clone(),
        ),
        (
            "another time",
            payload.clone(),
            genuine.replace(&format!("t={now}"), &format!("t={}", now - 1)),
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

    assert_eq!(app.value(NOTHING_WRITTEN).await, "0,0");
    assert_eq!(
        app.stripe.requests().len(),
        asked,
        "and Stripe was not asked"
    );
    assert_eq!(app.deliver(&events[0]).await.status, 200);
}

#[tokio::test]
async fn two_secrets_live_while_one_replaces_the_other() {
    let app = TestApp::with(&[("STRIPE_WEBHOOK_SECRET", "whsec_new, whsec_local")]).await;
    let events = paid(&app).await;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let new = sign("whsec_new", now, &events[0].payload);
    assert_eq!(app.webhook(&events[0].payload, &new).await.status, 200);
    // Stripe signs with both of its own; the one that we do not know does no harm.
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
async fn what_comes_twice_has_its_effect_once() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
    for event in &events {
        app.deliver(event).await;
    }
    let (asked, version) = (
        app.stripe.requests().len(),
        app.value("select version from stripe_customers").await,
    );
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
    assert_eq!(app.stripe.requests().len(), asked);
    assert_eq!(
        app.value("select version from stripe_customers").await,
        version
    );
}

#[tokio::test]
async fn the_same_event_twenty_times_at_once_is_stored_once() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
    let answers = join_all((0..20).map(|_| app.deliver(&events[0]))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.json["outcome"] == "written")
            .count(),
        1
    );
    assert_eq!(app.value(NOTHING_WRITTEN).await, "1,1");
}

#[tokio::test]
async fn what_does_not_concern_us_is_well() {
    let app = TestApp::start().await;
    paid(&app).await;
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
    assert_eq!(app.value(NOTHING_WRITTEN).await, "0,0");
}

#[tokio::test]
async fn while_stripe_cannot_be_asked_an_event_is_not_taken_and_comes_again() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
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
    assert_eq!(app.value(NOTHING_WRITTEN).await, "0,0");
    app.stripe.always(None);
    assert_eq!(app.deliver(&events[0]).await.json["outcome"], "written");
    assert_eq!(app.value("select plan from users").await, "pro");
}

#[tokio::test]
async fn an_event_that_was_not_taken_is_healed_before_it_comes_again() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
    app.stripe.always(Some(Fault::Hang));
    assert_eq!(app.deliver(&events[0]).await.problem(), (500, "internal"));
    app.background.idle().await;
    app.stripe.always(None);
    // Long before a look at what became of the checkout is due.
    let healed = Confirmed {
        asked: 1,
        healed: 1,
        failed: 0,
    };
    assert_eq!(billing::confirm_stale(&app.app).await.unwrap(), healed);
    assert_eq!(app.value("select plan from users").await, "pro");
    assert_eq!(app.deliver(&events[0]).await.json["outcome"], "written");
}

#[tokio::test]
async fn an_answer_that_comes_late_never_covers_a_newer_one() {
    let app = TestApp::start().await;
    let events = paid(&app).await;
    // Stripe has said "active" to the first, which hears it only after the second has heard "canceled".
    app.stripe.next(Fault::Hold);
    let asked = app.stripe.requests().len();
    let late = app.deliver(&events[0]);
    let overtaken = async {
        app.stripe.wait_for_requests(asked + 1).await;
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
    assert_eq!(app.stripe.requests().len(), asked + 3, "it has asked again");
    assert_eq!(
        app.value("select status from subscriptions").await,
        "canceled"
    );
    assert_eq!(app.value("select plan from users").await, "free");
}

#[tokio::test]
async fn a_lost_event_is_healed_by_the_cron() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;
    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();
    let confirm = async || billing::confirm_stale(&app.app).await.unwrap();
    assert_eq!(confirm().await.asked, 0, "it is not time yet");
    app.advance(time::Duration::minutes(11));
    assert_eq!(
        confirm().await,
        Confirmed {
            asked: 1,
            healed: 1,
            failed: 0
        }
    );
    assert_eq!(ada.plan().await, "pro");

    app.stripe
        .act(Action::CancelNow(&app.newest_subscription()));
    app.stripe.take_events();
    app.advance(time::Duration::hours(23));
    assert_eq!(confirm().await.asked, 0);
    app.advance(time::Duration::hours(1));
    assert_eq!(
        confirm().await,
        Confirmed {
            asked: 1,
            healed: 1,
            failed: 0
        }
    );
    assert_eq!(ada.plan().await, "free");
    assert_eq!(confirm().await.asked, 0);
}

#[tokio::test]
async fn a_customer_who_cannot_be_confirmed_stops_nobody_and_crons_share_the_work() {
    let app = TestApp::start().await;
    customers(&app, 30).await;
    app.sql("update stripe_customers set check_at = now() - interval '1 hour'")
        .await;
    for id in app.stripe.customers().iter().step_by(2) {
        app.stripe.act(Action::Subscribe(id));
    }
    // Stripe does not know this one.
    app.sql("update stripe_customers set id = 'cus_unknown' where id = 'cus_0007'")
        .await;
    let (one, two) = join(
        billing::confirm_stale(&app.app),
        billing::confirm_stale(&app.app),
    )
    .await;
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(
        (
            one.asked + two.asked,
            one.healed + two.healed,
            one.failed + two.failed
        ),
        (30, 15, 1)
    );
    assert_eq!(
        app.stripe.requests().len(),
        30,
        "nobody was asked about twice"
    );
    assert_eq!(billing::confirm_stale(&app.app).await.unwrap().asked, 0);
    app.advance(time::Duration::minutes(16));
    assert_eq!(
        billing::confirm_stale(&app.app).await.unwrap(),
        Confirmed {
            asked: 1,
            healed: 0,
            failed: 1
        }
    );
}

/// Customers `cus_0000`, … , each a user of ours, here and at Stripe.
async fn customers(app: &TestApp, count: usize) {
    for at in 0..count {
        app.stripe
            .add_customer(&format!("cus_{at:04}"), "somebody@example.org");
    }
    app.sql(&format!(
        "with made as (
           insert into users (id, email, password_hash, plan, stripe_customer_id, created_at)
           select gen_random_uuid(), 'user' || n || '@example.org', 'x', 'free', 'cus_' || lpad(n::text, 4, '0'), now()
           from generate_series(0, {count} - 1) n
           returning id, stripe_customer_id
         )
         insert into stripe_customers (id, user_id, created_at) select stripe_customer_id, id, now() from made"
    ))
    .await;
}

/// What a customer lives through, and what of it we hear: some at once, some late, some twice, some never. Tells whether
/// each event came at least once.
async fn live_through(app: &TestApp, customer: &str, mut rng: StdRng) -> bool {
    let (mut pending, mut now) = (Vec::<Event>::new(), Vec::new());
    let loses = rng.random_bool(0.7);
    for _ in 0..rng.random_range(1..6) {
        // What happens happens while earlier events are being heard, so that Stripe's answers grow old on the way.
        let wait = Duration::from_millis(rng.random_range(0..6));
        let happens = async {
            tokio::time::sleep(wait).await;
            let subscriptions = app.stripe.subscriptions(customer);
            app.stripe.act(match subscriptions.first() {
                Some((id, status)) if status != "canceled" && rng.random_bool(0.9) => {
                    let fates = [
                        Action::CancelAtPeriodEnd(id),
                        Action::Resume(id),
                        Action::CancelNow(id),
                        Action::FailPayment(id),
                        Action::Recover(id),
                        Action::GiveUp(id),
                        Action::Pause(id),
                        Action::Trial(id),
                        Action::EndPeriod(id),
                    ];
                    fates[rng.random_range(0..fates.len())]
                }
                _ => Action::Subscribe(customer),
            });
            let events = app.stripe.take_events_for(customer);
            let at_once = rng.random_bool(0.5);
            if at_once {
                hear(app, &events).await;
            }
            (events, at_once)
        };
        let ((), (events, at_once)) = join(hear(app, &now), happens).await;
        for event in events {
            match rng.random_range(0..10) {
                0..8 if at_once => {}
                0..2 if loses => {}
                2..4 => pending.extend([event.clone(), event]),
                _ => pending.push(event),
            }
        }
        pending.shuffle(&mut rng);
        now = pending.split_off(rng.random_range(0..=pending.len()));
    }
    pending.append(&mut now);
    pending.shuffle(&mut rng);
    hear(app, &pending).await;
    !loses
}

/// All at the same time; what could not be taken comes again, as Stripe sees to.
async fn hear(app: &TestApp, events: &[Event]) {
    let hear = async |event: &Event| {
        for _ in 0..10 {
            let answer = app.deliver(event).await;
            match answer.status.as_u16() {
                200 => return,
                500 => {}
                other => panic!("{other}: {}", answer.json),
            }
        }
        panic!("{} was not taken", event.kind);
    };
    join_all(events.iter().map(hear)).await;
}

#[tokio::test]
async fn after_five_hundred_random_histories_and_one_reconcile_we_say_what_stripe_says() {
    const HISTORIES: usize = 500;
    let seed = std::env::var("ICONOCLASH_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("ICONOCLASH_TEST_SEED={seed}");
    let app = TestApp::start().await;
    customers(&app, HISTORIES).await;
    // A sale is always begun here, and that is remembered.
    app.sql(
        "update stripe_customers set checkout_at = now(), check_at = now() + interval '10 minutes'",
    )
    .await;
    let lives = (0..HISTORIES).map(|at| {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(at as u64));
        let app = &app;
        async move { live_through(app, &format!("cus_{at:04}"), rng).await }
    });
    app.stripe.always(Some(Fault::Slow(10)));
    let heard_all: Vec<bool> = stream::iter(lives).buffered(8).collect().await;
    let differ = async || -> Vec<bool> {
        let ours: HashSet<String> = app
            .column("select stripe_customer_id from users where plan = 'pro'")
            .await;
        app.stripe
            .customers()
            .iter()
            .map(|customer| ours.contains(customer) != pays(&app, customer))
            .collect()
    };
    let wrong = differ()
        .await
        .into_iter()
        .zip(heard_all)
        .filter(|(differs, heard_all)| *differs && *heard_all)
        .count();
    assert_eq!(
        wrong, 0,
        "ICONOCLASH_TEST_SEED={seed}: without a loss there is nothing to reconcile"
    );

    app.advance(time::Duration::days(1) + time::Duration::MINUTE);
    while billing::confirm_stale(&app.app).await.unwrap().asked > 0 {}
    let wrong = differ()
        .await
        .into_iter()
        .filter(|differs| *differs)
        .count();
    assert_eq!(
        wrong, 0,
        "ICONOCLASH_TEST_SEED={seed}: of {HISTORIES} histories"
    );
    let statuses = app
        .column("select distinct status from subscriptions")
        .await;
    assert_eq!(
        statuses.len(),
        6,
        "every status was lived through: {statuses:?}"
    );
}

/// Whether a customer is Pro by what Stripe holds, none of it due for a week.
fn pays(app: &TestApp, customer: &str) -> bool {
    let subscriptions = app.stripe.subscriptions(customer);
    subscriptions
        .iter()
        .any(|(_, status)| ["active", "trialing", "past_due"].contains(&status.as_str()))
}
