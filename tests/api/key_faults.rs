//! Every class of error, before the reply has begun and in the middle of it, with one key, with two in different
//! organisations, and where all have it. In no cell is text lost, anything billed twice, or a hold left.

use axum::{Json, Router, routing::post};
use claude::{ApiKey, Deadlines};
use iconoclash_fakes::claude::{Behaviour, Failure, Only, Script};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use crate::{
    harness::TestApp,
    keys::{settled, with_keys},
};

/// What the sender of one message gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// 201, by this model.
    Reply(&'static str),
    /// 503, nothing billed, the message given back, and after how many seconds to try again.
    Refusal(i64),
    /// 503 for what was billed before any text came: the message counts.
    Billed,
    /// 201 with what there was of the text.
    Partial,
}
use Gets::{Billed, Partial, Refusal};

const PRO: &str = "claude-sonnet-5-5";
const OWN: Gets = Gets::Reply(PRO);
const SMALL: Gets = Gets::Reply("claude-haiku-5-5");
/// A refusal until the first of next month.
const MONTH: Gets = Refusal(i64::MAX);

/// How often Claude is asked for one message, and what its sender gets.
type Outcome = (usize, Gets);

/// Which requests have the fault in the column of the two keys.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Those of the key that the conversation begins with.
    OfAKey,
    /// Those for the plan's own model.
    OfAModel,
}
use Fault::{OfAKey, OfAModel};

#[rustfmt::skip]
fn before_the_first_byte() -> Vec<(Fault, Script, [Outcome; 3])> {
    let limited = Failure::RateLimited { retry_after_secs: 30 };
    vec![
        //                                             one key, which has it;  one of two has it;  everybody has it
        (OfAKey,   limited.into(),                     [(1, Refusal(30)),      (2, OWN),           (2, Refusal(30))]),
        (OfAKey,   Failure::TierSpendLimit.into(),     [(1, MONTH),            (2, OWN),           (2, MONTH)]),
        (OfAKey,   Failure::ContractSpendLimit.into(), [(1, MONTH),            (2, OWN),           (2, MONTH)]),
        (OfAKey,   Failure::OwnSpendLimit.into(),      [(1, Refusal(10)),      (2, OWN),           (2, Refusal(10))]),
        (OfAKey,   Failure::Auth.into(),               [(1, Refusal(60)),      (2, OWN),           (2, Refusal(60))]),
        (OfAKey,   Failure::Billing.into(),            [(1, Refusal(60)),      (2, OWN),           (2, Refusal(60))]),
        (OfAKey,   Failure::Permission.into(),         [(1, Refusal(60)),      (2, OWN),           (2, Refusal(60))]),
        // What is wrong with a request, a model, or a model's capacity is so with every key.
        (OfAKey,   Failure::TooLarge.into(),           [(1, Refusal(10)),      (1, Refusal(10)),   (1, Refusal(10))]),
        (OfAModel, Failure::NotFound.into(),           [(2, Refusal(10)),      (2, SMALL),         (2, Refusal(10))]),
        (OfAModel, Failure::Overloaded.into(),         [(2, Refusal(10)),      (2, SMALL),         (2, Refusal(10))]),
        // What may be a bad moment is asked again: of another key, else of the same, and then of the other model.
        (OfAKey,   Failure::Internal.into(),           [(4, Refusal(10)),      (2, OWN),           (4, Refusal(10))]),
        (OfAModel, Failure::Internal.into(),           [(4, Refusal(10)),      (3, SMALL),         (4, Refusal(10))]),
        (OfAKey,   Failure::Timeout.into(),            [(4, Refusal(10)),      (2, OWN),           (4, Refusal(10))]),
        (OfAKey,   Behaviour::Drop.into(),             [(4, Refusal(10)),      (2, OWN),           (4, Refusal(10))]),
        // But not of the key that has not answered in half of the time.
        (OfAKey,   Behaviour::Hang.into(),             [(2, Refusal(10)),      (2, OWN),           (4, Refusal(10))]),
    ]
}

/// Once it has begun nobody else is asked, whoever has it: it may be billed, and read.
fn in_the_middle() -> Vec<(Fault, Script, [Outcome; 3])> {
    let of = |behaviour: Behaviour, gets| (OfAKey, Script::from(behaviour), [(1, gets); 3]);
    vec![
        of(Behaviour::Cut { after: 0 }, Billed),
        of(Behaviour::Error { after: 0 }, Billed),
        of(Behaviour::Malformed { after: 0 }, Billed),
        of(Behaviour::Cut { after: 3 }, Partial),
        of(Behaviour::Error { after: 3 }, Partial),
        of(Behaviour::Malformed { after: 3 }, Partial),
        of(Behaviour::Stall { after: 3 }, Partial),
        of(Behaviour::Refusal, OWN),
        of(Behaviour::MaxTokens, OWN),
    ]
}

#[tokio::test]
async fn before_the_first_byte_somebody_else_answers_or_nothing_is_taken() {
    check(before_the_first_byte()).await;
}

#[tokio::test]
async fn after_the_first_byte_what_there_is_stays_and_is_billed_once() {
    check(in_the_middle()).await;
}

async fn check(table: Vec<(Fault, Script, [Outcome; 3])>) {
    let mut app = with_keys("a=sk-a", &[("QUOTA_PRO", "1000")], Deadlines::default()).await;
    let token = app.member("ada").await.token.unwrap();
    app.sql("update users set plan = 'pro'").await;
    for (fault, script, outcomes) in table {
        for (column, outcome) in outcomes.into_iter().enumerate() {
            let cell = format!("{fault:?} {script:?} in column {column}");
            cell_of(&mut app, &token, &cell, column, fault, &script, outcome).await;
        }
    }
}

async fn cell_of(
    app: &mut TestApp,
    token: &str,
    cell: &str,
    column: usize,
    fault: Fault,
    script: &Script,
    (calls, gets): Outcome,
) {
    forget(app, column).await;
    let ada = app.bearer(token);
    // One that begins with the first key.
    let discussion = loop {
        // As many may be begun as somebody who is patient begins.
        app.advance(time::Duration::MINUTE);
        let discussion = ada.discussion().await;
        if app
            .app
            .claude()
            .unwrap()
            .likely_key(discussion.parse().unwrap())
            == "a"
        {
            break discussion;
        }
    };
    match (column, fault) {
        (1, OfAKey) => app.claude.always_for(Only::key("sk-a"), script.clone()),
        (1, OfAModel) => app.claude.always_for(Only::model(PRO), script.clone()),
        _ => app.claude.always(script.clone()),
    }
    let used = async || {
        ada.get("/api/auth/session").await.json["quota"]["used"]
            .as_i64()
            .unwrap()
    };
    let (before, used_before, asked_at) =
        (app.claude.requests().len(), used().await, app.app.now());
    let answer = ada.send(&discussion, "Why?").await;
    assert_eq!(app.claude.requests().len() - before, calls, "{cell}: calls");
    let kept = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json["data"][0]
        .clone();
    match gets {
        Gets::Reply(model) => {
            assert_eq!(answer.status, 201, "{cell}: {}", answer.json);
            assert_eq!(
                (&kept["status"], &kept["model"]),
                (&json!("complete"), &json!(model)),
                "{cell}"
            );
            assert_eq!(answer.json["reply"], kept, "{cell}");
        }
        Partial => {
            assert_eq!(
                (answer.status.as_u16(), &kept["status"]),
                (201, &json!("partial")),
                "{cell}: {}",
                answer.json
            );
            assert_eq!(
                kept["content"].as_str().unwrap().split_whitespace().count(),
                3,
                "{cell}"
            );
            assert_eq!(answer.json["reply"], kept, "{cell}");
        }
        Refusal(_) | Billed => {
            assert_eq!(answer.problem(), (503, "unavailable"), "{cell}");
            assert_eq!(
                (&kept["status"], &kept["content"]),
                (&json!("failed"), &json!("")),
                "{cell}"
            );
        }
    }
    if let Refusal(seconds) = gets {
        let expected = if gets == MONTH {
            until_next_month(asked_at)
        } else {
            seconds
        };
        let said: i64 = answer.header("retry-after").parse().unwrap();
        // It is reckoned from the moment of the failure on, which comes a little earlier.
        assert!(
            (expected - 5..=expected).contains(&said),
            "{cell}: {said} s instead of {expected} s"
        );
    }
    let taken = i64::from(!matches!(gets, Refusal(_)));
    assert_eq!(used().await - used_before, taken, "{cell}: messages taken");
    settled(app).await;
    let billed = app
        .value("select count(*) from usage_events where cost_microusd > 0 and counted")
        .await;
    assert_eq!(
        billed,
        app.claude.replies_started().to_string(),
        "{cell}: ledger rows of what is billed, replies that began"
    );
    // What was asked and never answered may be billed: it is booked, and costs the sender nothing.
    let silent = format!(
        "select cost_microusd > 0 from usage_events where message_id = {}",
        kept["id"]
    );
    let silent = silent.replace('"', "'");
    let hung = *script == Script::from(Behaviour::Hang) && matches!(gets, Refusal(_));
    assert_eq!(
        app.value(&silent).await,
        if hung || taken > 0 { "t" } else { "f" },
        "{cell}: cost"
    );
}

/// A process, and a Redis, that know nothing of the cell before.
async fn forget(app: &mut TestApp, column: usize) {
    app.claude.clear();
    let keys = [ApiKey::new("a", "sk-a"), ApiKey::new("b", "sk-b")];
    let keys = keys[..if column == 0 { 1 } else { 2 }].to_vec();
    let deadlines = Deadlines {
        first_event: Duration::from_secs(4),
        silence: Duration::from_secs(1),
        ..Deadlines::default()
    };
    app.restart(|config| {
        let claude = config.claude.as_mut().unwrap();
        (claude.keys, claude.deadlines) = (keys, deadlines);
    });
    let forget = upstash_redis_rs::Command::new("DEL")
        .arg("{keys}:cooling")
        .idempotent();
    app.app.redis().unwrap().exec::<i64>(&forget).await.unwrap();
}

fn until_next_month(now: OffsetDateTime) -> i64 {
    let next = (now.date().replace_day(1).unwrap() + time::Duration::days(31))
        .replace_day(1)
        .unwrap();
    (next.midnight().assume_utc() - now).whole_seconds() + 1
}

/// A chat's webhook, and what it was told.
async fn chat() -> (String, Arc<Mutex<Vec<Value>>>) {
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&told);
    let hook = post(async move |Json(said): Json<Value>| kept.lock().unwrap().push(said));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, Router::new().route("/hook", hook)).await });
    (url, told)
}

#[tokio::test]
async fn operators_are_told_once_of_a_refused_key_and_of_a_spent_month() {
    let (url, chat) = chat().await;
    let app = TestApp::with(&[("ALERT_WEBHOOK_URL", &url)]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let subjects = || {
        app.mail
            .mails()
            .into_iter()
            .map(|mail| mail.subject)
            .collect::<Vec<_>>()
    };
    for (failure, told) in [
        (Failure::Auth, 1),
        (Failure::Auth, 1),
        (Failure::TierSpendLimit, 2),
    ] {
        app.claude.next(failure);
        assert_eq!(
            ada.send(&discussion, "Why?").await.problem(),
            (503, "unavailable"),
            "{failure:?}"
        );
        app.background.idle().await;
        assert_eq!(subjects().len(), told, "{failure:?}: {:?}", subjects());
        app.advance(time::Duration::minutes(3));
    }
    // Nobody tells what another instance has told.
    let other = app.another();
    other.claude.next(Failure::Auth);
    other
        .bearer(ada.token.as_deref().unwrap())
        .send(&discussion, "Why?")
        .await;
    other.background.idle().await;
    let said = chat.lock().unwrap().clone();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0]["text"]
            .as_str()
            .unwrap()
            .starts_with("Claude: test needs you\nA Claude key was refused")
    );
    assert_eq!(said[0]["content"], said[0]["text"]);
    let mail = app.mail.mails().remove(0);
    assert_eq!(
        (mail.to, mail.subject),
        (
            vec!["ops@iconoclash.test".to_owned()],
            "Claude: test needs you".to_owned()
        )
    );
}
