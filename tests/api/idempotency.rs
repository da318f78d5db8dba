//! Idempotency keys of messages that are still being answered, and requests that cost nothing.

use http::StatusCode;
use iconoclash_fakes::claude::{Behaviour, Script};
use serde_json::json;

use crate::harness::TestApp;

const KEY: (&str, &str) = ("idempotency-key", "k-1");

#[tokio::test]
async fn a_repeated_key_follows_the_running_stream() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let script = Script::from(Behaviour::Hold { after: 2 }).with_text("One two three four.");
    app.claude.next(script);

    let mut first = ada.stream_with(&discussion, "Why?", &[KEY]).await.unwrap();
    let start = first.next().await.unwrap();
    assert_eq!(start.name, "start");
    first.next().await.unwrap();
    let second_word = first.next().await.unwrap();
    drop(first);

    // Without a stream the first request is still running.
    let whole = ada.send_with_key(&discussion, "Why?", KEY.1).await;
    assert_eq!(whole.problem(), (409, "request_in_progress"));
    assert_eq!(whole.header("retry-after"), "1");

    let again = ada.stream_with(&discussion, "Why?", &[KEY]).await.unwrap();
    let last_event_id = second_word.id.to_string();
    let resumed = [KEY, ("last-event-id", last_event_id.as_str())];
    let resumed = ada
        .stream_with(&discussion, "Why?", &resumed)
        .await
        .unwrap();
    app.claude.release();

    let again = again.rest().await;
    assert_eq!(again[0].name, "start");
    assert_eq!(again[0].data["reply_id"], start.data["reply_id"]);
    let text = |events: &[crate::harness::Event]| -> String {
        let deltas = events.iter().filter(|event| event.name == "delta");
        deltas
            .map(|event| event.data["text"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(text(&again), "One two three four.");
    assert_eq!(again.last().unwrap().name, "done");

    let resumed = resumed.rest().await;
    assert_eq!(text(&resumed), "three four.");
    assert_eq!(resumed.last().unwrap().id, again.last().unwrap().id);

    assert_eq!(app.claude.requests().len(), 1);
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
}

#[tokio::test]
async fn a_request_that_gets_no_new_reply_costs_no_burst() {
    let app = TestApp::with(&[("BURST_PER_MINUTE", "2")]).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(
        ada.send_with_key(&discussion, "Why?", KEY.1).await.status,
        201
    );

    for _ in 0..5 {
        let replayed = ada.send_with_key(&discussion, "Why?", KEY.1).await;
        assert_eq!(replayed.header("idempotent-replayed"), "true");
        let reused = ada.send_with_key(&discussion, "Why not?", KEY.1).await;
        assert_eq!(reused.problem(), (422, "idempotency_key_reused"));
        let missing = ada
            .send("01890000-0000-7000-8000-000000000000", "Why?")
            .await;
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
    }
    for _ in 0..5 {
        app.claude.next(Behaviour::Drop);
        app.claude.next(Behaviour::Drop);
        app.claude.next(Behaviour::Drop);
        let failed = ada.send(&discussion, "Why?").await;
        assert_eq!(failed.problem(), (503, "unavailable"));
        app.claude.clear();
        app.advance(time::Duration::seconds(11));
    }

    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 2);
    let quota = &ada.get("/api/auth/session").await.json["quota"];
    assert_eq!(quota["remaining"], json!(8));
}
