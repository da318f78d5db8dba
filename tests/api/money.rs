//! Spending limits, bursts and rate limits.

use claude::Usage;
use futures_util::future::join_all;
use http::Method;

use iconoclash::spending::budgets::{self, Propagation};
use iconoclash_fakes::claude::{Behaviour, Script};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::harness::{Actor, TestApp};

/// The hold of the first message of a new discussion with Socrates, read from the ledger.
async fn hold_of_a_first_message(app: &TestApp, ada: &Actor<'_>) -> i64 {
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussion, "Why?").await;
    stream.first_delta().await;
    let held = app
        .value("select cost_microusd from usage_events where outcome = 'running'")
        .await
        .parse()
        .unwrap();
    app.claude.release();
    stream.rest().await;
    held
}

#[tokio::test]
async fn of_200_messages_with_budget_for_one_exactly_one_is_answered() {
    let app = TestApp::with(&[("QUOTA_FREE", "1000")]).await;
    let users: Vec<Actor> =
        join_all(["ada", "bob", "cleo", "dan"].map(|name| app.member(name))).await;
    hold_of_a_first_message(&app, &users[0]).await;
    let discussions = join_all((0..200).map(|at| {
        let user = &users[at % users.len()];
        async move { (user, user.discussion().await) }
    }))
    .await;
    // The budget has room for exactly one more hold.
    let spent: i64 = app
        .value("select spent_microusd from budget_days")
        .await
        .parse()
        .unwrap();
    let exact = exact_hold(&app, &users[0]).await;
    app.budget("day", spent + exact).await;
    // The reply ends after all others are refused, so that its settled hold makes room for none of them.
    app.claude.always(Behaviour::Hold { after: 0 });
    let answered = AtomicUsize::new(0);
    let sends = discussions.iter().map(|(user, discussion)| async {
        let answer = user.send(discussion, "Why?").await;
        answered.fetch_add(1, Ordering::Relaxed);
        answer
    });
    let release = async {
        while answered.load(Ordering::Relaxed) < 199 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..200 {
            app.claude.release();
        }
    };
    let (answers, ()) = tokio::join!(join_all(sends), release);
    let (answered, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((answered.len(), refused.len()), (1, 199));
    for refusal in refused {
        assert_eq!(refusal.problem(), (503, "budget_spent"), "{}", refusal.json);
        let wait: u64 = refusal.header("retry-after").parse().unwrap();
        assert!(
            (1..=86_400).contains(&wait)
                && refusal.json["reset_at"]
                    .as_str()
                    .unwrap()
                    .ends_with("T00:00:00.000000Z")
        );
        assert!(
            !refusal.json.to_string().contains("microusd"),
            "{}",
            refusal.json
        );
    }
    app.reconcile().await;
    app.assert_counters_equal_the_ledger().await;
}

/// The exact hold of the last prompt that Claude got, at Haiku's prices.
async fn exact_hold(app: &TestApp, _: &Actor<'_>) -> i64 {
    let body = app.claude.requests().last().unwrap().body.clone();
    let text = |value: &Value| value["text"].as_str().unwrap().len();
    let system: usize = body["system"].as_array().unwrap().iter().map(text).sum();
    let turns = body["messages"].as_array().unwrap().iter();
    let turns: usize = turns
        .map(|turn| {
            turn["content"]
                .as_array()
                .unwrap()
                .iter()
                .map(text)
                .sum::<usize>()
        })
        .sum();
    let bytes = i64::try_from(system + turns).unwrap();
    (bytes * 125_000 + 800 * 500_000 + 999_999) / 1_000_000
}

#[tokio::test]
async fn a_user_at_the_spending_limit_gets_the_time_of_its_reset() {
    let app = TestApp::with(&[("QUOTA_FREE", "1000")]).await;
    let (ada, bob) = (app.member("ada").await, app.member("bob").await);
    let discussion = ada.discussion().await;
    let dear = Usage {
        output: 150_000,
        ..Usage::default()
    };
    app.claude
        .next(Script::say("A long answer.").with_usage(dear));
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    assert_eq!(
        app.value("select cost_microusd from usage_events").await,
        "75000"
    );
    app.budget("free", 75_100).await;
    let refused = ada.send(&discussion, "And why that?").await;
    assert_eq!(refused.problem(), (402, "spend_limit"), "{}", refused.json);
    assert!(
        refused.json["reset_at"]
            .as_str()
            .unwrap()
            .ends_with("T00:00:00.000000Z")
    );
    assert_eq!(refused.header("x-ratelimit-remaining"), "999");
    let other = bob.discussion().await;
    assert_eq!(bob.send(&other, "Why?").await.status, 201);
    app.advance(time::Duration::days(1));
    assert_eq!(ada.send(&discussion, "And why that?").await.status, 201);
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn the_months_spending_is_the_sum_of_its_days() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    // Yesterday must be in the same month, whenever this runs.
    app.advance(time::Duration::days(45 - i64::from(app.app.now().day())));
    let month_day = app.app.now().day();
    assert!(month_day > 1);
    app.claude.next(Script::say("Dear.").with_usage(Usage {
        output: 100_000,
        ..Usage::default()
    }));
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    app.advance(time::Duration::days(1));
    app.budget("month", 50_100).await;
    let refused = ada.send(&discussion, "Why?").await;
    assert_eq!(refused.problem(), (503, "budget_spent"), "{}", refused.json);
    assert!(
        refused.json["reset_at"]
            .as_str()
            .unwrap()
            .contains("-01T00:00:00.000000Z"),
        "{}",
        refused.json
    );
    assert_eq!(app.claude.requests().len(), 1);
    app.budget("month", 1_000_000).await;
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn a_hold_is_at_least_the_cost_and_is_replaced_by_it() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    for (characters, said) in [(1, "x"), (2_000, "ü"), (2_000, "漢"), (2_000, "\u{1F9D9}")] {
        let discussion = ada.discussion().await;
        app.claude.next(Behaviour::Hold { after: 1 });
        let mut stream = ada.stream(&discussion, &said.repeat(characters)).await;
        stream.first_delta().await;
        let held: i64 = app
            .value("select cost_microusd from usage_events where outcome = 'running'")
            .await
            .parse()
            .unwrap();
        let exact = exact_hold(&app, &ada).await;
        assert!(held >= exact, "{held} is less than {exact}");
        app.claude.release();
        let done = stream.rest().await.pop().unwrap();
        let cost = done.data["reply"]["usage"]["cost_microusd"]
            .as_i64()
            .unwrap();
        assert!(cost <= exact, "{cost} is more than {exact}");
    }
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn five_messages_may_come_at_once_and_the_sixth_waits() {
    let app = TestApp::with(&[("BURST_PER_MINUTE", "5")]).await;
    let ada = app.member("ada").await;
    let discussions = join_all((0..20).map(|_| ada.discussion())).await;
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
    let refused = answers.iter().find(|answer| answer.status != 201).unwrap();
    assert_eq!(refused.problem(), (429, "burst_exceeded"));
    assert_eq!(
        refused.header("ratelimit-policy"),
        r#""daily";q=10;w=86400, "burst";q=5;w=60"#
    );
    let wait: i64 = refused.header("retry-after").parse().unwrap();
    assert_eq!(
        refused.header("ratelimit"),
        format!(r#""burst";r=0;t={wait}"#)
    );
    assert!((1..=12).contains(&wait), "{wait}");
    let detail = refused.json["detail"].as_str().unwrap();
    assert!(detail.contains("second"), "{detail}");
    app.advance(time::Duration::seconds(wait));
    let waited = ada.send(&discussions[0], "Why?").await;
    assert_eq!(waited.status, 201, "{}", waited.json);
    assert_eq!(
        ada.send(&discussions[1], "Why?").await.problem(),
        (429, "burst_exceeded")
    );
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn midnight_does_not_bring_a_second_burst() {
    let app = TestApp::with(&[("BURST_PER_MINUTE", "5")]).await;
    let ada = app.member("ada").await;
    let midnight = app
        .app
        .now()
        .to_offset(time::UtcOffset::UTC)
        .replace_time(time::Time::MIDNIGHT)
        + time::Duration::DAY;
    app.advance(midnight - app.app.now() - time::Duration::seconds(3));
    let discussion = ada.discussion().await;
    for _ in 0..5 {
        assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    }
    app.advance(time::Duration::seconds(4));
    let refused = ada.send(&discussion, "Why?").await;
    assert_eq!(
        refused.problem(),
        (429, "burst_exceeded"),
        "{}",
        refused.json
    );
    app.redis_command(&["FLUSHDB"]).await;
    let refused = ada.send(&discussion, "Why?").await;
    assert_eq!(
        refused.json["code"], "burst_exceeded",
        "after a loss of Redis, too"
    );
}

#[tokio::test]
async fn failed_sign_ins_are_counted_by_network_and_by_account() {
    let app = TestApp::start().await;
    app.member("ada").await;
    let wrong = json!({"email": "Ada@example.org", "password": "wrong"});
    let attacker = app.anonymous();
    for left in (0..10).rev() {
        let answer = attacker.post("/api/auth/login", wrong.clone()).await;
        assert_eq!(answer.problem(), (401, "invalid_credentials"));
        assert_eq!(
            answer.header("ratelimit-policy"),
            r#""signin-account";q=10;w=600"#
        );
        assert!(
            answer
                .header("ratelimit")
                .starts_with(&format!(r#""signin-account";r={left};t="#))
        );
    }
    // From another network the account is not locked; nor is another account.
    let stranger = app.anonymous();
    let elsewhere = stranger.post("/api/auth/login", wrong.clone()).await;
    assert_eq!(elsewhere.problem(), (401, "invalid_credentials"));
    let refused = attacker.post("/api/auth/login", wrong).await;
    assert_eq!(refused.problem(), (429, "rate_limited"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!(
        (1..=60).contains(&wait) && refused.header("x-ratelimit-remaining") == "0",
        "{wait}"
    );
    assert!(
        refused.json["detail"]
            .as_str()
            .unwrap()
            .contains("Try again in"),
        "{}",
        refused.json
    );
    let other = json!({"email": "bob@example.org", "password": "wrong"});
    assert_eq!(
        attacker.post("/api/auth/login", other).await.problem(),
        (401, "invalid_credentials")
    );
    // The network runs out after 30 attempts on any accounts, plus the few that time returns.
    let mut attempts = 11;
    loop {
        let body = json!({"email": format!("user{attempts}@example.org"), "password": "wrong"});
        attempts += 1;
        match attacker.post("/api/auth/login", body).await.problem() {
            (401, _) => assert!(attempts < 60, "{attempts} attempts"),
            refused => break assert_eq!(refused, (429, "rate_limited")),
        }
    }
    assert!(attempts > 30, "{attempts} attempts");
    app.advance(time::Duration::minutes(1));
    let right = json!({"email": "ada@example.org", "password": "correct horse"});
    assert_eq!(
        app.anonymous().post("/api/auth/login", right).await.status,
        200
    );
}

#[tokio::test]
async fn every_other_limit_refuses_with_its_wait() {
    let app = TestApp::start().await;
    let crowd = app.anonymous();
    for _ in 0..20 {
        assert_eq!(crowd.post("/api/auth/guest", Value::Null).await.status, 201);
    }
    assert_eq!(
        crowd.post("/api/auth/guest", Value::Null).await.problem(),
        (429, "rate_limited")
    );
    for at in 0..10 {
        let body = json!({"email": format!("u{at}@example.org"), "password": "correct horse"});
        assert_eq!(crowd.post("/api/auth/signup", body).await.status, 201);
    }
    let body = json!({"email": "u10@example.org", "password": "correct horse"});
    assert_eq!(
        crowd.post("/api/auth/signup", body).await.problem(),
        (429, "rate_limited")
    );
    for _ in 0..120 {
        let plans = crowd.get("/api/plans").await;
        assert_eq!(
            (plans.status.as_u16(), plans.header("ratelimit")),
            (200, ""),
            "a CDN keeps this for everybody"
        );
    }
    // Two a second return over time, however slow the machine is.
    let mut refused = crowd.get("/api/plans").await;
    for _ in 0..100 {
        if refused.status != 200 {
            break;
        }
        refused = crowd.get("/api/plans").await;
    }
    assert_eq!(
        (refused.problem(), refused.header("cache-control")),
        ((429, "rate_limited"), "private, no-store")
    );
    let ada = app.member("ada").await;
    for _ in 0..60 {
        ada.discussion().await;
    }
    let again = ada
        .request(
            Method::POST,
            "/api/discussions",
            &[],
            json!({"icons": ["socrates"]}),
        )
        .await;
    assert_eq!(again.problem(), (429, "rate_limited"));
    assert_eq!(
        app.redis_command(&["KEYS", "*10.0*"]).await,
        json!([]),
        "no address is stored"
    );
}

#[tokio::test]
async fn the_network_comes_from_the_platform_and_from_cloudflare_only_with_our_secret() {
    let app = TestApp::with(&[("TRUSTED_PROXY_SECRET", "a-secret-of-ours")]).await;
    let crowd = app.anonymous();
    let guest = async |headers: &[(&str, &str)]| {
        crowd
            .request(Method::POST, "/api/auth/guest", headers, Value::Null)
            .await
            .status
            .as_u16()
    };
    for _ in 0..20 {
        assert_eq!(guest(&[]).await, 201);
    }
    // Invented headers do not change the network.
    for forged in [
        "x-forwarded-for",
        "x-real-ip",
        "cf-connecting-ip",
        "forwarded",
    ] {
        assert_eq!(guest(&[(forged, "192.0.2.77")]).await, 429, "{forged}");
    }
    assert_eq!(
        guest(&[
            ("cf-connecting-ip", "192.0.2.77"),
            ("x-proxy-secret", "guessed")
        ])
        .await,
        429
    );
    assert_eq!(
        guest(&[
            ("cf-connecting-ip", "192.0.2.77"),
            ("x-proxy-secret", "a-secret-of-ours")
        ])
        .await,
        201
    );
}

#[tokio::test]
async fn a_spending_limit_can_be_set_without_redis() {
    for (url, said) in [
        ("", "UPSTASH_REDIS_REST_URL is not set"),
        ("http://127.0.0.1:9", "could not be reached"),
    ] {
        let app = TestApp::with(&[("UPSTASH_REDIS_REST_URL", url)]).await;
        let followed = budgets::set(&app.app, "pro", 7).await.unwrap();
        let Propagation::OnCacheExpiry(cause) = followed else {
            panic!("{followed:?}")
        };
        assert!(cause.to_string().contains(said), "{cause}");
        assert_eq!(
            app.value("select limit_microusd from budgets where scope = 'pro'")
                .await,
            "7"
        );
    }
}
