//! Several Claude keys: which key gets a message, which key gets none, and for how long.

use axum::http::Method;
use claude::Deadlines;
use futures_util::future::join_all;
use iconoclash_fakes::{
    claude::{Behaviour, Failure, Only, Script},
    test_services::needed,
};
use serde_json::Value;
use std::time::Duration;

use crate::harness::{Actor, Answer, TestApp};

/// A and B in one organisation, C in another.
const THREE_KEYS: &str = "a@acme=sk-a,b@acme=sk-b,c@umbrella=sk-c";

/// A discussion and its owner.
pub(crate) struct Conversation<'a> {
    pub(crate) owner: Actor<'a>,
    pub(crate) discussion: String,
}

impl Conversation<'_> {
    pub(crate) async fn send(&self) -> Answer {
        self.owner.send(&self.discussion, "Why?").await
    }

    pub(crate) async fn send_successfully(&self) -> Answer {
        let answer = self.send().await;
        assert_eq!(answer.status, 201, "{}", answer.json);
        answer
    }
}

/// An app with these keys and practically no limits.
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
        .accept_keys(["sk-a", "sk-b", "sk-c", "sk-d"].map(str::to_owned).to_vec());
    app.claude.set_organisation("sk-a", "acme");
    app.claude.set_organisation("sk-b", "acme");
    app.sql("update budgets set limit_microusd = 1000000000")
        .await;
    app
}

async fn with_three_keys() -> TestApp {
    with_keys(THREE_KEYS, &[], Deadlines::default()).await
}

/// Another instance of the same deployment.
pub(crate) async fn second_instance(
    first: &TestApp,
    keys: &str,
    more_settings: &[(&str, &str)],
) -> TestApp {
    let bouncer = needed("ICONOCLASH_TEST_PGBOUNCER");
    let database = format!("{bouncer}/{}", first.database);
    let claude = first.claude.url();

    let mut settings = vec![
        ("DATABASE_URL", database.as_str()),
        ("UPSTASH_REDIS_REST_URL", first.redis.url()),
        ("UPSTASH_REDIS_REST_TOKEN", first.redis.token()),
        ("ANTHROPIC_API_KEYS", keys),
        ("ANTHROPIC_BASE_URL", &claude),
        ("QUOTA_FREE", "100000"),
    ];
    settings.extend_from_slice(more_settings);
    TestApp::with(&settings).await
}

/// The keys of all requests to Claude so far.
pub(crate) fn requested_keys(app: &TestApp) -> Vec<String> {
    let requests = app.claude.requests();
    let keys = requests.iter().filter_map(|request| request.key());
    keys.map(str::to_owned).collect()
}

fn requested_models(app: &TestApp) -> Vec<Value> {
    let requests = app.claude.requests();
    let models = requests.iter().map(|request| request.body["model"].clone());
    models.collect()
}

/// New discussions of one member.
pub(crate) async fn conversations(app: &TestApp, count: usize) -> Vec<Conversation<'_>> {
    let ada = app.member("ada").await;

    let conversation = async |_| Conversation {
        owner: ada.clone(),
        discussion: ada.discussion().await,
    };
    join_all((0..count).map(conversation)).await
}

pub(crate) async fn conversation(app: &TestApp) -> Conversation<'_> {
    conversations(app, 1).await.remove(0)
}

/// Sends one message in each conversation at the same time. All must succeed.
pub(crate) async fn send_in_all(conversations: &[Conversation<'_>]) {
    join_all(conversations.iter().map(Conversation::send_successfully)).await;
}

/// Waits until an instance reports this health of a key. A busy machine may delay Redis by a call or two.
pub(crate) async fn eventually_healthy_as(app: &TestApp, key: &str, expected: &str) {
    let mut health = Value::Null;

    for _ in 0..200 {
        health = app.anonymous().health().await.json["claude_keys"][key].clone();
        let is_published = app.app.claude().unwrap().unpublished().is_empty();
        if is_published && health.as_str().unwrap().starts_with(expected) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{key} is {health} instead of {expected}");
}

/// Asserts that no hold is open and that the counters equal the ledger.
pub(crate) async fn assert_settled(app: &TestApp) {
    app.background.idle().await;

    // Only a reply that broke off, or never came, may have an estimated cost.
    let unsettled = "select count(*) from usage_events where outcome = 'running' \
                     or (estimated and outcome not in ('partial', 'failed'))";
    assert_eq!(app.value(unsettled).await, "0");
    app.assert_counters_equal_the_ledger().await;
}

pub(crate) async fn assert_every_reply_is_complete(app: &TestApp) {
    let incomplete = "select count(*) from usage_events where outcome <> 'complete'";
    assert_eq!(app.value(incomplete).await, "0");
}

impl Actor<'_> {
    pub(crate) async fn health(&self) -> Answer {
        let secret = [("authorization", "Bearer a-cron-secret-of-32-characters!!")];
        self.request(Method::GET, "/api/health?deep=1", &secret, Value::Null)
            .await
    }
}

#[tokio::test]
async fn a_conversation_keeps_its_key_and_conversations_use_several_keys() {
    let app = with_three_keys().await;
    let conversations = conversations(&app, 12).await;

    for round in 0..2 {
        for conversation in &conversations {
            let reply = conversation.send().await.json["reply"].clone();
            let cached_tokens = reply["usage"]["cache_read_tokens"].as_i64().unwrap();
            assert!(round == 0 || cached_tokens > 0, "not cached: {reply}");
        }
    }

    let keys = requested_keys(&app);
    let (first_round, second_round) = keys.split_at(12);
    assert_eq!(first_round, second_round);

    let mut distinct = keys.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 1, "{distinct:?}");
}

#[tokio::test]
async fn every_instance_avoids_a_limited_organisation_and_every_message_is_answered() {
    let app = with_three_keys().await;
    let conversations = conversations(&app, 16).await;
    let limited = Failure::RateLimited {
        retry_after_secs: 60,
    };
    app.claude.always_for(Only::organisation("acme"), limited);

    // A message that meets the limit is answered by the other organisation.
    send_in_all(&conversations).await;
    app.background.idle().await;
    let requests_before = requested_keys(&app).len();
    eventually_healthy_as(&app, "a", "cooling down until").await;
    for _ in 0..4 {
        send_in_all(&conversations).await;
    }
    let keys = requested_keys(&app).split_off(requests_before);
    assert!(keys.iter().all(|key| key == "sk-c"), "{keys:?}");

    // Another instance learns of the cooldown from Redis before its first request.
    let other = second_instance(&app, THREE_KEYS, &[]).await;
    let token = conversations[0].owner.token.as_deref().unwrap();
    let ada = other.bearer(token);
    eventually_healthy_as(&other, "a", "cooling down until").await;
    let requests_before = requested_keys(&app).len();
    for conversation in &conversations {
        assert_eq!(ada.send(&conversation.discussion, "Why?").await.status, 201);
    }
    let keys = requested_keys(&app).split_off(requests_before);
    assert!(keys.iter().all(|key| key == "sk-c"), "{keys:?}");

    // The organisation is used again when the cooldown has ended.
    app.claude.clear();
    app.advance(time::Duration::seconds(61));
    other.advance(time::Duration::seconds(61));
    let requests_before = requested_keys(&app).len();
    send_in_all(&conversations).await;
    let keys = requested_keys(&app).split_off(requests_before);
    assert!(keys.iter().any(|key| key != "sk-c"), "{keys:?}");
    assert_every_reply_is_complete(&app).await;
}

#[tokio::test]
async fn with_every_key_limited_the_answer_has_a_retry_after_and_costs_no_message() {
    let app = with_three_keys().await;
    let conversation = conversation(&app).await;
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
        let refused = conversation.send().await;
        assert_eq!(refused.problem(), (503, "unavailable"));
        assert_eq!(refused.header("retry-after"), "40");
    }
    let calls = requested_keys(&app).len();
    assert_eq!(
        calls, 2,
        "one per organisation, none for the second message"
    );
    let session = conversation.owner.get("/api/auth/session").await.json;
    assert_eq!(session["quota"]["used"], 0);

    app.claude.clear();
    app.advance(time::Duration::seconds(40));
    conversation.send_successfully().await;
    assert_eq!(requested_keys(&app)[2..], ["sk-c"]);
}

#[tokio::test]
async fn without_redis_cooldowns_hold_in_this_process() {
    let unreachable = [
        ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9"),
        ("UPSTASH_REDIS_REST_TOKEN", "t"),
    ];
    let app = with_keys(THREE_KEYS, &unreachable, Deadlines::default()).await;
    let conversations = conversations(&app, 12).await;
    app.claude.always_for(
        Only::organisation("acme"),
        Failure::RateLimited {
            retry_after_secs: 60,
        },
    );

    for _ in 0..2 {
        for conversation in &conversations {
            conversation.send_successfully().await;
        }
    }
    let keys = requested_keys(&app);
    let calls_to_acme = keys.iter().filter(|key| *key != "sk-c").count();
    assert_eq!(calls_to_acme, 1, "{keys:?}");

    app.advance(time::Duration::seconds(60));
    app.claude.clear();
    for conversation in &conversations {
        conversation.send_successfully().await;
    }
    let later_keys = requested_keys(&app).split_off(keys.len());
    assert!(later_keys.iter().any(|key| key != "sk-c"), "{later_keys:?}");
}

#[tokio::test]
async fn if_a_model_is_overloaded_a_cheaper_one_answers_and_is_billed() {
    let app = with_three_keys().await;
    let conversation = conversation(&app).await;
    app.sql("update users set plan = 'pro'").await;
    app.claude
        .always_for(Only::model("claude-sonnet-5-5"), Failure::Overloaded);

    let answer = conversation.send_successfully().await;
    assert_eq!(answer.json["reply"]["model"], "claude-haiku-5-5");
    let ledger = app.value("select model, outcome from usage_events").await;
    assert_eq!(ledger, "claude-haiku-5-5,complete");
    let stored = "select model from messages where role = 'assistant'";
    assert_eq!(app.value(stored).await, "claude-haiku-5-5");
    assert_eq!(
        requested_models(&app),
        ["claude-sonnet-5-5", "claude-haiku-5-5"],
        "no other key is asked for the same model"
    );

    let stream = conversation
        .owner
        .stream(&conversation.discussion, "Why?")
        .await;
    let events = stream.rest().await;
    assert_eq!(events[0].data["model"], "claude-haiku-5-5");
    let models = requested_models(&app);
    assert_eq!(models.len(), 3, "the fallback comes first for a while");
    assert_settled(&app).await;
}

#[tokio::test]
async fn a_refusal_is_a_complete_reply_and_is_not_retried() {
    let app = with_three_keys().await;
    let conversation = conversation(&app).await;
    app.claude.always(Behaviour::Refusal);

    let answer = conversation.send().await;
    assert_eq!(answer.json["reply"]["status"], "complete");
    assert_eq!(answer.json["reply"]["stop_reason"], "refusal");

    let path = format!("/api/discussions/{}/messages", conversation.discussion);
    let messages = conversation.owner.get(&path).await.json;
    assert_eq!(messages["data"][0]["stop_reason"], "refusal");
    assert_eq!(messages["data"][1]["stop_reason"], Value::Null);
    assert_eq!(requested_keys(&app).len(), 1);
}

#[tokio::test]
async fn an_organisations_own_spend_limit_is_detected_by_the_answer_of_another() {
    let app = with_three_keys().await;
    let conversations = conversations(&app, 16).await;
    app.claude
        .always_for(Only::organisation("acme"), Failure::OwnSpendLimit);

    for conversation in &conversations {
        conversation.send_successfully().await;
    }
    let keys = requested_keys(&app);
    assert_eq!(keys.iter().filter(|key| *key != "sk-c").count(), 1);

    // An invalid request is refused by both organisations, and neither cools down.
    app.advance(time::Duration::minutes(10));
    app.claude.clear();
    app.claude.always(Failure::Invalid);
    let requests_before = requested_keys(&app).len();
    let refused = conversations[0].send().await;
    assert_eq!(refused.problem(), (503, "unavailable"));
    let requests_after = requested_keys(&app).len();
    assert_eq!(requests_after - requests_before, 2);

    app.claude.clear();
    for conversation in &conversations {
        conversation.send_successfully().await;
    }
    let keys = requested_keys(&app).split_off(requests_after);
    assert!(keys.iter().any(|key| key != "sk-c"), "{keys:?}");
}

#[tokio::test]
async fn the_provider_decides_whether_the_same_key_is_retried() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    let conversation = conversation(&app).await;

    let internal = || Script::from(Failure::Internal);
    let invalid = || Script::from(Failure::Invalid);
    let too_large = || Script::from(Failure::TooLarge);
    for (script, expected_calls, expected_status) in [
        (internal(), 2, 201),
        (internal().with_header("x-should-retry", "false"), 1, 503),
        (internal().with_header("retry-after-ms", "500"), 1, 503),
        (invalid(), 1, 503),
        (invalid().with_header("x-should-retry", "true"), 2, 201),
        (too_large().with_header("x-should-retry", "true"), 2, 201),
        (Behaviour::Drop.into(), 2, 201),
    ] {
        let requests_before = requested_keys(&app).len();
        app.claude.next(script.clone());
        let answer = conversation.send().await;
        assert_eq!(answer.status, expected_status, "{script:?}");

        let calls = requested_keys(&app).len() - requests_before;
        assert_eq!(calls, expected_calls, "{script:?}");
        app.advance(time::Duration::seconds(15));
    }
}

#[tokio::test]
async fn a_key_that_hangs_leaves_time_for_another_key() {
    let short = Deadlines {
        first_event: Duration::from_secs(2),
        ..Deadlines::default()
    };
    let app = with_keys(THREE_KEYS, &[], short).await;
    let conversation = conversation(&app).await;

    app.claude.next(Behaviour::Hang);
    conversation.send_successfully().await;
    app.claude.wait_for_cancelled(1).await;

    app.claude.always(Behaviour::Hang);
    let refused = conversation.send().await;
    assert_eq!(refused.problem(), (503, "unavailable"));
    assert_settled(&app).await;
}
