//! The cron refreshes customers whose events were lost.

use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};
use iconoclash::billing::{self, RefreshReport};
use iconoclash_fakes::stripe::{Action, Event, Fault};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use std::{collections::HashSet, time::Duration};

use crate::{architecture, harness::TestApp};

async fn refresh(app: &TestApp) -> RefreshReport {
    billing::refresh_due(&app.app).await.unwrap()
}

#[tokio::test]
async fn the_cron_heals_a_lost_event() {
    const HEALED: RefreshReport = RefreshReport {
        checked: 1,
        healed: 1,
        failed: 0,
    };
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;
    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();
    assert_eq!(refresh(&app).await.checked, 0, "not due yet");

    app.advance(time::Duration::minutes(11));
    assert_eq!(refresh(&app).await, HEALED);
    assert_eq!(ada.plan().await, "pro");

    app.stripe
        .act(Action::CancelNow(&app.newest_subscription()));
    app.stripe.take_events();
    app.advance(time::Duration::hours(23));
    assert_eq!(refresh(&app).await.checked, 0);

    app.advance(time::Duration::hours(1));
    assert_eq!(refresh(&app).await, HEALED);
    assert_eq!(ada.plan().await, "free");
    assert_eq!(refresh(&app).await.checked, 0);
}

#[tokio::test]
async fn a_visitor_who_has_paid_is_pro_though_the_event_is_lost() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let refresh = async || ada.post("/api/billing/refresh", Value::Null).await;
    let checkout = ada.checkout().await;
    let requests = app.stripe.requests().len();

    let unpaid = refresh().await;
    assert_eq!(unpaid.json["user"]["plan"], "free");
    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();

    let paid = refresh().await;
    assert_eq!(
        (
            &paid.json["user"]["plan"],
            &paid.json["quota"]["limit"],
            paid.header("x-ratelimit-limit")
        ),
        (&json!("pro"), &json!(100), "100")
    );
    assert_eq!(paid.json, ada.get("/api/auth/session").await.json);
    assert_eq!(app.stripe.requests().len(), requests + 2, "one each");

    app.stripe.always(Some(Fault::Drop));
    assert_eq!(refresh().await.problem(), (503, "unavailable"));
    app.stripe.always(None);

    // Stripe answers like this where the API key is of another account.
    app.stripe.next(Fault::NoSuchCustomer);
    assert_eq!(refresh().await.json["user"]["plan"], "pro");

    app.stripe.act(Action::Delete(&app.customer()));
    app.stripe.take_events();
    assert_eq!(refresh().await.json["user"]["plan"], "free");
}

#[tokio::test]
async fn a_refresh_without_a_customer_asks_nothing_and_is_limited() {
    let app = TestApp::start().await;
    let guest = app.guest().await;
    let refresh = async || guest.post("/api/billing/refresh", Value::Null).await;

    for _ in 0..20 {
        assert_eq!(refresh().await.json["user"]["plan"], "guest");
    }
    assert_eq!(refresh().await.problem(), (429, "rate_limited"));
    assert_eq!(app.stripe.requests().len(), 0);
}

#[tokio::test]
async fn the_page_after_paying_says_pro_only_once_it_is_true() {
    let root = architecture::root();
    let run = tokio::process::Command::new("node")
        .args(["--test", "tests/pages/success.mjs"])
        .current_dir(root)
        .output()
        .await
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}");
}

#[tokio::test]
async fn a_customer_that_fails_delays_no_other_and_parallel_crons_share_the_work() {
    let app = TestApp::start().await;
    create_customers(&app, 30).await;
    app.sql("update stripe_customers set check_at = now() - interval '1 hour'")
        .await;
    for id in app.stripe.customers().iter().step_by(2) {
        app.stripe.act(Action::Subscribe(id));
    }
    // Stripe does not know this one.
    app.sql("update stripe_customers set id = 'cus_unknown' where id = 'cus_0007'")
        .await;

    let (one, two) = join(refresh(&app), refresh(&app)).await;
    assert_eq!(
        (
            one.checked + two.checked,
            one.healed + two.healed,
            one.failed + two.failed
        ),
        (30, 15, 1)
    );
    assert_eq!(
        app.stripe.requests().len(),
        31,
        "one request per customer, and whether the unknown one is deleted"
    );
    assert_eq!(refresh(&app).await.checked, 0);

    app.advance(time::Duration::minutes(16));
    let retried = RefreshReport {
        checked: 1,
        healed: 0,
        failed: 1,
    };
    assert_eq!(refresh(&app).await, retried);
}

#[tokio::test]
async fn a_customer_that_stripe_refuses_is_checked_less_and_less_often() {
    let app = TestApp::start().await;
    create_customers(&app, 1).await;
    app.sql("update stripe_customers set id = 'cus_unknown', check_at = now()")
        .await;
    let failures = async |quarters: usize| {
        let mut failed = 0;
        for _ in 0..quarters {
            app.advance(time::Duration::minutes(15) + time::Duration::SECOND);
            failed += refresh(&app).await.failed;
        }
        failed
    };

    // After 0.25, 0.5, 1, 2, 4, 8 and 16 hours, and then once a day.
    assert_eq!(failures(4 * 24).await, 7);
    assert_eq!(failures(4 * 24 * 3).await, 3);

    // An outage is no fault of the customer.
    app.sql("update stripe_customers set id = 'cus_0000', check_at = now(), failed_checks = 0")
        .await;
    app.stripe.always(Some(Fault::Status(429)));
    assert_eq!(failures(8).await, 8);
    app.stripe.always(None);
    assert_eq!(failures(1).await, 0);
    assert_eq!(
        app.value("select failed_checks from stripe_customers")
            .await,
        "0"
    );
}

#[tokio::test]
async fn customers_that_stripe_refuses_come_last() {
    let app = TestApp::start().await;
    create_customers(&app, 202).await;
    app.sql(
        "update stripe_customers
         set id = 'cus_unknown' || id, check_at = now() - interval '1 hour', failed_checks = 1
         where id < 'cus_0201'",
    )
    .await;
    app.sql("update stripe_customers set check_at = now() where id = 'cus_0201'")
        .await;
    app.stripe.act(Action::Subscribe("cus_0201"));

    let report = refresh(&app).await;
    assert_eq!((report.healed, report.failed), (1, 199));
}

#[tokio::test]
async fn the_cron_heals_a_lost_deletion_whatever_stripe_lists_then() {
    for refusal in [None, Some(Fault::NoSuchCustomer)] {
        let app = TestApp::start().await;
        let ada = app.member("ada").await;
        ada.subscribe().await;

        app.stripe.act(Action::Delete(&app.customer()));
        app.stripe.take_events();
        app.advance(time::Duration::days(1));
        refusal
            .into_iter()
            .for_each(|refusal| app.stripe.next(refusal));

        let report = refresh(&app).await;
        assert_eq!((report.healed, report.failed), (1, 0), "{refusal:?}");
        assert_eq!(ada.plan().await, "free", "{refusal:?}");
    }
}

/// Creates customers `cus_0000`, `cus_0001` and so on, each with a user.
async fn create_customers(app: &TestApp, count: usize) {
    for at in 0..count {
        app.stripe
            .add_customer(&format!("cus_{at:04}"), "user@example.org");
    }
    app.sql(&format!(
        "with created as (
           insert into users (id, email, password_hash, plan, stripe_customer_id, created_at)
           select gen_random_uuid(), 'user' || n || '@example.org', 'x', 'free',
             'cus_' || lpad(n::text, 4, '0'), now()
           from generate_series(0, {count} - 1) n
           returning id, stripe_customer_id
         )
         insert into stripe_customers (id, user_id, created_at)
         select stripe_customer_id, id, now() from created"
    ))
    .await;
}

#[tokio::test]
async fn after_five_hundred_random_histories_and_one_reconcile_plans_agree_with_stripe() {
    const HISTORIES: usize = 500;
    let seed = std::env::var("ICONOCLASH_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("ICONOCLASH_TEST_SEED={seed}");

    let app = TestApp::start().await;
    create_customers(&app, HISTORIES).await;
    // Every purchase starts with a checkout, which is recorded.
    app.sql(
        "update stripe_customers set checkout_at = now(), check_at = now() + interval '10 minutes'",
    )
    .await;
    app.stripe.always(Some(Fault::Slow(10)));

    let histories = (0..HISTORIES).map(|at| {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(at as u64));
        let app = &app;
        async move { random_history(app, &format!("cus_{at:04}"), rng).await }
    });
    let all_delivered: Vec<bool> = stream::iter(histories).buffered(8).collect().await;

    let wrong = wrong_plans(&app)
        .await
        .into_iter()
        .zip(all_delivered)
        .filter(|(is_wrong, all_delivered)| *is_wrong && *all_delivered)
        .count();
    assert_eq!(
        wrong, 0,
        "ICONOCLASH_TEST_SEED={seed}: without a lost event there is nothing to reconcile"
    );

    app.advance(time::Duration::days(1) + time::Duration::MINUTE);
    while refresh(&app).await.checked > 0 {}

    let wrong = wrong_plans(&app).await.into_iter().filter(|it| *it).count();
    assert_eq!(
        wrong, 0,
        "ICONOCLASH_TEST_SEED={seed}: of {HISTORIES} histories"
    );
    let statuses = app
        .column("select distinct status from subscriptions")
        .await;
    assert_eq!(statuses.len(), 6, "every status occurs: {statuses:?}");
}

/// Changes a customer's subscriptions at random. Of the events, some are delivered at once, some late, some twice, some
/// never. Returns whether every event was delivered.
async fn random_history(app: &TestApp, customer: &str, mut rng: StdRng) -> bool {
    let mut pending: Vec<Event> = Vec::new();
    let mut due: Vec<Event> = Vec::new();
    let loses_events = rng.random_bool(0.7);

    for _ in 0..rng.random_range(1..6) {
        // Changes happen while earlier events are handled, so that Stripe's answers are outdated when they arrive.
        let wait = Duration::from_millis(rng.random_range(0..6));
        let change = async {
            tokio::time::sleep(wait).await;
            act_at_random(app, customer, &mut rng);
            let events = app.stripe.take_events_for(customer);

            let at_once = rng.random_bool(0.5);
            if at_once {
                deliver_until_accepted(app, &events).await;
            }
            (events, at_once)
        };
        let ((), (events, at_once)) = join(deliver_until_accepted(app, &due), change).await;

        for event in events {
            match rng.random_range(0..10) {
                0..8 if at_once => {}
                0..2 if loses_events => {}
                2..4 => pending.extend([event.clone(), event]),
                _ => pending.push(event),
            }
        }
        pending.shuffle(&mut rng);
        due = pending.split_off(rng.random_range(0..=pending.len()));
    }

    pending.append(&mut due);
    pending.shuffle(&mut rng);
    deliver_until_accepted(app, &pending).await;
    !loses_events
}

fn act_at_random(app: &TestApp, customer: &str, rng: &mut StdRng) {
    let subscriptions = app.stripe.subscriptions(customer);
    let action = match subscriptions.first() {
        Some((id, status)) if status != "canceled" && rng.random_bool(0.9) => {
            let actions = [
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
            actions[rng.random_range(0..actions.len())]
        }
        _ => Action::Subscribe(customer),
    };
    app.stripe.act(action);
}

/// Delivers events in parallel. Like Stripe, sends an event again after a 500.
async fn deliver_until_accepted(app: &TestApp, events: &[Event]) {
    let deliver = async |event: &Event| {
        for _ in 0..10 {
            let answer = app.deliver(event).await;
            match answer.status.as_u16() {
                200 => return,
                500 => {}
                other => panic!("{other}: {}", answer.json),
            }
        }
        panic!("{} was not accepted", event.kind);
    };
    join_all(events.iter().map(deliver)).await;
}

/// Whether each customer's plan differs from what the subscriptions at Stripe grant.
async fn wrong_plans(app: &TestApp) -> Vec<bool> {
    let pro: HashSet<String> = app
        .column("select stripe_customer_id from users where plan = 'pro'")
        .await;

    app.stripe
        .customers()
        .iter()
        .map(|customer| pro.contains(customer) != is_pro_at_stripe(app, customer))
        .collect()
}

/// Whether Stripe's subscriptions grant Pro. No grace period has ended yet.
fn is_pro_at_stripe(app: &TestApp, customer: &str) -> bool {
    let subscriptions = app.stripe.subscriptions(customer);
    subscriptions
        .iter()
        .any(|(_, status)| ["active", "trialing", "past_due"].contains(&status.as_str()))
}
