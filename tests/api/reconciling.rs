//! The reconcile cron, where one of its steps fails or has much to do.

use http::Method;
use iconoclash_fakes::stripe::Action;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::TestApp;

#[tokio::test]
async fn a_step_that_fails_does_not_stop_the_others() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    let checkout = ada.checkout().await;

    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();
    app.sql("insert into stale_cache_keys (key, since) values ('{c}:s:unknown', now())")
        .await;
    app.advance(time::Duration::minutes(11));
    app.redis_command(&["DEL", "{rl}:open"]).await;
    app.redis_command(&["SET", "{rl}:open", "no set"]).await;

    let secret = [("authorization", "Bearer a-cron-secret-of-32-characters!!")];

    let failed = app
        .anonymous()
        .request(Method::GET, "/api/cron/reconcile", &secret, Value::Null)
        .await;
    assert_eq!(failed.problem(), (500, "internal"));
    assert_eq!(ada.plan().await, "pro");
    assert_eq!(
        app.value("select count(*) from stale_cache_keys").await,
        "0"
    );
    let recorded = "select report ->> 'redis', report ->> 'subscriptions_healed' from cron_runs where job = 'reconcile'";
    assert_eq!(app.value(recorded).await, "failed,1");

    app.redis_command(&["DEL", "{rl}:open"]).await;

    let report = app.cron("/api/cron/reconcile").await;
    assert_eq!(
        (&report["redis"], &report["subjects_compared"]),
        (&Value::Null, &json!(1)),
        "{report}"
    );
}

#[tokio::test]
async fn more_open_holds_than_fit_into_one_answer_of_redis_are_settled() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    let user = ada.id().await;

    for thousand in 0..12 {
        // Some share a millisecond.
        let scores: Vec<String> = (0..1_000)
            .map(|at| (1_577_836_800_000_i64 + thousand * 1_000 + at / 300).to_string())
            .collect();
        let holds: Vec<String> = scores
            .iter()
            .map(|_| format!("2020-01-01 u:{user} {} 0 aside", Uuid::now_v7()))
            .collect();
        let pairs = scores
            .iter()
            .zip(&holds)
            .flat_map(|(score, hold)| [score.as_str(), hold.as_str()]);
        let words: Vec<&str> = ["ZADD", "{rl}:open"].into_iter().chain(pairs).collect();
        assert_eq!(app.redis_command(&words).await, 1_000);
    }

    let report = app.cron("/api/cron/reconcile").await;
    assert_eq!(
        (&report["redis"], &report["holds_dropped"]),
        (&Value::Null, &json!(12_000)),
        "{report}"
    );
    assert_eq!(
        (&report["subjects_compared"], &report["subjects_repaired"]),
        (&json!(1), &json!(0)),
        "{report}"
    );
    app.assert_counters_equal_the_ledger().await;
}
