//! Life without Redis, with a Redis that forgot, and with processes that died.

use futures_util::future::join_all;
use iconoclash::crash_point::CrashTrigger;
use iconoclash_fakes::{claude::Behaviour, proxy};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

use crate::harness::TestApp;

/// An app whose Redis can be paused, and the one that owns its stores.
async fn behind_a_proxy(settings: &[(&str, &str)]) -> (TestApp, proxy::Http, TestApp) {
    let owner = TestApp::start().await;
    let redis = proxy::Http::start(owner.redis.url(), Duration::ZERO)
        .await
        .unwrap();
    let bouncer = iconoclash_fakes::test_services::needed("ICONOCLASH_TEST_PGBOUNCER");
    let (url, database) = (redis.url(), format!("{bouncer}/{}", owner.database));
    let mut all = vec![
        ("DATABASE_URL", database.as_str()),
        ("UPSTASH_REDIS_REST_URL", url.as_str()),
        ("UPSTASH_REDIS_REST_TOKEN", owner.redis.token()),
    ];
    all.extend(settings);
    let app = TestApp::with(&all).await;
    (app, redis, owner)
}

#[tokio::test]
async fn while_redis_is_silent_messages_go_on_through_postgres_under_the_same_limits() {
    let (app, redis, owner) = behind_a_proxy(&[]).await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..40).map(|_| ada.discussion())).await;
    for discussion in &discussions[..4] {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    redis.pause();
    let asked = Instant::now();
    let first = ada.send(&discussions[4], "Why?").await;
    eprintln!(
        "the first message after Redis fell silent was answered within {:?}",
        asked.elapsed()
    );
    assert_eq!(
        (first.status.as_u16(), &first.json["quota"]["remaining"]),
        (201, &json!(5)),
        "{}",
        first.json
    );
    let answers = join_all(
        discussions[5..]
            .iter()
            .map(|discussion| ada.send(discussion, "Why?")),
    )
    .await;
    let (answered, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((answered.len(), refused.len()), (5, 30));
    assert!(
        refused
            .iter()
            .all(|refusal| refusal.problem() == (429, "quota_exceeded"))
    );
    // Left alone by now: nobody waits for it.
    let before = redis.requests();
    assert_eq!(
        ada.get("/api/auth/session").await.json["quota"]["remaining"],
        0
    );
    assert_eq!(redis.requests(), before);
    assert_eq!(app.claude.requests().len(), 10);

    redis.resume();
    let resumed = Instant::now();
    let asked_again = async {
        while redis.requests() == before {
            ada.get("/api/auth/session").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked_again)
        .await
        .expect("Redis is asked again within 10 seconds");
    eprintln!(
        "Redis was asked again {:?} after it came back",
        resumed.elapsed()
    );
    assert_eq!(
        ada.send(&discussions[0], "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    app.cron("/api/cron/reconcile").await;
    owner.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn without_redis_bursts_and_money_are_limited_too() {
    let settings = [
        ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9"),
        ("BURST_PER_MINUTE", "5"),
    ];
    let app = TestApp::with(&settings).await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..12).map(|_| ada.discussion())).await;
    let answers = join_all(
        discussions
            .iter()
            .map(|discussion| ada.send(discussion, "Why?")),
    )
    .await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 201).count(),
        5
    );
    assert!(
        answers
            .iter()
            .filter(|answer| answer.status != 201)
            .all(|it| it.problem() == (429, "burst_exceeded"))
    );
    app.advance(time::Duration::minutes(2));
    app.sql("update budgets set limit_microusd = 300 where scope = 'free'")
        .await;
    let dear = ada.send(&discussions[0], "Why?").await;
    assert_eq!(dear.problem(), (402, "spend_limit"), "{}", dear.json);
    app.sql("update budgets set limit_microusd = 100000 where scope = 'free'")
        .await;
    app.sql("update budgets set limit_microusd = 300 where scope = 'month'")
        .await;
    assert_eq!(
        ada.send(&discussions[0], "Why?").await.problem(),
        (503, "budget_spent")
    );
    assert_eq!(app.claude.requests().len(), 5);
    // Other limits are counted in Postgres, and public pages are served.
    let crowd = app.anonymous();
    let attempt = json!({"email": "ada@example.org", "password": "wrong"});
    let answers = join_all((0..15).map(|_| crowd.post("/api/auth/login", attempt.clone()))).await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 401).count(),
        10
    );
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.problem() == (429, "rate_limited"))
            .count(),
        5
    );
    for _ in 0..121 {
        assert_eq!(crowd.get("/api/plans").await.status, 200);
    }
}

#[tokio::test]
async fn without_redis_and_postgres_nothing_is_asked_of_claude() {
    let (app, redis, _owner) = behind_a_proxy(&[]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    redis.pause();
    let url = ("UPSTASH_REDIS_REST_URL", redis.url());
    let down = TestApp::with(&[
        (
            "DATABASE_URL",
            "postgres://nobody@127.0.0.1:9/none?sslmode=disable",
        ),
        (url.0, url.1.as_str()),
    ])
    .await;
    let refused = down
        .bearer(ada.token.as_deref().unwrap())
        .send(&discussion, "Why?")
        .await;
    assert_eq!(
        (refused.problem(), refused.header("retry-after")),
        ((503, "unavailable"), "5")
    );
    assert_eq!(down.claude.requests().len(), 0);
}

#[tokio::test]
async fn a_redis_that_forgot_everything_learns_from_the_ledger_before_anybody_is_admitted() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..30).map(|_| ada.discussion())).await;
    for discussion in &discussions[..6] {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    // One reply is under way while it happens.
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussions[6], "Why?").await;
    while stream.next().await.unwrap().name != "delta" {}
    app.redis_command(&["FLUSHDB"]).await;
    let answers = join_all(
        discussions[7..]
            .iter()
            .map(|discussion| ada.send(discussion, "Why?")),
    )
    .await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 201).count(),
        3
    );
    app.claude.release();
    assert_eq!(stream.rest().await.last().unwrap().name, "done");
    app.cron("/api/cron/reconcile").await;
    app.assert_counters_equal_the_ledger().await;
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 10);

    app.redis_command(&["FLUSHDB"]).await;
    assert_eq!(
        ada.get("/api/auth/session").await.json["quota"]["used"],
        10,
        "an answer without a message, too"
    );
    app.budget("day", 1).await;
    let bob = app.member("bob").await;
    let discussion = bob.discussion().await;
    assert_eq!(
        bob.send(&discussion, "Why?").await.problem(),
        (503, "budget_spent")
    );
}

/// Each step of a message at which a process may die, with what the reply's status is afterwards, whether the message
/// counts, and whether its cost is only reckoned.
const STEPS: [(&str, &str, bool, bool); 6] = [
    ("admitted", "", false, false),
    ("begun", "failed", false, true),
    ("relaying", "failed", false, true),
    ("streamed", "partial", true, true),
    ("ended", "complete", true, false),
    ("settled", "complete", true, false),
];

#[tokio::test]
async fn wherever_a_process_dies_reconciling_ends_what_it_had_begun() {
    for (step, status, counts, estimated) in STEPS {
        let (armed, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let (arm, reach) = (armed.clone(), reached.clone());
        let app = TestApp::adjusted(&[], |config| {
            config.crash_trigger = Some(CrashTrigger::when(move |at| {
                let stops = at == step && arm.load(Ordering::Relaxed);
                if stops {
                    reach.notify_one();
                }
                stops
            }));
        })
        .await;
        let (ada, bob) = (app.member("ada").await, app.member("bob").await);
        let warm = bob.discussion().await;
        assert_eq!(bob.send(&warm, "Warm up.").await.status, 201);
        let discussion = ada.discussion().await;
        // Held until text is saved, where the step comes after that.
        let saved = format!(
            "select count(*) from messages where discussion_id = '{discussion}' and status = 'streaming' and content <> ''"
        );
        if step == "streamed" {
            app.claude.next(Behaviour::Hold { after: 2 });
        }
        armed.store(true, Ordering::Relaxed);
        let stopped = async {
            if step == "streamed" {
                app.eventually(&saved, "1").await;
                app.claude.release();
            }
            reached.notified().await;
        };
        // The producer never goes on from the step: to everybody else its process has died there.
        tokio::select! {
            answer = ada.send(&discussion, "Why?") => panic!("{step} was passed: {answer:?}"),
            () = stopped => {}
        }
        armed.store(false, Ordering::Relaxed);
        // The lease has run out, and so has the time in which an admitted message is written down.
        app.advance(time::Duration::minutes(3));
        let report = app.cron("/api/cron/reconcile").await;
        let again = app.cron("/api/cron/reconcile").await;
        assert_eq!(
            again["replies_ended"], 0,
            "{step}: twice is once: {report} {again}"
        );
        app.assert_counters_equal_the_ledger().await;
        let replies = format!(
            "select coalesce(max(status), '') from messages where role = 'assistant' and discussion_id = '{discussion}'"
        );
        assert_eq!(
            app.value(&replies).await.trim_matches('"'),
            status,
            "{step}: {report}"
        );
        if !status.is_empty() {
            let newest = "select outcome, counted, estimated, cost_microusd > 0 from usage_events order by created_at desc limit 1";
            let expected = format!("{status},{},{},t", letter(counts), letter(estimated));
            assert_eq!(app.value(newest).await, expected, "{step}: {report}");
        }
        assert_eq!(
            ada.get("/api/auth/session").await.json["quota"]["used"],
            json!(u8::from(counts)),
            "{step}"
        );
        assert_eq!(ada.send(&discussion, "Again?").await.status, 201, "{step}");
    }
}

#[tokio::test]
async fn whoever_ends_a_reply_for_dead_does_not_wait_for_the_one_who_ends_it_late() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussion, "Why?").await;
    while stream.next().await.unwrap().name != "delta" {}
    app.sql("update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'").await;
    // Stops the statement that writes the end half-way: what it has locked by then shows in which order it does.
    let holding =
        app.sql("begin; select 1 from subject_days for update; select pg_sleep(2.8); commit");
    let reconciled = async {
        let active = |what: &str| {
            format!("select count(*) from pg_stat_activity where state = 'active' and {what}")
        };
        app.eventually(
            &active("query like 'begin; select 1 from subject_days%'"),
            "1",
        )
        .await;
        app.claude.release();
        app.eventually(
            &active("wait_event_type = 'Lock' and query like '%with ended as%'"),
            "1",
        )
        .await;
        let report = app.cron("/api/cron/reconcile").await;
        assert_eq!(report["replies_ended"], 0, "it is being ended: {report}");
    };
    tokio::pin!(holding);
    tokio::select! {
        () = reconciled => {}
        () = &mut holding => panic!("reconciling waited for a reply's end"),
    }
    holding.await;
    assert_eq!(stream.rest().await.pop().unwrap().name, "done");
    app.assert_counters_equal_the_ledger().await;
}

fn letter(yes: bool) -> &'static str {
    if yes { "t" } else { "f" }
}

#[tokio::test]
async fn a_write_that_redis_could_not_be_told_of_is_told_later() {
    let (app, redis, owner) = behind_a_proxy(&[]).await;
    let ada = app.member("ada").await;
    assert_eq!(ada.get("/api/auth/session").await.status, 200);
    redis.pause();
    assert_eq!(ada.post("/api/auth/logout", Value::Null).await.status, 204);
    assert_eq!(
        ada.get("/api/auth/session").await.problem(),
        (401, "invalid_token")
    );
    assert_eq!(
        app.value("select count(*) from stale_cache_keys").await,
        "0",
        "of its own database"
    );
    assert_eq!(
        owner.value("select count(*) from stale_cache_keys").await,
        "1"
    );
    redis.resume();
    // Another instance, which has not noticed anything.
    let report = owner.cron("/api/cron/reconcile").await;
    assert_eq!(report["stale_values"], 1, "{report}");
    let elsewhere = owner.bearer(ada.token.as_deref().unwrap());
    assert_eq!(
        elsewhere.get("/api/auth/session").await.problem(),
        (401, "invalid_token")
    );
}

#[tokio::test]
async fn a_sign_out_that_postgres_did_not_take_leaves_the_session_live() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let url = app.redis.url().to_owned();
    let down = TestApp::with(&[
        (
            "DATABASE_URL",
            "postgres://nobody@127.0.0.1:9/none?sslmode=disable",
        ),
        ("UPSTASH_REDIS_REST_URL", &url),
        ("UPSTASH_REDIS_REST_TOKEN", app.redis.token()),
    ])
    .await;
    for everywhere in [true, false] {
        // Known by the cache, which the last attempt has emptied.
        app.redis_command(&["DEL", &session_key(&ada.id().await)])
            .await;
        assert_eq!(ada.get("/api/auth/session").await.status, 200);
        let out = down.bearer(ada.token.as_deref().unwrap());
        let out = out
            .post("/api/auth/logout", json!({ "everywhere": everywhere }))
            .await;
        assert_eq!(out.problem(), (503, "unavailable"));
        assert_eq!(
            ada.send(&discussion, "Still here?").await.status,
            201,
            "{everywhere}"
        );
    }
}

#[tokio::test]
async fn a_session_that_is_newer_than_what_the_cache_knows_is_live() {
    let (app, redis, owner) = behind_a_proxy(&[]).await;
    let ada = app.member("ada").await;
    assert_eq!(ada.get("/api/auth/session").await.status, 200);
    redis.pause();
    assert_eq!(
        ada.post("/api/auth/logout", json!({"everywhere": true}))
            .await
            .status,
        204
    );
    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    let again = app.anonymous().post("/api/auth/login", body).await;
    assert_eq!(again.status, 200);
    redis.resume();
    // Another instance, which reads what Redis could not be told is stale.
    let again = owner.bearer(again.json["token"].as_str().unwrap());
    assert_eq!(again.get("/api/auth/session").await.status, 200);
    assert_eq!(again.get("/api/discussions").await.status, 200);
}

#[tokio::test]
async fn without_redis_a_network_that_is_refused_uses_up_no_account() {
    let app = TestApp::with(&[("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9")]).await;
    let crowd = app.anonymous();
    let sign_up =
        |name: &str| json!({"email": format!("{name}@example.org"), "password": "correct horse"});
    for at in 0..10 {
        assert_eq!(
            crowd
                .post("/api/auth/signup", sign_up(&format!("u{at}")))
                .await
                .status,
            201
        );
    }
    for _ in 0..6 {
        assert_eq!(
            crowd
                .post("/api/auth/signup", sign_up("ada"))
                .await
                .problem(),
            (429, "rate_limited")
        );
    }
    assert_eq!(
        app.anonymous()
            .post("/api/auth/signup", sign_up("ada"))
            .await
            .status,
        201
    );
}

fn session_key(user: &str) -> String {
    format!("{{c}}:s:{user}")
}
