//! Sending a message and getting a reply.

use futures_util::future::join_all;
use iconoclash_fakes::claude::{Behaviour, Script};
use serde_json::json;

use crate::harness::{Answer, TestApp};

#[tokio::test]
async fn a_message_is_answered_in_one_piece_and_found_again() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let answer = ada.send(&discussion, "Virtue is knowledge.").await;
    assert_eq!(answer.status, 201);
    let Answer { json, .. } = &answer;
    assert_eq!(
        (&json["message"]["content"], &json["message"]["role"]),
        (&json!("Virtue is knowledge."), &json!("user"))
    );
    let reply = &json["reply"];
    assert_eq!(
        (&reply["status"], &reply["role"], &reply["model"]),
        (
            &json!("complete"),
            &json!("assistant"),
            &json!("claude-haiku-5-5")
        )
    );
    assert!(reply["content"].as_str().unwrap().len() > 20, "{reply}");
    assert!(
        reply["usage"]["output_tokens"].as_i64().unwrap() > 0
            && reply["usage"]["cost_microusd"].as_i64().unwrap() > 0
    );
    assert_eq!(
        (
            &json["quota"]["used"],
            answer.header("x-ratelimit-remaining")
        ),
        (&json!(1), "9")
    );

    let messages = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(messages["data"], json!([reply, json["message"]]));
    let shown = ada
        .get(&format!("/api/discussions/{discussion}"))
        .await
        .json;
    assert_eq!(shown["message_count"], 2);
    let ledger = "select outcome, counted, estimated, cost_microusd, output_tokens, subject like 'u:%' from usage_events";
    let usage = &reply["usage"];
    assert_eq!(
        app.value(ledger).await,
        format!(
            "complete,t,f,{},{},t",
            usage["cost_microusd"], usage["output_tokens"]
        )
    );
}

#[tokio::test]
async fn a_reply_streams_as_numbered_events_that_add_up_to_the_saved_text() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let stream = ada.stream(&discussion, "Virtue is knowledge.").await;
    assert_eq!(stream.headers["x-ratelimit-remaining"], "9");
    assert_eq!(
        stream.headers["cache-control"],
        "private, no-store, no-transform"
    );
    let events = stream.rest().await;
    assert!(
        events.is_sorted_by(|one, next| one.id < next.id),
        "{events:?}"
    );
    let (start, done) = (&events[0], events.last().unwrap());
    assert_eq!((start.name.as_str(), done.name.as_str()), ("start", "done"));
    assert_eq!(start.data["message"]["content"], "Virtue is knowledge.");
    assert_eq!(start.data["reply_id"], done.data["reply"]["id"]);
    let deltas = &events[1..events.len() - 1];
    assert!(deltas.len() > 1 && deltas.iter().all(|event| event.name == "delta"));
    let text: String = deltas
        .iter()
        .map(|event| event.data["text"].as_str().unwrap())
        .collect();
    assert_eq!(done.data["reply"]["content"], text);
    let messages = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(messages["data"][0], done.data["reply"]);
    assert_eq!(messages["data"][1], start.data["message"]);
}

#[tokio::test]
async fn claude_gets_the_persona_the_topic_and_the_history() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let first =
        ada.send(&discussion, "Virtue is knowledge.").await.json["reply"]["content"].clone();
    ada.send(&discussion, "Then who teaches it?").await;
    let requests = app.claude.requests();
    let (one, two) = (&requests[0].body, &requests[1].body);
    assert_eq!(one["system"], two["system"]);
    let system = one["system"].to_string();
    assert!(
        system.contains("Socrates") && system.contains("Can virtue be taught?"),
        "{system}"
    );
    let said: Vec<_> = two["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|turn| (turn["role"].clone(), turn["content"][0]["text"].clone()))
        .collect();
    assert_eq!(
        said,
        [
            (json!("user"), json!("Virtue is knowledge.")),
            (json!("assistant"), first),
            (json!("user"), json!("Then who teaches it?")),
        ]
    );
    assert_eq!(
        (&two["max_tokens"], &two["stream"]),
        (&json!(800), &json!(true))
    );
    assert!(!two.to_string().contains("ada@example.org"));
}

#[tokio::test]
async fn thinking_is_disabled_wherever_the_model_allows_it() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    for (plan, thinking) in [("free", "disabled"), ("pro", "between_tools")] {
        app.sql(&format!("update users set plan = '{plan}'")).await;
        let discussion = ada.discussion().await;
        app.claude.next(Script::say("One two three."));
        let reply = ada.send(&discussion, "Why?").await.json["reply"].clone();
        assert_eq!(
            app.claude.requests().last().unwrap().body["thinking"],
            json!({"type": thinking})
        );
        // The text and nothing else.
        assert_eq!(
            (&reply["content"], &reply["usage"]["output_tokens"]),
            (&json!("One two three."), &json!(4))
        );
    }
}

#[tokio::test]
async fn messages_are_paged_newest_first() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    for content in ["one", "two", "three"] {
        assert_eq!(ada.send(&discussion, content).await.status, 201);
    }
    let page = ada
        .get(&format!("/api/discussions/{discussion}/messages?limit=4"))
        .await
        .json;
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(page["data"][1]["content"], "three");
    let last = ada
        .get(&format!(
            "/api/discussions/{discussion}/messages?limit=4&cursor={cursor}"
        ))
        .await
        .json;
    assert_eq!(
        (&last["data"][1]["content"], &last["next_cursor"]),
        (&json!("one"), &json!(null))
    );
}

#[tokio::test]
async fn one_idempotency_key_calls_claude_once() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let first = ada.send_with_key(&discussion, "Why?", "k-1").await;
    let again = ada.send_with_key(&discussion, "Why?", "k-1").await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    assert_eq!(
        (
            first.header("idempotent-replayed"),
            again.header("idempotent-replayed")
        ),
        ("", "true")
    );
    assert_eq!(first.json, again.json);
    assert_eq!(
        ada.send_with_key(&discussion, "Why not?", "k-1")
            .await
            .problem(),
        (422, "idempotency_key_reused")
    );
    let other = ada.discussion().await;
    assert_eq!(
        ada.send_with_key(&other, "Why?", "k-1").await.problem(),
        (422, "idempotency_key_reused")
    );
    assert_eq!(app.claude.requests().len(), 1);
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
}

#[tokio::test]
async fn of_parallel_sends_with_one_key_exactly_one_counts() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let answers = join_all((0..8).map(|_| ada.send_with_key(&discussion, "Why?", "k-1"))).await;
    for answer in &answers {
        let expected = matches!(
            answer.problem(),
            (201, "") | (409, "request_in_progress" | "reply_in_progress")
        );
        assert!(expected, "{} {}", answer.status, answer.json);
    }
    assert!(answers.iter().any(|answer| answer.status == 201));
    assert_eq!(
        app.value("select count(*) from usage_events where counted")
            .await,
        "1"
    );
    app.assert_every_call_is_in_the_ledger().await;
    assert_eq!(
        ada.send_with_key(&discussion, "Why?", "k-1")
            .await
            .header("idempotent-replayed"),
        "true"
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
    assert_eq!(app.value("select count(*) from messages").await, "2");
}

#[tokio::test]
async fn a_discussion_has_one_running_reply() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let answers = join_all((0..10).map(|_| ada.send(&discussion, "Why?"))).await;
    let answered = answers.iter().filter(|answer| answer.status == 201).count();
    for refused in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(refused.problem(), (409, "reply_in_progress"));
    }
    assert_eq!(
        app.value("select count(*) from usage_events where outcome = 'complete'")
            .await,
        answered.to_string()
    );
    app.assert_every_call_is_in_the_ledger().await;
    // On a busy machine Redis may have missed some of the sends.
    app.reconcile().await;
    assert_eq!(
        ada.get("/api/auth/session").await.json["quota"]["used"],
        answered
    );
    assert_eq!(
        ada.get(&format!("/api/discussions/{discussion}"))
            .await
            .json["message_count"],
        answered * 2
    );
}

#[tokio::test]
async fn a_key_whose_process_died_replays_the_partial_reply_or_is_free_again() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    for (said, status) in [(1, "partial"), (0, "complete")] {
        let discussion = ada.discussion().await;
        app.claude
            .next(Script::from(Behaviour::Stall { after: said }).with_text("One two."));
        let sent = ada.send_with_key(&discussion, "Why?", &discussion);
        let died = async {
            let text = if said > 0 { "content <> ''" } else { "true" };
            let running =
                format!("select count(*) from messages where status = 'streaming' and {text}");
            app.eventually(&running, "1").await;
        };
        tokio::select! {
            answer = sent => panic!("it did not stall: {answer:?}"),
            () = died => {}
        }
        app.sql("update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'").await;
        let again = async || ada.send_with_key(&discussion, "Why?", &discussion).await;
        assert_eq!(
            again().await.problem(),
            (409, "request_in_progress"),
            "{status}"
        );
        let answer = again().await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json["reply"]["status"]),
            (201, &json!(status)),
            "{}",
            answer.json
        );
    }
}

#[tokio::test]
async fn a_key_is_not_claimed_for_a_discussion_that_is_deleted_at_the_same_time() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let delete = format!(
        "begin; delete from discussions where id = '{discussion}'; select pg_sleep(1.5); commit"
    );
    let sent = async {
        let deleting = "select count(*) from pg_stat_activity where query like 'begin; delete%pg_sleep%' and state = 'active'";
        app.eventually(deleting, "1").await;
        ada.send_with_key(&discussion, "Why?", "k-1").await
    };
    let ((), answer) = tokio::join!(app.sql(&delete), sent);
    assert_eq!(answer.problem(), (404, "not_found"));
    let other = ada.discussion().await;
    assert_eq!(ada.send_with_key(&other, "Why?", "k-1").await.status, 201);
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
}

#[tokio::test]
async fn only_a_character_that_postgres_cannot_store_is_dropped() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Script::say("One\0 \0 two."));
    let events = ada.stream(&discussion, "Why?").await.rest().await;
    let said: String = events
        .iter()
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    assert_eq!(
        (said.as_str(), events.last().unwrap().name.as_str()),
        ("One  two.", "done")
    );
    assert_eq!(events.last().unwrap().data["reply"]["content"], "One  two.");
}
