//! Every class of error, before and after the start of a reply: with one key, with one faulty key of two in different
//! organisations, and with two faulty keys. No cell of the table loses text, bills twice or leaves a hold.

use axum::{Json, Router, routing::post};
use claude::{ApiKey, Deadlines};
use iconoclash_fakes::claude::{Behaviour, Failure, Only, Script};
use serde_json::Value;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use crate::{
    harness::{Answer, TestApp},
    keys::{Conversation, assert_settled, with_keys},
};

const PRO_MODEL: &str = "claude-sonnet-5-5";
const OWN_MODEL: Outcome = Outcome::Reply(PRO_MODEL);
const FALLBACK: Outcome = Outcome::Reply("claude-haiku-5-5");
/// A refusal until the first of next month.
const NEXT_MONTH: Outcome = Refusal(i64::MAX);

/// The answer to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// 201, by this model.
    Reply(&'static str),
    /// 503 with this `retry-after` in seconds. Nothing is billed, and the message does not count.
    Refusal(i64),
    /// 503. The provider billed before any text came, so the message counts.
    Billed,
    /// 201 with the text so far.
    Partial,
}
use Outcome::{Billed, Partial, Refusal};

/// The requests that fail if one of two keys is faulty.
#[derive(Clone, Copy, Debug)]
enum Scope {
    /// Those with the key that the conversation prefers.
    FirstKey,
    /// Those for the plan's own model.
    OwnModel,
}
use Scope::{FirstKey, OwnModel};

/// Which keys exist, and which of them are faulty.
#[derive(Clone, Copy, Debug)]
enum Setup {
    OneKey,
    OneOfTwoKeys,
    BothKeys,
}

/// The expected outcome of one message.
#[derive(Clone, Copy)]
struct Expected {
    /// Requests to Claude.
    calls: usize,
    outcome: Outcome,
}

const fn after(calls: usize, outcome: Outcome) -> Expected {
    Expected { calls, outcome }
}

/// One fault with the expected outcome of each setup.
struct Row {
    scope: Scope,
    script: Script,
    expected: [(Setup, Expected); 3],
}

fn row(
    scope: Scope,
    script: impl Into<Script>,
    one_key: Expected,
    one_of_two_keys: Expected,
    both_keys: Expected,
) -> Row {
    Row {
        scope,
        script: script.into(),
        expected: [
            (Setup::OneKey, one_key),
            (Setup::OneOfTwoKeys, one_of_two_keys),
            (Setup::BothKeys, both_keys),
        ],
    }
}

#[rustfmt::skip]
fn before_the_start() -> Vec<Row> {
    let limited = Failure::RateLimited { retry_after_secs: 30 };
    vec![
        //                                           one key:                one of two keys:       both keys:
        row(FirstKey, limited,                       after(1, Refusal(30)),  after(2, OWN_MODEL),   after(2, Refusal(30))),
        row(FirstKey, Failure::TierSpendLimit,       after(1, NEXT_MONTH),   after(2, OWN_MODEL),   after(2, NEXT_MONTH)),
        row(FirstKey, Failure::ContractSpendLimit,   after(1, NEXT_MONTH),   after(2, OWN_MODEL),   after(2, NEXT_MONTH)),
        row(FirstKey, Failure::OwnSpendLimit,        after(1, Refusal(10)),  after(2, OWN_MODEL),   after(2, Refusal(10))),
        row(FirstKey, Failure::Auth,                 after(1, Refusal(60)),  after(2, OWN_MODEL),   after(2, Refusal(60))),
        row(FirstKey, Failure::Billing,              after(1, Refusal(60)),  after(2, OWN_MODEL),   after(2, Refusal(60))),
        row(FirstKey, Failure::Permission,           after(1, Refusal(60)),  after(2, OWN_MODEL),   after(2, Refusal(60))),
        // Every key has the same requests, models and capacity.
        row(FirstKey, Failure::TooLarge,             after(1, Refusal(10)),  after(1, Refusal(10)), after(1, Refusal(10))),
        row(OwnModel, Failure::NotFound,             after(2, Refusal(10)),  after(2, FALLBACK),    after(2, Refusal(10))),
        row(OwnModel, Failure::Overloaded,           after(2, Refusal(10)),  after(2, FALLBACK),    after(2, Refusal(10))),
        // A failure of the provider is retried with another key, else with the same, then with the fallback.
        row(FirstKey, Failure::Internal,             after(4, Refusal(10)),  after(2, OWN_MODEL),   after(4, Refusal(10))),
        row(OwnModel, Failure::Internal,             after(4, Refusal(10)),  after(3, FALLBACK),    after(4, Refusal(10))),
        row(FirstKey, Failure::Timeout,              after(4, Refusal(10)),  after(2, OWN_MODEL),   after(4, Refusal(10))),
        row(FirstKey, Behaviour::Drop,               after(4, Refusal(10)),  after(2, OWN_MODEL),   after(4, Refusal(10))),
        // A key that hangs is not retried.
        row(FirstKey, Behaviour::Hang,               after(2, Refusal(10)),  after(2, OWN_MODEL),   after(4, Refusal(10))),
    ]
}

/// From the start on no other key is asked: the reply may be billed and read.
fn after_the_start() -> Vec<Row> {
    let row = |behaviour: Behaviour, outcome| {
        let expected = after(1, outcome);
        row(FirstKey, behaviour, expected, expected, expected)
    };

    vec![
        row(Behaviour::Cut { after: 0 }, Billed),
        row(Behaviour::Error { after: 0 }, Billed),
        row(Behaviour::Malformed { after: 0 }, Billed),
        row(Behaviour::Cut { after: 3 }, Partial),
        row(Behaviour::Error { after: 3 }, Partial),
        row(Behaviour::Malformed { after: 3 }, Partial),
        row(Behaviour::Stall { after: 3 }, Partial),
        row(Behaviour::Refusal, OWN_MODEL),
        row(Behaviour::MaxTokens, OWN_MODEL),
    ]
}

#[tokio::test]
async fn before_the_start_another_key_answers_or_the_message_does_not_count() {
    check(before_the_start()).await;
}

#[tokio::test]
async fn after_the_start_the_text_stays_and_is_billed_once() {
    check(after_the_start()).await;
}

async fn check(rows: Vec<Row>) {
    let settings = [("QUOTA_PRO", "1000")];
    let mut app = with_keys("a=sk-a", &settings, Deadlines::default()).await;
    let token = app.member("ada").await.token.unwrap();
    app.sql("update users set plan = 'pro'").await;

    for row in rows {
        for (setup, expected) in row.expected {
            start_afresh(&mut app, setup).await;
            let name = format!("{:?} {:?} with {setup:?}", row.scope, row.script);
            let cell = Cell {
                app: &app,
                name,
                conversation: conversation_with_first_key(&app, &token).await,
            };
            cell.check(setup, &row, expected).await;
        }
    }
}

/// One cell of the table.
struct Cell<'a> {
    app: &'a TestApp,
    name: String,
    conversation: Conversation<'a>,
}

impl Cell<'_> {
    async fn check(&self, setup: Setup, row: &Row, expected: Expected) {
        let name = &self.name;
        let claude = &self.app.claude;
        match (setup, row.scope) {
            (Setup::OneOfTwoKeys, FirstKey) => {
                claude.always_for(Only::key("sk-a"), row.script.clone());
            }
            (Setup::OneOfTwoKeys, OwnModel) => {
                claude.always_for(Only::model(PRO_MODEL), row.script.clone());
            }
            _ => claude.always(row.script.clone()),
        }

        let calls_before = claude.requests().len();
        let messages_before = self.messages_used().await;
        let sent_at = self.app.app.now();
        let answer = self.conversation.send().await;
        let calls = claude.requests().len() - calls_before;
        assert_eq!(calls, expected.calls, "{name}: calls");

        let reply = self.stored_reply().await;
        self.check_answer(&answer, &reply, expected.outcome);
        if let Refusal(seconds) = expected.outcome {
            self.check_retry_after(&answer, seconds, sent_at);
        }

        let counts = !matches!(expected.outcome, Refusal(_));
        let messages = self.messages_used().await - messages_before;
        assert_eq!(messages, i64::from(counts), "{name}: messages");
        self.check_bill(&reply, row, counts).await;
    }

    async fn messages_used(&self) -> i64 {
        let session = self.conversation.owner.get("/api/auth/session").await;
        session.json["quota"]["used"].as_i64().unwrap()
    }

    async fn stored_reply(&self) -> Value {
        let path = format!("/api/discussions/{}/messages", self.conversation.discussion);
        let messages = self.conversation.owner.get(&path).await;
        messages.json["data"][0].clone()
    }

    fn check_answer(&self, answer: &Answer, reply: &Value, outcome: Outcome) {
        let name = &self.name;
        match outcome {
            Outcome::Reply(model) => {
                assert_eq!(answer.status, 201, "{name}: {}", answer.json);
                assert_eq!(reply["status"], "complete", "{name}");
                assert_eq!(reply["model"], model, "{name}");
                assert_eq!(answer.json["reply"], *reply, "{name}");
            }
            Partial => {
                assert_eq!(answer.status, 201, "{name}: {}", answer.json);
                assert_eq!(reply["status"], "partial", "{name}");
                let words = reply["content"].as_str().unwrap().split_whitespace();
                assert_eq!(words.count(), 3, "{name}");
                assert_eq!(answer.json["reply"], *reply, "{name}");
            }
            Refusal(_) | Billed => {
                assert_eq!(answer.problem(), (503, "unavailable"), "{name}");
                assert_eq!(reply["status"], "failed", "{name}");
                assert_eq!(reply["content"], "", "{name}");
            }
        }
    }

    fn check_retry_after(&self, answer: &Answer, seconds: i64, sent_at: OffsetDateTime) {
        let expected = match Refusal(seconds) == NEXT_MONTH {
            true => secs_until_next_month(sent_at),
            false => seconds,
        };
        let actual: i64 = answer.header("retry-after").parse().unwrap();

        // It counts from the failure, which happened a little earlier.
        let name = &self.name;
        let range = expected - 5..=expected;
        assert!(
            range.contains(&actual),
            "{name}: {actual} s not {expected} s"
        );
    }

    async fn check_bill(&self, reply: &Value, row: &Row, counts: bool) {
        let name = &self.name;
        assert_settled(self.app).await;

        let billed = "select count(*) from usage_events where cost_microusd > 0 and counted";
        let billed = self.app.value(billed).await;
        let started = self.app.claude.replies_started().to_string();
        assert_eq!(
            billed, started,
            "{name}: every started reply is billed once"
        );

        // A request without an answer may be billed: the ledger has its cost, but it does not count for the sender.
        let hung = row.script == Script::from(Behaviour::Hang);
        let has_cost = format!(
            "select cost_microusd > 0 from usage_events where message_id = '{}'",
            reply["id"].as_str().unwrap()
        );
        let expected = if hung || counts { "t" } else { "f" };
        assert_eq!(self.app.value(&has_cost).await, expected, "{name}: cost");
    }
}

/// A discussion that prefers key A.
async fn conversation_with_first_key<'a>(app: &'a TestApp, token: &str) -> Conversation<'a> {
    let owner = app.bearer(token);

    loop {
        // Discussions have a rate limit.
        app.advance(time::Duration::MINUTE);
        let discussion = owner.discussion().await;
        let pool = app.app.claude().unwrap();
        if pool.likely_key(discussion.parse().unwrap()) == "a" {
            return Conversation { owner, discussion };
        }
    }
}

/// Restarts the process and clears Redis, so that nothing is known from the cell before.
async fn start_afresh(app: &mut TestApp, setup: Setup) {
    app.claude.clear();

    let mut keys = vec![ApiKey::new("a", "sk-a")];
    if !matches!(setup, Setup::OneKey) {
        keys.push(ApiKey::new("b", "sk-b"));
    }
    let deadlines = Deadlines {
        first_event: Duration::from_secs(4),
        silence: Duration::from_secs(1),
        ..Deadlines::default()
    };
    app.restart(|config| {
        let claude = config.claude.as_mut().unwrap();
        claude.keys = keys;
        claude.deadlines = deadlines;
    });

    let delete = upstash_redis_rs::Command::new("DEL").arg("{keys}:cooling");
    let redis = app.app.redis().unwrap();
    redis.exec::<i64>(&delete.idempotent()).await.unwrap();
}

fn secs_until_next_month(now: OffsetDateTime) -> i64 {
    let first_day = |date: time::Date| date.replace_day(1).unwrap();
    let next_month = first_day(first_day(now.date()) + time::Duration::days(31));
    (next_month.midnight().assume_utc() - now).whole_seconds() + 1
}

/// A chat webhook and the messages that it received.
async fn chat_webhook() -> (String, Arc<Mutex<Vec<Value>>>) {
    let received: Arc<Mutex<Vec<Value>>> = Arc::default();
    let messages = Arc::clone(&received);
    let hook = post(async move |Json(message): Json<Value>| {
        messages.lock().unwrap().push(message);
    });

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, Router::new().route("/hook", hook)).await });
    (url, received)
}

#[tokio::test]
async fn operators_get_one_alert_for_a_refused_key_and_one_for_a_spend_limit() {
    let (url, chat_messages) = chat_webhook().await;
    let app = TestApp::with(&[("ALERT_WEBHOOK_URL", &url)]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    for (failure, expected_mails) in [
        (Failure::Auth, 1),
        (Failure::Auth, 1),
        (Failure::TierSpendLimit, 2),
    ] {
        app.claude.next(failure);
        let answer = ada.send(&discussion, "Why?").await;
        assert_eq!(answer.problem(), (503, "unavailable"), "{failure:?}");
        app.background.idle().await;
        let mails = app.mail.mails();
        assert_eq!(mails.len(), expected_mails, "{failure:?}: {mails:?}");
        app.advance(time::Duration::minutes(3));
    }

    // Another instance does not repeat an alert.
    let other = app.another();
    other.claude.next(Failure::Auth);
    let ada = other.bearer(ada.token.as_deref().unwrap());
    ada.send(&discussion, "Why?").await;
    other.background.idle().await;

    let messages = chat_messages.lock().unwrap().clone();
    assert_eq!(messages.len(), 2, "{messages:?}");
    let text = messages[0]["text"].as_str().unwrap();
    let expected = "Claude: test needs attention\nA Claude key was refused";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(messages[0]["content"], text);

    let mail = app.mail.mails().remove(0);
    assert_eq!(mail.to, ["ops@iconoclash.test"]);
    assert_eq!(mail.subject, "Claude: test needs attention");
}
