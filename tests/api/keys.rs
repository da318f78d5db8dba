//! Several keys of Claude: who is asked, who is not, and what the ledger says of it.

use axum::http::Method;
use claude::Deadlines;
use futures_util::future::join_all;

use iconoclash::{
    api_keys::store::{self, NewKey},
    spending::reconcile,
};
use iconoclash_fakes::claude::{Behaviour, Failure, Only, Script};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::harness::{Actor, Answer, TestApp};
use iconoclash_fakes::test_services::needed;

/// A and B in one organisation, C in another.
const THREE: &str = "a@acme=sk-a,b@acme=sk-b,c@umbrella=sk-c";

pub(crate) async fn with_keys(
    keys: &str,
    settings: &[(&str, &str)],
    deadlines: Deadlines,
) -> TestApp {
    let mut all = vec![("ANTHROPIC_API_KEYS", keys), ("QUOTA_FREE", "100000")];
    all.extend_from_slice(settings);
    let app = TestApp::adjusted(&all, |config| {
        config.claude.as_mut().unwrap().deadlines = deadlines
    })
    .await;
    app.claude
        .accept(["sk-a", "sk-b", "sk-c", "sk-d"].map(str::to_owned).to_vec());
    app.claude.belongs("sk-a", "acme");
    app.claude.belongs("sk-b", "acme");
    app.sql("update budgets set limit_microusd = 1000000000")
        .await;
    app
}

/// Another instance of the same deployment.
async fn sibling(of: &TestApp, keys: &str, more: &[(&str, &str)]) -> TestApp {
    let database = format!("{}/{}", needed("ICONOCLASH_TEST_PGBOUNCER"), of.database);
    let mut settings = vec![
        ("DATABASE_URL", database.as_str()),
        ("UPSTASH_REDIS_REST_URL", of.redis.url()),
        ("UPSTASH_REDIS_REST_TOKEN", of.redis.token()),
        ("ANTHROPIC_API_KEYS", keys),
        ("QUOTA_FREE", "100000"),
    ];
    let url = of.claude.url();
    settings.push(("ANTHROPIC_BASE_URL", &url));
    settings.extend_from_slice(more);
    TestApp::with(&settings).await
}

async fn three() -> TestApp {
    with_keys(THREE, &[], Deadlines::default()).await
}

fn asked(app: &TestApp) -> Vec<String> {
    app.claude
        .requests()
        .iter()
        .filter_map(|request| request.key().map(str::to_owned))
        .collect()
}

async fn members(app: &TestApp, count: usize) -> Vec<(Actor<'_>, String)> {
    let ada = app.member("ada").await;
    join_all((0..count).map(async |_| (ada.clone(), ada.discussion().await))).await
}

#[tokio::test]
async fn a_conversation_is_answered_by_one_key_and_conversations_by_all() {
    let app = three().await;
    let talks = members(&app, 12).await;
    for round in 0..2 {
        for (ada, discussion) in &talks {
            let reply = ada.send(discussion, "Why?").await.json["reply"].clone();
            let read = reply["usage"]["cache_read_tokens"].as_i64().unwrap();
            assert!(
                round == 0 || read > 0,
                "the prompt is in the cache: {reply}"
            );
        }
    }
    let keys = asked(&app);
    assert_eq!(
        keys[..12],
        keys[12..],
        "the second message goes where the first went"
    );
    let mut used = keys.clone();
    used.sort();
    used.dedup();
    assert!(used.len() > 1, "{used:?}");
}

#[tokio::test]
async fn a_limited_organisation_is_left_alone_by_every_instance_and_nobody_goes_without() {
    let app = three().await;
    let talks = members(&app, 16).await;
    let limited = Failure::RateLimited {
        retry_after_secs: 60,
    };
    app.claude.always_for(Only::organisation("acme"), limited);
    let send = async || {
        for answer in join_all(
            talks
                .iter()
                .map(|(ada, discussion)| ada.send(discussion, "Why?")),
        )
        .await
        {
            assert_eq!(answer.status, 201, "{}", answer.json);
        }
    };
    // Whoever meets the limit is answered by the other organisation.
    send().await;
    app.background.idle().await;
    let after_learning = asked(&app).len();
    shows(&app, "a", "cooling down until").await;
    for _ in 0..4 {
        send().await;
    }
    assert!(
        asked(&app)[after_learning..]
            .iter()
            .all(|key| key == "sk-c"),
        "before its time"
    );

    // Another instance learns it from Redis before it asks anybody.
    let other = sibling(&app, THREE, &[]).await;
    let (ada, _) = &talks[0];
    let actor = other.bearer(ada.token.as_deref().unwrap());
    shows(&other, "a", "cooling down until").await;
    let before = asked(&app).len();
    for (_, discussion) in &talks {
        assert_eq!(actor.send(discussion, "Why?").await.status, 201);
    }
    assert!(asked(&app)[before..].iter().all(|key| key == "sk-c"));

    app.claude.clear();
    app.advance(time::Duration::seconds(61));
    other.advance(time::Duration::seconds(61));
    let before = asked(&app).len();
    send().await;
    assert!(
        asked(&app)[before..].iter().any(|key| key != "sk-c"),
        "when its time has come"
    );
    assert_eq!(
        app.value("select count(*) from usage_events where outcome <> 'complete'")
            .await,
        "0"
    );
}

#[tokio::test]
async fn when_every_key_is_limited_the_answer_says_until_when_and_takes_nothing() {
    let app = three().await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    app.claude.always_for(
        Only::organisation("acme"),
        Failure::RateLimited {
            retry_after_secs: 90,
        },
    );
    app.claude.always_for(
        Only::key("sk-c"),
        Failure::RateLimited {
            retry_after_secs: 40,
        },
    );
    for _ in 0..2 {
        let refused = ada.send(&discussion, "Why?").await;
        assert_eq!(
            (refused.problem(), refused.header("retry-after")),
            ((503, "unavailable"), "40")
        );
    }
    assert_eq!(
        asked(&app).len(),
        2,
        "each organisation once, and nobody the second time"
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 0);
    app.claude.clear();
    app.advance(time::Duration::seconds(40));
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    assert_eq!(asked(&app)[2..], ["sk-c"]);
}

#[tokio::test]
async fn without_redis_what_is_left_alone_is_left_alone_by_this_process() {
    let nowhere = [
        ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9"),
        ("UPSTASH_REDIS_REST_TOKEN", "t"),
    ];
    let app = with_keys(THREE, &nowhere, Deadlines::default()).await;
    let talks = members(&app, 12).await;
    app.claude.always_for(
        Only::organisation("acme"),
        Failure::RateLimited {
            retry_after_secs: 60,
        },
    );
    for _ in 0..2 {
        for (ada, discussion) in &talks {
            assert_eq!(ada.send(discussion, "Why?").await.status, 201);
        }
    }
    let keys = asked(&app);
    assert_eq!(
        keys.iter().filter(|key| *key != "sk-c").count(),
        1,
        "{keys:?}"
    );
    app.advance(time::Duration::seconds(60));
    app.claude.clear();
    for (ada, discussion) in &talks {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    assert!(asked(&app)[keys.len()..].iter().any(|key| key != "sk-c"));
}

#[tokio::test]
async fn where_the_providers_model_is_overloaded_a_cheaper_one_answers_and_is_what_is_paid() {
    let app = with_keys(THREE, &[], Deadlines::default()).await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    app.sql("update users set plan = 'pro'").await;
    app.claude
        .always_for(Only::model("claude-sonnet-5-5"), Failure::Overloaded);
    let answer = ada.send(&discussion, "Why?").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json["reply"]["model"]),
        (201, &json!("claude-haiku-5-5"))
    );
    assert_eq!(
        app.value("select model, outcome from usage_events").await,
        "claude-haiku-5-5,complete"
    );
    assert_eq!(
        app.value("select model from messages where role = 'assistant'")
            .await,
        "claude-haiku-5-5"
    );
    let models = || -> Vec<Value> {
        app.claude
            .requests()
            .iter()
            .map(|request| request.body["model"].clone())
            .collect()
    };
    assert_eq!(
        models(),
        ["claude-sonnet-5-5", "claude-haiku-5-5"],
        "no other key is asked for the same model"
    );
    let stream = ada.stream(&discussion, "Why?").await.rest().await;
    assert_eq!(stream[0].data["model"], "claude-haiku-5-5");
    assert_eq!(models().len(), 3, "for a while the other model comes first");
    settled(&app).await;
}

#[tokio::test]
async fn a_refusal_is_a_complete_reply_that_says_so_and_is_not_asked_again() {
    let app = three().await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    app.claude.always(Behaviour::Refusal);
    let answer = ada.send(&discussion, "Why?").await;
    let reply = &answer.json["reply"];
    assert_eq!(
        (&reply["status"], &reply["stop_reason"]),
        (&json!("complete"), &json!("refusal"))
    );
    let kept = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(
        (
            &kept["data"][0]["stop_reason"],
            &kept["data"][1]["stop_reason"]
        ),
        (&json!("refusal"), &Value::Null)
    );
    assert_eq!(asked(&app).len(), 1);
}

#[tokio::test]
async fn an_organisation_at_its_own_limit_is_found_out_by_the_answer_of_another() {
    let app = three().await;
    let talks = members(&app, 16).await;
    app.claude
        .always_for(Only::organisation("acme"), Failure::OwnSpendLimit);
    for (ada, discussion) in &talks {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    assert_eq!(asked(&app).iter().filter(|key| *key != "sk-c").count(), 1);
    // A broken request is refused by both, and nobody is to blame.
    app.advance(time::Duration::minutes(10));
    app.claude.clear();
    app.claude.always(Failure::Invalid);
    let before = asked(&app).len();
    let (ada, discussion) = &talks[0];
    assert_eq!(
        ada.send(discussion, "Why?").await.problem(),
        (503, "unavailable")
    );
    assert_eq!(asked(&app).len() - before, 2);
    app.claude.clear();
    for (ada, discussion) in &talks {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    assert!(asked(&app)[before + 2..].iter().any(|key| key != "sk-c"));
}

#[tokio::test]
async fn the_provider_says_whether_the_same_key_may_be_asked_again() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    for (script, calls, status) in [
        (Script::from(Failure::Internal), 2, 201),
        (
            Script::from(Failure::Internal).heading("x-should-retry", "false"),
            1,
            503,
        ),
        (
            Script::from(Failure::Internal).heading("retry-after-ms", "500"),
            1,
            503,
        ),
        (Script::from(Failure::Invalid), 1, 503),
        (
            Script::from(Failure::Invalid).heading("x-should-retry", "true"),
            2,
            201,
        ),
        (
            Script::from(Failure::TooLarge).heading("x-should-retry", "true"),
            2,
            201,
        ),
        (Behaviour::Drop.into(), 2, 201),
    ] {
        let before = asked(&app).len();
        app.claude.next(script.clone());
        assert_eq!(
            ada.send(&discussion, "Why?").await.status,
            status,
            "{script:?}"
        );
        assert_eq!(asked(&app).len() - before, calls, "{script:?}");
        app.advance(time::Duration::seconds(15));
    }
}

#[tokio::test]
async fn a_key_that_does_not_answer_leaves_time_for_one_that_does() {
    let hasty = Deadlines {
        first_event: Duration::from_secs(2),
        ..Deadlines::default()
    };
    let app = with_keys(THREE, &[], hasty).await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    app.claude.next(Behaviour::Hang);
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    app.claude.wait_for_cancelled(1).await;
    app.claude.always(Behaviour::Hang);
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (503, "unavailable")
    );
    settled(&app).await;
}

/// Waits, within a bound, until an instance knows this of a key; a Redis on a busy machine may miss a call or two.
async fn shows(app: &TestApp, key: &str, health: &str) {
    let mut said = Value::Null;
    for _ in 0..200 {
        said = app.anonymous().health().await.json["claude_keys"][key].clone();
        if app.app.claude().unwrap().untold().is_empty()
            && said.as_str().unwrap().starts_with(health)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{key}: {said} instead of {health}");
}

/// No hold is open, and what is counted is what the ledger says.
pub(crate) async fn settled(app: &TestApp) {
    app.background.idle().await;
    // Of a reply that broke off, or never came, nobody but us says what it cost.
    let unknown = "select count(*) from usage_events \
                   where outcome = 'running' or (estimated and outcome not in ('partial', 'failed'))";
    assert_eq!(app.value(unknown).await, "0");
    app.assert_counters_equal_the_ledger().await;
}

fn key(label: &str, organisation: Option<&str>) -> NewKey {
    let secret = SecretString::from(format!("sk-{label}"));
    NewKey {
        label: label.to_owned(),
        organisation: organisation.map(str::to_owned),
        weight: 1,
        secret,
    }
}

#[tokio::test]
async fn a_rotation_under_fifty_senders_fails_nobody() {
    let app = with_keys("a@acme=sk-a", &[], Deadlines::default()).await;
    let talks = members(&app, 50).await;
    let over = AtomicBool::new(false);
    let send = async || {
        let talk = async |(ada, discussion): &(Actor<'_>, String)| loop {
            let answer = ada.send(discussion, "Why?").await;
            assert_eq!(answer.status, 201, "{}", answer.json);
            if over.load(Ordering::Relaxed) {
                return;
            }
        };
        join_all(talks.iter().map(talk)).await;
    };
    let seen = async |key: &str| {
        for count in 1.. {
            if app
                .claude
                .wait_for_requests(count)
                .await
                .iter()
                .any(|request| request.key() == Some(key))
            {
                return;
            }
        }
    };
    let soon = || app.advance(time::Duration::seconds(50));
    let rotate = async {
        seen("sk-a").await;
        store::add(&app.app, &key("b", None)).await.unwrap();
        soon();
        seen("sk-b").await;
        store::add(&app.app, &key("c", None)).await.unwrap();
        store::drain(&app.app, "b").await.unwrap();
        soon();
        seen("sk-c").await;
        store::revoke(&app.app, "b").await.unwrap();
        soon();
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(send(), rotate);
    send().await;
    let keys = asked(&app);
    assert!(
        keys[keys.len() - 50..].iter().all(|key| key != "sk-b"),
        "a revoked key gets nothing"
    );
    assert_eq!(
        app.value("select count(*) from usage_events where outcome <> 'complete'")
            .await,
        "0"
    );
    // With fifty at once a Redis on a busy machine may miss a settlement, which the cron then makes.
    app.background.idle().await;
    reconcile::run(&app.app).await.unwrap();
    settled(&app).await;
}

#[tokio::test]
async fn a_draining_or_revoked_key_ends_what_it_began() {
    let app = with_keys("", &[], Deadlines::default()).await;
    let (ada, discussion) = members(&app, 1).await.remove(0);
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (503, "unavailable"),
        "there is no key"
    );
    store::add(&app.app, &key("b", None)).await.unwrap();
    app.advance(time::Duration::seconds(60));
    app.claude
        .next(Script::from(Behaviour::Hold { after: 1 }).saying("One. Two. Three."));
    let mut stream = ada.stream(&discussion, "Why?").await;
    while stream.next().await.unwrap().name != "delta" {}
    store::add(&app.app, &key("c", None)).await.unwrap();
    store::drain(&app.app, "b").await.unwrap();
    app.advance(time::Duration::seconds(50));
    let elsewhere = ada.discussion().await;
    assert_eq!(ada.send(&elsewhere, "Why?").await.status, 201);
    store::revoke(&app.app, "b").await.unwrap();
    app.claude.release();
    assert_eq!(
        stream.rest().await.last().unwrap().data["reply"]["content"],
        "One. Two. Three."
    );
    assert_eq!(asked(&app), ["sk-b", "sk-c"]);
    let ledger = "select string_agg(key_label || ' ' || outcome, ', ' order by created_at) from usage_events";
    assert_eq!(
        app.value(ledger).await,
        "\"none failed, b complete, c complete\""
    );
}

#[tokio::test]
async fn with_the_database_down_the_last_known_keys_are_known_still() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    store::add(&app.app, &key("b", None)).await.unwrap();
    let health = app.anonymous().health().await;
    assert_eq!(health.json["claude_keys"], json!({"a": "ok", "b": "ok"}));
    app.sql("alter table claude_keys rename to claude_keys_away")
        .await;
    app.advance(time::Duration::seconds(90));
    assert_eq!(
        app.anonymous().health().await.json["claude_keys"],
        json!({"a": "ok", "b": "ok"})
    );
}

#[tokio::test]
async fn operators_see_how_keys_fare_and_never_a_secret() {
    let app = with_keys("a@acme=sk-a", &[], Deadlines::default()).await;
    let secret = "sk-ant-api03-0123456789-WXYZ";
    let long = NewKey {
        secret: SecretString::from(secret),
        ..key("long", Some("acme"))
    };
    store::add(&app.app, &long).await.unwrap();
    let refused = store::add(&app.app, &long).await.unwrap_err();
    assert_eq!(refused.problem().code, "label_taken");
    for (wrong, field) in [
        (
            NewKey {
                label: "no spaces".to_owned(),
                ..long.clone()
            },
            "label",
        ),
        (
            NewKey {
                label: "x".to_owned(),
                organisation: Some(String::new()),
                ..long.clone()
            },
            "organisation",
        ),
        (
            NewKey {
                label: "x".to_owned(),
                weight: 0,
                ..long.clone()
            },
            "weight",
        ),
        (
            NewKey {
                label: "x".to_owned(),
                secret: SecretString::from(" two words "),
                ..long.clone()
            },
            "key",
        ),
    ] {
        let refused = store::add(&app.app, &wrong).await.unwrap_err();
        assert!(
            refused.problem().errors.contains_key(field),
            "{field}: {refused:?}"
        );
    }
    assert!(
        store::test(&app.app, "long").await.unwrap().is_err(),
        "the provider does not know it"
    );
    app.claude
        .accept(vec!["sk-a".to_owned(), secret.to_owned()]);
    app.claude.always_for(Only::key(secret), Failure::Billing);
    let talks = members(&app, 16).await;
    for (ada, discussion) in &talks {
        assert_eq!(ada.send(discussion, "Why?").await.status, 201);
    }
    app.advance(time::Duration::seconds(20));
    assert_eq!(app.anonymous().health().await.status, 200);
    let listed = store::list(&app.app).await.unwrap();
    let [long] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (long.hint.as_str(), long.state.as_str(), long.opens),
        ("WXYZ", "active", true)
    );
    assert!(
        long.last_error
            .as_deref()
            .unwrap()
            .contains("402 billing_error"),
        "{long:?}"
    );
    assert!(
        long.cooling_until.is_some() && long.last_ok_at.is_none(),
        "{long:?}"
    );
    assert!(!format!("{listed:?}").contains("0123456789"));
    assert_eq!(
        app.value("select count(*) from claude_keys where sealed::text like '%sk-ant%'")
            .await,
        "0"
    );

    // It is paid for, and tested: the cooldown is over for all instances.
    app.claude.clear();
    assert!(store::test(&app.app, "long").await.unwrap().is_ok());
    app.advance(time::Duration::seconds(11));
    shows(&app, "long", "ok").await;
    assert!(store::list(&app.app).await.unwrap()[0].last_ok_at.is_some());
    assert!(store::drain(&app.app, "nobody").await.is_err());
    store::revoke(&app.app, "long").await.unwrap();
    assert_eq!(
        app.value("select state, sealed is null from claude_keys")
            .await,
        "revoked,t"
    );
    store::add(&app.app, &key("long", None))
        .await
        .expect("the label of a revoked key is free");
}

#[tokio::test]
async fn the_key_of_the_keys_is_rotated_without_one_being_lost() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    store::add(&app.app, &key("b", None)).await.unwrap();
    let (old, new) = (
        "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
    );
    let both = sibling(
        &app,
        "a=sk-a",
        &[("CREDENTIALS_KEY", &format!("{new},{old}"))],
    )
    .await;
    let only_new = sibling(&app, "a=sk-a", &[("CREDENTIALS_KEY", new)]).await;
    let unreadable = store::reseal(&only_new.app).await.unwrap().unreadable;
    assert_eq!(unreadable, ["b"]);
    assert_eq!(
        only_new.anonymous().health().await.json["claude_keys"],
        json!({"a": "ok"})
    );
    assert_eq!(
        both.anonymous().health().await.json["claude_keys"],
        json!({"a": "ok", "b": "ok"})
    );
    let resealed = store::reseal(&both.app).await.unwrap();
    assert_eq!((resealed.changed, resealed.current), (1, 0));
    assert_eq!(store::reseal(&both.app).await.unwrap().current, 1);
    only_new.advance(time::Duration::seconds(60));
    assert_eq!(
        only_new.anonymous().health().await.json["claude_keys"],
        json!({"a": "ok", "b": "ok"})
    );
}

impl Actor<'_> {
    async fn health(&self) -> Answer {
        let secret = [("authorization", "Bearer a-cron-secret-of-32-characters!!")];
        self.request(Method::GET, "/api/health?deep=1", &secret, Value::Null)
            .await
    }
}
