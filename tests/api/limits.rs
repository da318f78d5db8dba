//! The daily message quota.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Answer, TestApp};

const UNKNOWN_DISCUSSION: &str = "01890000-0000-7000-8000-000000000000";

#[tokio::test]
async fn of_fifty_parallel_messages_exactly_the_remaining_ten_are_answered() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..50).map(|_| ada.discussion())).await;

    let sends = discussions.iter().map(|id| ada.send(id, "Why?"));
    let answers = join_all(sends).await;
    let (answered, rejected): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 201);
    assert_eq!(answered.len(), 10);
    assert_eq!(rejected.len(), 40);
    for rejection in rejected {
        assert_reports_the_daily_quota(rejection);
    }

    let counted = "select count(*) from usage_events where outcome = 'complete' and counted";
    assert_eq!(app.value(counted).await, "10");

    // On a busy machine Redis may miss its deadline; then Postgres may reject a message while Claude is being called.
    let calls = app.claude.requests().len();
    assert!((10..50).contains(&calls), "{calls}");

    // Reconciling counts the messages in Redis that were sent without it.
    app.cron("/api/cron/reconcile").await;
    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["used"], 10);
}

#[track_caller]
fn assert_reports_the_daily_quota(rejection: &Answer) {
    assert_eq!(rejection.problem(), (429, "quota_exceeded"));

    let wait: u64 = rejection.header("retry-after").parse().unwrap();
    assert!((1..=86_400).contains(&wait), "{wait}");
    assert_eq!(rejection.json["retry_after"], wait);

    let reset_at = rejection.json["reset_at"].as_str().unwrap();
    assert!(reset_at.ends_with("T00:00:00.000000Z"), "{reset_at}");

    assert_eq!(rejection.header("x-ratelimit-remaining"), "0");
    let policy = r#""daily";q=10;w=86400"#;
    assert_eq!(rejection.header("ratelimit-policy"), policy);
}

#[tokio::test]
async fn the_quota_resets_on_the_next_day() {
    let app = TestApp::with(&[("QUOTA_FREE", "1")]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    let second = ada.send(&discussion, "Why?").await;
    assert_eq!(second.problem(), (429, "quota_exceeded"));

    app.advance(time::Duration::days(1));
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
}

#[tokio::test]
async fn guests_of_one_network_share_a_quota() {
    let app = TestApp::start().await;
    let mut first = app.guest().await;
    let mut second = app.guest().await;
    first.ip = "2001:db8:1:2::1".into();
    second.ip = "2001:db8:1:2:ffff::9".into();
    let of_first = first.discussion().await;
    let of_second = second.discussion().await;

    for _ in 0..2 {
        assert_eq!(first.send(&of_first, "Why?").await.status, 201);
    }
    let third = second.send(&of_second, "Why?").await;
    assert_eq!(third.json["quota"]["remaining"], 0);
    let fourth = second.send(&of_second, "Why?").await;
    assert_eq!(fourth.problem(), (429, "quota_exceeded"));
    let session = first.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["remaining"], 0);

    let elsewhere = app.guest().await;
    let of_elsewhere = elsewhere.discussion().await;
    assert_eq!(elsewhere.send(&of_elsewhere, "Why?").await.status, 201);

    let with_address = "select count(*) from usage_events
        where subject like '%2001%' or subject like '%10.%'";
    assert_eq!(app.value(with_address).await, "0");
}

#[tokio::test]
async fn a_change_of_plan_in_postgres_counts_at_once() {
    let app = TestApp::with(&[("QUOTA_FREE", "1"), ("QUOTA_PRO", "3")]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    let first = ada.send(&discussion, "Why?").await;
    assert_eq!(first.json["quota"]["limit"], 1);
    let over_quota = ada.send(&discussion, "Why?").await;
    assert_eq!(over_quota.problem(), (429, "quota_exceeded"));

    // Redis still has the old plan.
    app.sql("update users set plan = 'pro'").await;
    let upgraded = ada.send(&discussion, "Why?").await;
    assert_eq!(upgraded.status, 201);
    assert_eq!(upgraded.json["quota"]["remaining"], 1);
    let call = app.claude.requests().pop().unwrap();
    assert_eq!(call.body["model"], "claude-sonnet-5-5");

    app.sql("update users set plan = 'free'").await;
    let downgraded = ada.send(&discussion, "Why?").await;
    assert_eq!(downgraded.problem(), (429, "quota_exceeded"));

    app.sql("update users set plan = 'pro'").await;
    let upgraded = ada.send(&discussion, "Why?").await;
    assert_eq!(upgraded.json["quota"]["remaining"], 0);
}

#[tokio::test]
async fn a_rejected_message_does_not_count() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    let path = format!("/api/discussions/{discussion}/messages");
    for content in [json!(""), json!("x".repeat(8001)), json!(7), Value::Null] {
        let rejected = ada.post(&path, json!({ "content": content })).await;
        assert_eq!(rejected.status, 422);
    }
    assert_eq!(ada.send(UNKNOWN_DISCUSSION, "Why?").await.status, 404);

    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["used"], 0);
    assert_eq!(session.json["quota"]["remaining"], 10);
}

#[tokio::test]
async fn without_postgres_claude_is_not_called_and_health_stays_up() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let unreachable = "postgres://nobody@127.0.0.1:9/none?sslmode=disable";
    let without_postgres = TestApp::with(&[("DATABASE_URL", unreachable)]).await;

    let refused = without_postgres
        .bearer(ada.token.as_deref().unwrap())
        .send(UNKNOWN_DISCUSSION, "Why?")
        .await;
    assert_eq!(refused.problem(), (503, "unavailable"));
    assert_eq!(without_postgres.claude.requests().len(), 0);

    let health = without_postgres.anonymous().get("/api/health").await;
    assert_eq!(health.status, 200);
}
