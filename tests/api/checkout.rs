//! Opening the page on which a user pays for Pro.

use futures_util::future::{join, join_all};
use iconoclash_fakes::stripe::{Action, Fault, NEXT_PRICE};
use serde_json::Value;
use std::collections::BTreeSet;

use crate::harness::TestApp;

#[tokio::test]
async fn a_checkout_names_the_payer_the_price_and_the_return_addresses() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    ada.checkout().await;
    let requests = app.stripe.requests();
    let made = |path: &str| {
        requests
            .iter()
            .rfind(|it| it.path == path && it.method == http::Method::POST)
            .unwrap()
    };
    let user = ada.get("/api/auth/session").await.json["user"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let customer = made("/v1/customers");
    assert!(
        customer
            .params
            .contains(&("metadata[user_id]".into(), user.clone())),
        "{customer:?}"
    );
    assert_eq!(
        customer.idempotency_key,
        Some(format!("customer-{user}-first"))
    );
    let session = made("/v1/checkout/sessions");

    for (name, value) in [
        ("mode", "subscription"),
        ("customer", &app.customer()),
        ("client_reference_id", &user),
        ("line_items[0][price]", "price_local_pro"),
        ("allow_promotion_codes", "true"),
        ("subscription_data[metadata][user_id]", &user),
        (
            "success_url",
            "https://iconoclash.test/billing/success.html?session_id={CHECKOUT_SESSION_ID}",
        ),
        ("cancel_url", "https://iconoclash.test/billing/cancel.html"),
    ] {
        assert!(
            session.params.contains(&(name.into(), value.into())),
            "{name} in {session:?}"
        );
    }
}

#[tokio::test]
async fn twenty_checkouts_at_once_share_one_customer_and_one_page() {
    for parallel in [2, 20] {
        let app = TestApp::start().await;
        let ada = app.member("ada").await;
        let pages = join_all((0..parallel).map(|_| ada.checkout())).await;
        assert_eq!(
            pages.iter().collect::<BTreeSet<_>>().len(),
            1,
            "two open pages could both be paid"
        );
        let customer = app.customer();
        assert_eq!(
            app.value("select stripe_customer_id from users").await,
            customer
        );
        assert_eq!(
            app.value("select count(*), max(id) from stripe_customers")
                .await,
            format!("1,{customer}")
        );

        app.advance(time::Duration::minutes(3));
        assert_eq!(
            ada.checkout().await,
            pages[0],
            "an open page is returned again"
        );
    }
}

#[tokio::test]
async fn a_closed_page_is_replaced_and_only_the_newest_page_can_be_paid() {
    let mut app = TestApp::start().await;

    let token = app.member("ada").await.token.unwrap();

    let first = app.bearer(&token).checkout().await;

    app.stripe.act(Action::Expire(&first));
    let second = app.bearer(&token).checkout().await;
    assert_ne!(first, second);

    app.advance(time::Duration::hours(23) + time::Duration::minutes(45));
    let ada = app.bearer(&token);

    let thirds = join_all((0..5).map(|_| ada.checkout())).await;
    assert!(
        thirds
            .iter()
            .all(|third| *third == thirds[0] && *third != second),
        "a page that is about to close is replaced"
    );

    // A new price needs a new page.
    app.restart(|config| config.stripe_price_pro = Ok(NEXT_PRICE.to_owned()));

    let fourth = app.bearer(&token).checkout().await;
    assert_ne!(fourth, thirds[0]);

    for closed in [&first, &second, &thirds[0]] {
        app.stripe.act(Action::Pay(closed));
        assert_eq!(
            app.stripe.subscriptions(&app.customer()).len(),
            0,
            "{closed} and {fourth} can both be paid"
        );
    }

    app.stripe.act(Action::Pay(&fourth));
    assert_eq!(app.stripe.subscriptions(&app.customer()).len(), 1);
}

#[tokio::test]
async fn a_payment_during_a_second_checkout_is_not_sold_twice() {
    for (left, requests_before) in [
        (time::Duration::hours(23), 1),
        (time::Duration::minutes(15), 2),
    ] {
        let app = TestApp::start().await;
        let ada = app.member("ada").await;
        let page = ada.checkout().await;

        app.advance(time::Duration::DAY - left);
        // Stripe answers before the payment, and the answer arrives after it.
        (1..requests_before).for_each(|_| app.stripe.next(Fault::Slow(0)));

        app.stripe.next(Fault::Hold);
        let requests = app.stripe.requests().len();
        let pays = async {
            app.stripe
                .wait_for_requests(requests + requests_before)
                .await;
            app.stripe.act(Action::Pay(&page));
            app.stripe.take_events();
            app.stripe.release();
        };

        let (answer, ()) = join(ada.post("/api/billing/checkout", Value::Null), pays).await;
        assert_eq!(
            answer.problem(),
            (409, "already_subscribed"),
            "{left}: {}",
            answer.json
        );
        assert_eq!(ada.plan().await, "pro");
    }
}

#[tokio::test]
async fn a_subscription_is_not_sold_twice_even_without_an_event() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;

    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();
    assert_eq!(ada.plan().await, "free");
    assert_eq!(
        ada.post("/api/billing/checkout", Value::Null)
            .await
            .problem(),
        (409, "already_subscribed")
    );
    assert_eq!(ada.plan().await, "pro", "the second checkout synced it");

    let many = join_all((0..10).map(|_| ada.post("/api/billing/checkout", Value::Null))).await;
    assert!(
        many.iter()
            .all(|answer| answer.problem() == (409, "already_subscribed")),
        "{many:?}"
    );

    // The reverse: it ended, the event was lost, and the user subscribes again.
    app.stripe
        .act(Action::CancelNow(&app.newest_subscription()));
    app.stripe.take_events();
    ada.subscribe().await;
    assert_eq!(ada.plan().await, "pro");
}

#[tokio::test]
async fn a_customer_of_another_api_key_is_replaced_unless_the_user_pays() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;

    app.sql("update users set stripe_customer_id = 'cus_test_mode'")
        .await;
    app.sql(
        "insert into stripe_customers (id, user_id, created_at)
         select 'cus_test_mode', id, now() from users",
    )
    .await;
    ada.subscribe().await;
    assert_eq!(ada.plan().await, "pro");
    let customer = app.customer();
    assert_eq!(app.value("select id from stripe_customers").await, customer);

    app.sql("update users set stripe_customer_id = 'cus_test_mode'")
        .await;
    app.sql("update stripe_customers set id = 'cus_test_mode'")
        .await;
    assert_eq!(
        ada.post("/api/billing/checkout", Value::Null)
            .await
            .problem(),
        (500, "internal")
    );
    assert_eq!(ada.plan().await, "pro");
}

#[tokio::test]
async fn a_customer_deleted_at_stripe_buys_again_though_no_event_said_so() {
    for requests_before_refusal in 0..=2 {
        let app = TestApp::start().await;
        let ada = app.member("ada").await;
        ada.subscribe().await;
        let deleted = app.customer();

        app.stripe.act(Action::Delete(&deleted));
        app.stripe.take_events();
        // Stripe may list what a deleted customer bought, or refuse to.
        (0..requests_before_refusal).for_each(|_| app.stripe.next(Fault::Slow(0)));
        app.stripe.next(Fault::NoSuchCustomer);

        ada.subscribe().await;
        assert_eq!(ada.plan().await, "pro");
        assert_ne!(app.customer(), deleted);
        assert_eq!(
            app.value("select id from stripe_customers").await,
            app.customer()
        );
    }
}

#[tokio::test]
async fn an_open_page_of_a_deleted_customer_is_replaced() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let open = ada.checkout().await;

    app.stripe.act(Action::Delete(&app.customer()));
    app.stripe.take_events();
    assert_ne!(ada.checkout().await, open);

    ada.subscribe().await;
    assert_eq!(ada.plan().await, "pro");
}

#[tokio::test]
async fn the_portal_of_a_deleted_customer_is_not_an_error_of_ours() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    ada.subscribe().await;

    app.stripe.act(Action::Delete(&app.customer()));
    app.stripe.take_events();
    let portal = async || ada.post("/api/billing/portal", Value::Null).await;
    assert_eq!(portal().await.problem(), (409, "not_subscribed"));
    assert_eq!(ada.plan().await, "free");

    ada.subscribe().await;
    assert_eq!(portal().await.status, 200);

    // The API key is of another account.
    app.sql("update users set stripe_customer_id = 'cus_test_mode'")
        .await;
    app.sql("update stripe_customers set id = 'cus_test_mode'")
        .await;
    assert_eq!(portal().await.problem(), (500, "internal"));
    assert_eq!(ada.plan().await, "pro");
}

#[tokio::test]
async fn a_customer_that_only_the_users_row_names_is_linked_before_the_sale() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;

    app.stripe.add_customer("cus_imported", "ada@example.org");
    app.sql("update users set stripe_customer_id = 'cus_imported'")
        .await;
    ada.subscribe().await;
    assert_eq!(ada.plan().await, "pro");
    assert_eq!(
        (
            app.customer(),
            app.value("select id from stripe_customers").await.as_str()
        ),
        ("cus_imported".into(), "cus_imported")
    );

    // A customer who already pays is not sold a second subscription.
    app.sql("delete from stripe_customers").await;
    app.sql("update users set plan = 'free'").await;
    assert_eq!(
        ada.post("/api/billing/checkout", Value::Null)
            .await
            .problem(),
        (409, "already_subscribed")
    );
    assert_eq!(app.value("select plan from users").await, "pro");
}

#[tokio::test]
async fn a_failure_that_stripe_stores_under_a_key_does_not_block_checkouts_for_a_day() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;

    app.stripe.next(Fault::Status(500));
    ada.checkout().await;
    assert_eq!(app.stripe.customers().len(), 1);
}

#[tokio::test]
async fn an_outage_that_is_over_is_over_for_those_who_tried_often() {
    const FAILED_CHECKOUTS: usize = 3;
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let fail = async || {
        let refused = ada.post("/api/billing/checkout", Value::Null).await;
        assert_eq!(refused.problem(), (503, "unavailable"));
    };

    // No customer can be created.
    app.stripe.always(Some(Fault::Status(500)));
    for _ in 0..FAILED_CHECKOUTS {
        fail().await;
    }
    app.stripe.always(None);
    let page = ada.checkout().await;

    // No page can be opened: two new failures of each call, after those of earlier calls.
    app.stripe.act(Action::Expire(&page));
    for earlier in 0..FAILED_CHECKOUTS {
        let requests_before = 2 + 2 * earlier;
        (0..requests_before).for_each(|_| app.stripe.next(Fault::Slow(0)));
        for fault in [Fault::Status(500), Fault::Slow(0), Fault::Status(500)] {
            app.stripe.next(fault);
        }
        fail().await;
    }

    let pages = join_all((0..5).map(|_| ada.checkout())).await;
    assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(app.stripe.customers().len(), 1);
}

#[tokio::test]
async fn a_user_may_open_twenty_pages_an_hour() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;

    for _ in 0..10 {
        ada.checkout().await;
        assert_eq!(
            ada.post("/api/billing/portal", Value::Null).await.status,
            200
        );
    }
    let requests = app.stripe.requests().len();

    for path in ["/api/billing/checkout", "/api/billing/portal"] {
        let refused = ada.post(path, Value::Null).await;
        assert_eq!(refused.problem(), (429, "rate_limited"), "{path}");
        assert!(
            (1..=180).contains(&refused.header("retry-after").parse().unwrap()),
            "{path}"
        );
    }
    assert_eq!(app.stripe.requests().len(), requests);

    app.member("bob").await.checkout().await;

    app.advance(time::Duration::minutes(3));
    ada.checkout().await;
}
