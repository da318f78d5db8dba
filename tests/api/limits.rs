//! The day's messages.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::TestApp;

#[tokio::test]
async fn of_fifty_parallel_messages_exactly_the_ten_that_are_left_are_answered() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..50).map(|_| ada.discussion())).await;
    let answers = join_all(
        discussions
            .iter()
            .map(|discussion| ada.send(discussion, "Why?")),
    )
    .await;
    let (answered, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((answered.len(), refused.len()), (10, 40));
    for refusal in refused {
        assert_eq!(refusal.problem(), (429, "quota_exceeded"));
        let wait: u64 = refusal.header("retry-after").parse().unwrap();
        assert!((1..=86_400).contains(&wait), "{wait}");
        assert_eq!(
            (
                refusal.header("x-ratelimit-remaining"),
                &refusal.json["retry_after"]
            ),
            ("0", &json!(wait))
        );
        assert!(
            refusal.json["reset_at"]
                .as_str()
                .unwrap()
                .ends_with("T00:00:00Z"),
            "{}",
            refusal.json
        );
        assert_eq!(
            refusal.header("ratelimit-policy"),
            r#""daily";q=10;w=86400"#
        );
    }
    assert_eq!(
        app.value("select count(*) from usage_events where outcome = 'complete' and counted")
            .await,
        "10"
    );
    // On a busy machine Redis may miss its deadline for some; then Postgres refuses others while Claude is being asked.
    assert!(
        (10..50).contains(&app.claude.requests().len()),
        "{}",
        app.claude.requests().len()
    );
    // And Redis learns of what went without it.
    app.cron("/api/cron/reconcile").await;
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 10);
}

#[tokio::test]
async fn the_next_day_brings_new_messages() {
    let app = TestApp::with(&[("QUOTA_FREE", "1")]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    app.advance(time::Duration::days(1));
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
}

#[tokio::test]
async fn guests_share_their_networks_messages() {
    let app = TestApp::start().await;
    let mut first = app.guest().await;
    let mut second = app.guest().await;
    (first.ip, second.ip) = ("2001:db8:1:2::1".into(), "2001:db8:1:2:ffff::9".into());
    let (one, two) = (first.discussion().await, second.discussion().await);
    for _ in 0..2 {
        assert_eq!(first.send(&one, "Why?").await.status, 201);
    }
    assert_eq!(
        second.send(&two, "Why?").await.json["quota"]["remaining"],
        0
    );
    assert_eq!(
        second.send(&two, "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    assert_eq!(
        first.get("/api/auth/session").await.json["quota"]["remaining"],
        0
    );
    let elsewhere = app.guest().await;
    let three = elsewhere.discussion().await;
    assert_eq!(elsewhere.send(&three, "Why?").await.status, 201);
    assert_eq!(
        app.value(
            "select count(*) from usage_events where subject like '%2001%' or subject like '%10.%'"
        )
        .await,
        "0"
    );
}

#[tokio::test]
async fn postgres_decides_which_plan_counts() {
    let app = TestApp::with(&[("QUOTA_FREE", "1"), ("QUOTA_PRO", "3")]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(
        ada.send(&discussion, "Why?").await.json["quota"]["limit"],
        1
    );
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    // An upgrade counts at once, though Redis has just been told the old plan.
    app.sql("update users set plan = 'pro'").await;
    let upgraded = ada.send(&discussion, "Why?").await;
    assert_eq!(
        (
            upgraded.status.as_u16(),
            &upgraded.json["quota"]["remaining"]
        ),
        (201, &json!(1))
    );
    assert_eq!(
        app.claude.requests().last().unwrap().body["model"],
        "claude-sonnet-5-5"
    );
    // And so does its end.
    app.sql("update users set plan = 'free'").await;
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    app.sql("update users set plan = 'pro'").await;
    assert_eq!(
        ada.send(&discussion, "Why?").await.json["quota"]["remaining"],
        0
    );
}

#[tokio::test]
async fn what_is_refused_takes_nothing() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    for content in [json!(""), json!("x".repeat(8001)), json!(7), Value::Null] {
        assert_eq!(
            ada.post(
                &format!("/api/discussions/{discussion}/messages"),
                json!({ "content": content })
            )
            .await
            .status,
            422
        );
    }
    assert_eq!(
        ada.send("01890000-0000-7000-8000-000000000000", "Why?")
            .await
            .status,
        404
    );
    let quota = ada.get("/api/auth/session").await.json["quota"].clone();
    assert_eq!(
        (&quota["used"], &quota["remaining"]),
        (&json!(0), &json!(10))
    );
}

#[tokio::test]
async fn without_postgres_the_message_is_given_back_and_claude_is_not_asked() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let down = TestApp::with(&[(
        "DATABASE_URL",
        "postgres://nobody@127.0.0.1:9/none?sslmode=disable",
    )])
    .await;
    let refused = down
        .bearer(ada.token.as_deref().unwrap())
        .send("01890000-0000-7000-8000-000000000000", "Why?")
        .await;
    assert_eq!(refused.problem(), (503, "unavailable"));
    assert_eq!(down.claude.requests().len(), 0);
    assert_eq!(down.anonymous().get("/api/health").await.status, 200);
}
