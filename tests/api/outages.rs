//! Redis outages, and a Redis that lost its data.

use std::time::Duration;

use futures_util::future::join_all;
use iconoclash_fakes::claude::Behaviour;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{Answer, TestApp},
    proxied::Proxied,
};

/// Nothing listens there.
const NO_REDIS: (&str, &str) = ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9");
const NO_POSTGRES: (&str, &str) = (
    "DATABASE_URL",
    "postgres://nobody@127.0.0.1:9/none?sslmode=disable",
);

#[tokio::test]
async fn while_redis_hangs_postgres_enforces_the_same_quota() {
    let proxied = Proxied::start().await;
    let Proxied { app, redis, .. } = &proxied;
    let ada = app.member("ada").await;
    let discussions = join_all((0..40).map(|_| ada.discussion())).await;
    for discussion in &discussions[..4] {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }

    redis.pause();
    let sent_at = Instant::now();
    let first = ada.send(&discussions[4], "Why?").await;
    eprintln!(
        "the first message without Redis was answered after {:?}",
        sent_at.elapsed()
    );
    assert_eq!(first.status, 201, "{}", first.json);
    assert_eq!(first.json["quota"]["remaining"], 5);

    let sends = discussions[5..].iter().map(|id| ada.send(id, "Why?"));
    let answers = join_all(sends).await;
    assert_eq!(count_status(&answers, 201), 5);
    assert_eq!(count_problem(&answers, (429, "quota_exceeded")), 30);

    // The circuit is open by now, so Redis gets no request.
    let requests = redis.requests();
    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["remaining"], 0);
    assert_eq!(redis.requests(), requests);
    assert_eq!(app.claude.requests().len(), 10);

    redis.resume();
    let resumed_at = Instant::now();
    let circuit_closes = async {
        while redis.requests() == requests {
            ada.get("/api/auth/session").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), circuit_closes)
        .await
        .expect("Redis is used again within 10 seconds");
    eprintln!(
        "Redis was used again {:?} after it came back",
        resumed_at.elapsed()
    );

    let over_quota = ada.send(&discussions[0], "Why?").await;
    assert_eq!(over_quota.problem(), (429, "quota_exceeded"));
    app.cron("/api/cron/reconcile").await;
    let owner = &proxied.second_instance;
    owner.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn without_redis_bursts_and_spending_are_limited() {
    let app = TestApp::with(&[NO_REDIS, ("BURST_PER_MINUTE", "5")]).await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..12).map(|_| ada.discussion())).await;

    let sends = discussions.iter().map(|id| ada.send(id, "Why?"));
    let answers = join_all(sends).await;
    assert_eq!(count_status(&answers, 201), 5);
    assert_eq!(count_problem(&answers, (429, "burst_exceeded")), 7);

    app.advance(time::Duration::minutes(2));
    let limit = async |scope: &str, microusd: u32| {
        let set = format!("update budgets set limit_microusd = {microusd} where scope = '{scope}'");
        app.sql(&set).await;
    };
    limit("free", 300).await;
    let over_plan_limit = ada.send(&discussions[0], "Why?").await;
    assert_eq!(over_plan_limit.problem(), (402, "spend_limit"));

    limit("free", 100_000).await;
    limit("month", 300).await;
    let over_budget = ada.send(&discussions[0], "Why?").await;
    assert_eq!(over_budget.problem(), (503, "budget_spent"));
    assert_eq!(app.claude.requests().len(), 5);
}

#[tokio::test]
async fn without_redis_sign_ins_are_limited_and_public_pages_are_not() {
    let app = TestApp::with(&[NO_REDIS]).await;
    app.member("ada").await;
    let visitor = app.anonymous();

    let wrong = json!({"email": "ada@example.org", "password": "wrong"});
    let sign_ins = (0..15).map(|_| visitor.post("/api/auth/login", wrong.clone()));
    let answers = join_all(sign_ins).await;
    assert_eq!(count_status(&answers, 401), 10);
    assert_eq!(count_problem(&answers, (429, "rate_limited")), 5);

    for _ in 0..121 {
        assert_eq!(visitor.get("/api/plans").await.status, 200);
    }
}

#[tokio::test]
async fn without_redis_a_sign_up_rejected_by_network_does_not_count_for_its_address() {
    let app = TestApp::with(&[NO_REDIS]).await;
    let crowd = app.anonymous();
    let sign_up = |name: &str| {
        let email = format!("{name}@example.org");
        json!({"email": email, "password": "correct horse"})
    };

    for number in 0..10 {
        let body = sign_up(&format!("u{number}"));
        assert_eq!(crowd.post("/api/auth/signup", body).await.status, 201);
    }
    for _ in 0..6 {
        let rejected = crowd.post("/api/auth/signup", sign_up("ada")).await;
        assert_eq!(rejected.problem(), (429, "rate_limited"));
    }

    let elsewhere = app.anonymous();
    let signed_up = elsewhere.post("/api/auth/signup", sign_up("ada")).await;
    assert_eq!(signed_up.status, 201);
}

#[tokio::test]
async fn without_redis_and_postgres_claude_is_not_called() {
    let proxied = Proxied::start().await;
    let ada = proxied.app.member("ada").await;
    let discussion = ada.discussion().await;
    proxied.redis.pause();
    let redis_url = proxied.redis.url();
    let without_stores =
        TestApp::with(&[NO_POSTGRES, ("UPSTASH_REDIS_REST_URL", &redis_url)]).await;

    let refused = without_stores
        .bearer(ada.token.as_deref().unwrap())
        .send(&discussion, "Why?")
        .await;
    assert_eq!(refused.problem(), (503, "unavailable"));
    assert_eq!(refused.header("retry-after"), "5");
    assert_eq!(without_stores.claude.requests().len(), 0);
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_rebuilt_from_the_ledger_before_a_message_is_admitted() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..30).map(|_| ada.discussion())).await;
    for discussion in &discussions[..6] {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }

    // One reply is running when the data is lost.
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussions[6], "Why?").await;
    stream.first_delta().await;
    app.redis_command(&["FLUSHDB"]).await;

    let sends = discussions[7..].iter().map(|id| ada.send(id, "Why?"));
    let answers = join_all(sends).await;
    assert_eq!(count_status(&answers, 201), 3);

    app.claude.release();
    assert_eq!(stream.rest().await.last().unwrap().name, "done");
    app.cron("/api/cron/reconcile").await;
    app.assert_counters_equal_the_ledger().await;
    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["used"], 10);

    app.redis_command(&["FLUSHDB"]).await;
    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["quota"]["used"], 10, "not only for a message");

    app.budget("day", 1).await;
    let bob = app.member("bob").await;
    let discussion = bob.discussion().await;
    let over_budget = bob.send(&discussion, "Why?").await;
    assert_eq!(over_budget.problem(), (503, "budget_spent"));
}

#[tokio::test]
async fn an_invalidation_that_could_not_reach_redis_is_sent_later() {
    let proxied = Proxied::start().await;
    let Proxied {
        app,
        redis,
        second_instance,
        ..
    } = &proxied;
    let ada = app.member("ada").await;
    assert_eq!(ada.get("/api/auth/session").await.status, 200);

    redis.pause();
    let signed_out = ada.post("/api/auth/logout", Value::Null).await;
    assert_eq!(signed_out.status, 204);
    let rejected = ada.get("/api/auth/session").await;
    assert_eq!(rejected.problem(), (401, "invalid_token"));
    let pending = "select count(*) from stale_cache_keys";
    assert_eq!(second_instance.value(pending).await, "1");

    redis.resume();
    // The second instance has not noticed the outage.
    let report = second_instance.cron("/api/cron/reconcile").await;
    assert_eq!(report["stale_values"], 1, "{report}");
    let elsewhere = second_instance.bearer(ada.token.as_deref().unwrap());
    let rejected = elsewhere.get("/api/auth/session").await;
    assert_eq!(rejected.problem(), (401, "invalid_token"));
}

#[tokio::test]
async fn a_sign_out_that_postgres_did_not_save_leaves_the_session_live() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let session_key = format!("{{c}}:s:{}", ada.id().await);
    let redis_url = app.redis.url().to_owned();
    let without_postgres = TestApp::with(&[
        NO_POSTGRES,
        ("UPSTASH_REDIS_REST_URL", &redis_url),
        ("UPSTASH_REDIS_REST_TOKEN", app.redis.token()),
    ])
    .await;

    for everywhere in [true, false] {
        // Removes the tombstone of the last attempt, so the session is cached again.
        app.redis_command(&["DEL", &session_key]).await;
        assert_eq!(ada.get("/api/auth/session").await.status, 200);

        let signed_out = without_postgres
            .bearer(ada.token.as_deref().unwrap())
            .post("/api/auth/logout", json!({ "everywhere": everywhere }))
            .await;
        assert_eq!(signed_out.problem(), (503, "unavailable"));

        let sent = ada.send(&discussion, "Still here?").await;
        assert_eq!(sent.status, 201, "{everywhere}");
    }
}

#[tokio::test]
async fn a_session_that_is_newer_than_the_cached_state_is_live() {
    let Proxied {
        app,
        redis,
        second_instance,
        ..
    } = &Proxied::start().await;
    let ada = app.member("ada").await;
    assert_eq!(ada.get("/api/auth/session").await.status, 200);

    redis.pause();
    let everywhere = json!({"everywhere": true});
    let signed_out = ada.post("/api/auth/logout", everywhere).await;
    assert_eq!(signed_out.status, 204);
    let credentials = json!({"email": "ada@example.org", "password": "correct horse"});
    let signed_in = app.anonymous();
    let signed_in = signed_in.post("/api/auth/login", credentials).await;
    assert_eq!(signed_in.status, 200);

    redis.resume();
    // The second instance reads the cached state, whose invalidation could not reach Redis.
    let elsewhere = second_instance.bearer(signed_in.json["token"].as_str().unwrap());
    assert_eq!(elsewhere.get("/api/auth/session").await.status, 200);
    assert_eq!(elsewhere.get("/api/discussions").await.status, 200);
}

fn count_status(answers: &[Answer], status: u16) -> usize {
    let of_status = answers.iter().filter(|answer| answer.status == status);
    of_status.count()
}

fn count_problem(answers: &[Answer], problem: (u16, &str)) -> usize {
    let of_problem = answers.iter().filter(|answer| answer.problem() == problem);
    of_problem.count()
}
