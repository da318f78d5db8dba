//! Paying for Pro, from the first checkout to the end of the last period.

use http::StatusCode;
use iconoclash::billing::{self, RefreshReport};
use iconoclash_fakes::stripe::{Action, Event, Fault};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use upstash_redis_rs::Command;

use crate::harness::{Actor, Answer, TestApp};

impl TestApp {
    /// Delivers an event as Stripe does.
    pub(crate) async fn deliver(&self, event: &Event) -> Answer {
        self.webhook(&event.payload, &self.stripe.sign(&event.payload))
            .await
    }

    pub(crate) async fn webhook(&self, payload: &str, signature: &str) -> Answer {
        let body = axum::body::Body::from(payload.to_owned());
        let headers = [("stripe-signature", signature)];
        self.anonymous()
            .raw(http::Method::POST, "/api/billing/webhook", &headers, body)
            .await
    }

    /// Delivers all pending events.
    pub(crate) async fn deliver_all(&self) {
        for event in self.stripe.take_events() {
            let answer = self.deliver(&event).await;
            assert_eq!(answer.status, 200, "{}: {}", event.kind, answer.json);
        }
    }

    /// The only customer's id.
    pub(crate) fn customer(&self) -> String {
        let customers = self.stripe.customers();
        assert_eq!(customers.len(), 1);
        customers[0].clone()
    }

    /// The only customer's newest subscription.
    pub(crate) fn newest_subscription(&self) -> String {
        self.stripe.subscriptions(&self.customer())[0].0.clone()
    }
}

impl Actor<'_> {
    /// Opens a checkout and returns its id.
    pub(crate) async fn checkout(&self) -> String {
        let answer = self.post("/api/billing/checkout", Value::Null).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        answer.json["url"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned()
    }

    /// Pays, and delivers the events.
    pub(crate) async fn subscribe(&self) {
        let checkout = self.checkout().await;
        self.app.stripe.act(Action::Pay(&checkout));
        self.app.deliver_all().await;
    }

    pub(crate) async fn plan(&self) -> String {
        self.get("/api/auth/session").await.json["user"]["plan"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

#[tokio::test]
async fn a_payment_counts_at_once_and_a_cancellation_at_the_end_of_the_period() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    for _ in 0..10 {
        assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    }

    let refused = ada.send(&discussion, "Why?").await;
    assert_eq!(refused.problem(), (429, "quota_exceeded"));
    assert!(
        refused.json["detail"]
            .as_str()
            .unwrap()
            .contains("Upgrade to Pro"),
        "{}",
        refused.json
    );

    ada.subscribe().await;
    let eleventh = ada.send(&discussion, "Why?").await;
    assert_eq!(
        (eleventh.status.as_u16(), &eleventh.json["quota"]["limit"]),
        (201, &json!(100))
    );
    assert_eq!(ada.plan().await, "pro");
    assert_eq!(
        ada.post("/api/billing/checkout", Value::Null)
            .await
            .problem(),
        (409, "already_subscribed")
    );

    app.stripe
        .act(Action::CancelAtPeriodEnd(&app.newest_subscription()));
    app.deliver_all().await;
    assert_eq!(ada.plan().await, "pro", "until the paid period ends");
    let user = app.value("select id from users").await;
    let cached = async || -> Option<String> {
        let command = Command::new("GET").arg(format!("{{rl}}:pl:u:{user}"));
        app.app.redis().unwrap().exec(&command).await.unwrap()
    };
    assert_eq!(cached().await.as_deref(), Some("pro"));

    app.advance(time::Duration::days(29));
    app.deliver_all().await;
    let ada = sign_in_again(&app).await;
    assert_eq!(ada.plan().await, "pro");

    app.advance(time::Duration::days(1));
    app.deliver_all().await;
    assert_eq!(ada.plan().await, "free");
    assert_eq!(cached().await, None, "the cached plan is invalidated");
    assert_eq!(
        ada.send(&discussion, "Why?").await.json["quota"]["limit"],
        10
    );

    // The user may return as the same customer.
    ada.subscribe().await;
    assert_eq!(
        (ada.plan().await.as_str(), app.stripe.customers().len()),
        ("pro", 1)
    );
}

/// A token expires after thirty days, with the period.
async fn sign_in_again(app: &TestApp) -> Actor<'_> {
    let login = json!({"email": "ada@example.org", "password": "correct horse"});
    let signed = app.anonymous().post("/api/auth/login", login).await;
    app.bearer(signed.json["token"].as_str().unwrap())
}

#[tokio::test]
async fn a_guest_must_sign_up_and_the_portal_needs_a_customer() {
    let app = TestApp::start().await;
    let guest = app.guest().await;

    for path in ["/api/billing/checkout", "/api/billing/portal"] {
        assert_eq!(
            guest.post(path, Value::Null).await.problem(),
            (403, "sign_up_first"),
            "{path}"
        );
    }
    let ada = app.member("ada").await;
    assert_eq!(
        ada.post("/api/billing/portal", Value::Null).await.problem(),
        (409, "not_subscribed")
    );
    assert_eq!(app.stripe.requests().len(), 0);

    ada.subscribe().await;
    let portal = ada.post("/api/billing/portal", Value::Null).await;
    assert!(
        portal.json["url"]
            .as_str()
            .unwrap()
            .contains("/portal/bps_"),
        "{}",
        portal.json
    );
}

#[tokio::test]
async fn a_customer_deleted_at_stripe_loses_pro_and_may_return_as_a_new_customer() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let mut customers = BTreeSet::new();

    for _ in 0..3 {
        ada.subscribe().await;
        assert_eq!(ada.plan().await, "pro");
        assert!(
            customers.insert(app.customer()),
            "the idempotency key of a deleted customer is not reused"
        );

        app.stripe.act(Action::Delete(&app.customer()));
        let events = app.stripe.take_events();
        let (deleted, ended): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|it| it.kind == "customer.deleted");
        assert_eq!(app.deliver(ended[0]).await.json["outcome"], "written");
        assert_eq!(ada.plan().await, "free");
        assert_eq!(
            (
                deleted.len(),
                app.deliver(deleted[0]).await.json["outcome"].as_str()
            ),
            (1, Some("written"))
        );
        assert_eq!(ada.plan().await, "free");
        let left =
            "select (select count(*) from subscriptions), (select count(*) from stripe_customers),
            (select count(stripe_customer_id) from users)";
        assert_eq!(app.value(left).await, "0,0,0");

        for event in [deleted[0], ended[0]] {
            let again = app.deliver(event).await;
            assert_eq!(
                (again.status.as_u16(), &again.json["outcome"]),
                (200, &json!("ignored")),
                "{}",
                event.kind
            );
        }
        assert_eq!(
            ada.post("/api/billing/portal", Value::Null).await.problem(),
            (409, "not_subscribed")
        );
    }

    // A late event of a former customer does not change the current one.
    ada.subscribe().await;
    let late = format!(
        r#"{{"id":"evt_late","type":"customer.deleted","data":{{"object":{{"id":{:?}}}}}}}"#,
        customers.first().unwrap()
    );
    assert_eq!(
        app.webhook(&late, &app.stripe.sign(&late)).await.json["outcome"],
        "ignored"
    );
    assert_eq!(ada.plan().await, "pro");

    // A guest stays a guest.
    app.guest().await;
    app.sql(
        "insert into stripe_customers (id, user_id, created_at)
         select 'cus_guest', id, now() from users where plan = 'guest'",
    )
    .await;

    let guests = late
        .replace(customers.first().unwrap(), "cus_guest")
        .replace("evt_late", "evt_guest");
    assert_eq!(
        app.webhook(&guests, &app.stripe.sign(&guests)).await.json["outcome"],
        "written"
    );
    assert_eq!(
        app.column("select plan from users").await,
        ["guest".into(), "pro".into()].into()
    );
}

#[tokio::test]
async fn without_stripe_only_payments_are_unavailable() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;

    app.stripe.always(Some(Fault::Drop));
    let refused = ada.post("/api/billing/checkout", Value::Null).await;
    assert_eq!(
        (refused.problem(), refused.header("retry-after")),
        ((503, "unavailable"), "5")
    );

    app.stripe.always(None);
    ada.checkout().await;
    let bare = TestApp::with(&[("STRIPE_SECRET_KEY", ""), ("STRIPE_WEBHOOK_SECRET", " , ")]).await;
    let bob = bare.member("bob").await;
    assert_eq!(
        bob.post("/api/billing/checkout", Value::Null)
            .await
            .problem(),
        (503, "unavailable")
    );
    assert_eq!(
        bare.webhook("{}", "t=1,v1=00").await.problem(),
        (503, "unavailable")
    );
    let discussion = bob.discussion().await;
    assert_eq!(bob.send(&discussion, "Why?").await.status, 201);
    assert_eq!(
        billing::refresh_due(&bare.app).await.unwrap(),
        RefreshReport::default()
    );
}

#[tokio::test]
async fn a_past_due_payment_is_mailed_once_and_has_seven_days_of_grace() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    ada.subscribe().await;
    let fail = async || {
        app.stripe
            .act(Action::FailPayment(&app.newest_subscription()));
        let events = app.stripe.take_events();

        for event in events.iter().chain(&events) {
            assert_eq!(app.deliver(event).await.status, 200);
        }
        app.background.idle().await;
    };

    fail().await;
    let mails = app.mail.mails();
    assert_eq!(
        (mails.len(), mails[0].to.as_slice()),
        (1, &["ada@example.org".to_owned()][..])
    );
    assert!(
        mails[0].subject.contains("payment") && mails[0].text.contains("keep Pro until"),
        "{:?}",
        mails[0]
    );

    fail().await;
    assert_eq!(app.mail.mails().len(), 1, "the same payment is mailed once");

    app.advance(billing::GRACE - time::Duration::MINUTE);
    billing::refresh_due(&app.app).await.unwrap();
    assert_eq!(ada.plan().await, "pro");

    app.advance(time::Duration::MINUTE);
    assert_eq!(
        billing::refresh_due(&app.app).await.unwrap(),
        RefreshReport {
            checked: 1,
            healed: 1,
            failed: 0
        }
    );
    assert_eq!(ada.plan().await, "free");

    app.stripe.act(Action::Recover(&app.newest_subscription()));
    app.deliver_all().await;
    assert_eq!(ada.plan().await, "pro");

    fail().await;
    assert_eq!(app.mail.mails().len(), 2, "another payment is mailed again");
}

#[tokio::test]
async fn operators_get_one_alert_per_refund_and_dispute() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    ada.subscribe().await;
    let customer = app.customer();

    app.stripe.act(Action::Refund(&customer));
    app.stripe.act(Action::Dispute(&customer));
    app.stripe.act(Action::Refund("cus_elsewhere"));
    let events = app.stripe.take_events();

    for event in events.iter().chain(&events) {
        assert_eq!(app.deliver(event).await.status, 200);
    }
    app.background.idle().await;
    let mut subjects: Vec<String> = app
        .mail
        .mails()
        .into_iter()
        .map(|mail| mail.subject)
        .collect();
    subjects.sort();
    assert_eq!(
        subjects,
        ["A payment is disputed", "A payment was refunded"]
    );
    assert_eq!(app.mail.mails()[0].to, ["ops@iconoclash.test"]);
    assert_eq!(
        ada.plan().await,
        "pro",
        "the plan follows the subscription, not the refund"
    );
}

#[tokio::test]
async fn a_mail_that_cannot_be_sent_fails_no_request() {
    let app = TestApp::with(&[("RESEND_API_KEY", "")]).await;
    let ada = app.member("ada").await;
    ada.subscribe().await;
    app.stripe
        .act(Action::FailPayment(&app.newest_subscription()));
    app.stripe.act(Action::Refund(&app.customer()));
    app.deliver_all().await;
    app.background.idle().await;
    assert_eq!(ada.plan().await, "pro");

    let app = TestApp::start().await;
    let bob = app.member("bob").await;
    bob.subscribe().await;
    for (mails, status) in [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::TOO_MANY_REQUESTS,
    ]
    .into_iter()
    .enumerate()
    {
        app.mail.fail_next(status);

        app.stripe.act(Action::Recover(&app.newest_subscription()));
        app.deliver_all().await;

        app.stripe
            .act(Action::FailPayment(&app.newest_subscription()));
        app.stripe.take_events();

        // The event is lost: the next checkout finds the past due payment, and does not wait for the mail.
        assert_eq!(
            bob.post("/api/billing/checkout", Value::Null)
                .await
                .problem(),
            (409, "already_subscribed")
        );
        assert_eq!(app.mail.mails().len(), mails, "{status}");
        app.background.idle().await;
        assert_eq!(app.mail.mails().len(), mails + 1, "retried after {status}");

        app.advance(time::Duration::MINUTE);
    }
}
