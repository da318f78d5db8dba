//! Stopping a reply.

use iconoclash_fakes::claude::{Behaviour, Script};
use serde_json::{Value, json};
use std::time::Duration;

use crate::harness::{Actor, Events, TestApp};

const LEDGER: &str = "select outcome, counted, estimated from usage_events";

async fn begun(ada: &Actor<'_>, discussion: &str) -> (String, Events) {
    let mut stream = ada.stream(discussion, "Why?").await;
    let reply = stream.next().await.unwrap().data["reply_id"]
        .as_str()
        .unwrap()
        .to_owned();
    (reply, stream)
}

async fn stop(ada: &Actor<'_>, reply: &str) -> (u16, String) {
    let answer = ada
        .post(&format!("/api/messages/{reply}/stop"), Value::Null)
        .await;
    (answer.status.as_u16(), answer.problem().1.to_owned())
}

#[tokio::test]
async fn a_stop_on_another_instance_ends_the_provider_and_keeps_the_text() {
    let app = TestApp::start().await;
    let other = app.another();
    let ada = app.member("ada").await;
    let elsewhere = other.bearer(ada.token.as_deref().unwrap());
    for plan in ["free", "pro"] {
        app.sql(&format!("update users set plan = '{plan}'")).await;
        let discussion = ada.discussion().await;
        app.claude.next(
            Script::from(Behaviour::Stall { after: 3 }).with_text("One two three four five."),
        );
        let cancelled = app.claude.cancelled();
        let (reply, stream) = begun(&ada, &discussion).await;
        app.eventually(
            "select content from messages where status = 'streaming'",
            "\"One two three \"",
        )
        .await;
        let asked = std::time::Instant::now();
        assert_eq!(stop(&elsewhere, &reply).await, (202, String::new()));
        app.claude.wait_for_cancelled(cancelled + 1).await;
        eprintln!(
            "the provider's stream ended {:?} after the stop was asked for",
            asked.elapsed()
        );
        let events = stream.rest().await;
        let done = events.last().unwrap();
        assert_eq!(
            (done.name.as_str(), &done.data["reply"]["status"]),
            ("done", &json!("stopped"))
        );
        assert_eq!(done.data["reply"]["content"], "One two three ");
        // Two bytes a token is an upper estimate for every language.
        let usage = &done.data["reply"]["usage"];
        assert_eq!(usage["output_tokens"], 7);
        assert!(
            usage["cache_write_tokens"].as_i64().unwrap() > 0
                && usage["cost_microusd"].as_i64().unwrap() > 0
        );
        assert_eq!(
            app.value(&format!("{LEDGER} order by created_at desc limit 1"))
                .await,
            "stopped,t,t"
        );
        let kept = ada
            .get(&format!("/api/discussions/{discussion}/messages"))
            .await
            .json;
        assert_eq!(kept["data"][0], done.data["reply"]);
        assert_eq!(
            stop(&elsewhere, &reply).await,
            (409, "reply_not_running".to_owned())
        );
        assert_eq!(ada.send(&discussion, "Go on.").await.status, 201);
        app.assert_counters_equal_the_ledger().await;
    }
}

#[tokio::test]
async fn unreported_thinking_of_a_stopped_reply_is_booked_at_its_maximum() {
    let app = TestApp::with(&[("CLAUDE_MODEL_PRO", "claude-opus-5-5")]).await;
    let ada = app.member("ada").await;
    app.sql("update users set plan = 'pro'").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Stall { after: 1 }).with_text("One two."));
    let (reply, stream) = begun(&ada, &discussion).await;
    assert_eq!(stop(&ada, &reply).await.0, 202);
    let done = stream.rest().await.pop().unwrap();
    let asked = app.claude.requests().pop().unwrap().body;
    assert_eq!(asked["output_config"], json!({"effort": "low"}));
    assert_eq!(
        done.data["reply"]["usage"]["output_tokens"],
        asked["max_tokens"]
    );
    assert_eq!(app.value(LEDGER).await, "stopped,t,t");
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn a_stop_before_the_first_word_ends_the_call() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hang);
    let sent = ada.send(&discussion, "Why?");
    let stopped = async {
        app.eventually(
            "select count(*) from messages where status = 'streaming'",
            "1",
        )
        .await;
        let reply = app
            .value("select id from messages where status = 'streaming'")
            .await;
        assert_eq!(stop(&ada, &reply).await.0, 202);
        app.claude.wait_for_cancelled(1).await;
    };
    let (answer, ()) = tokio::join!(sent, stopped);
    assert_eq!(
        (answer.status.as_u16(), &answer.json["reply"]["status"]),
        (201, &json!("stopped"))
    );
    assert_eq!(
        (
            &answer.json["reply"]["content"],
            &answer.json["quota"]["used"]
        ),
        (&json!(""), &json!(1))
    );
    assert_eq!(
        app.value(&format!("{LEDGER} where cost_microusd > 0"))
            .await,
        "stopped,t,t"
    );
    app.assert_counters_equal_the_ledger().await;
    assert_eq!(ada.send(&discussion, "Again?").await.status, 201);
    assert_eq!(
        app.claude.requests().last().unwrap().body["messages"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn only_the_owner_can_stop_a_reply_and_only_while_it_runs() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.member("ada").await, app.member("bob").await);
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 1 });
    let (reply, stream) = begun(&ada, &discussion).await;
    assert_eq!(stop(&bob, &reply).await, (404, "not_found".to_owned()));
    let message = app
        .value("select id from messages where role = 'user'")
        .await;
    for unknown in [
        message.as_str(),
        "01890000-0000-7000-8000-000000000000",
        "x",
    ] {
        assert_eq!(
            stop(&ada, unknown).await,
            (404, "not_found".to_owned()),
            "{unknown}"
        );
    }
    assert_eq!(
        app.value("select count(*) from messages where stop_requested_at is not null")
            .await,
        "0"
    );
    app.claude.release();
    assert_eq!(stream.rest().await.last().unwrap().name, "done");
    assert_eq!(
        stop(&ada, &reply).await,
        (409, "reply_not_running".to_owned())
    );
}

#[tokio::test]
async fn a_stop_ends_a_dead_producers_reply_and_survives_a_dying_one() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let over = "update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'";
    let dead = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Stall { after: 1 }).with_text("One two."));
    let (reply, _stream) = begun(&ada, &dead).await;
    app.eventually(
        "select content from messages where status = 'streaming'",
        "\"One \"",
    )
    .await;
    app.sql(over).await;
    assert_eq!(
        stop(&ada, &reply).await,
        (409, "reply_not_running".to_owned())
    );
    assert_eq!(
        app.value("select status from messages where role = 'assistant'")
            .await,
        "partial"
    );

    let dying = ada.discussion().await;
    app.claude.next(Behaviour::Stall { after: 0 });
    let (reply, _stream) = begun(&ada, &dying).await;
    app.sql(&format!(
        "update messages set stop_requested_at = now() where id = '{reply}'; {over}"
    ))
    .await;
    assert_eq!(ada.send(&dying, "Hello?").await.status, 201);
    let left =
        format!("select status in ('stopped', 'streaming') from messages where id = '{reply}'");
    assert_eq!(app.value(&left).await, "t");
    tokio::time::timeout(Duration::from_secs(5), app.claude.wait_for_cancelled(1))
        .await
        .unwrap();
}
