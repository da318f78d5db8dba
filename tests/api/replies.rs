//! Replies that fail, break off, or lose their client.

use axum::body::Body;
use claude::{Deadlines, Usage};
use http::Method;
use iconoclash_fakes::claude::{Behaviour, Failure, Script};
use serde_json::json;
use std::time::Duration;

use crate::harness::TestApp;

const LEDGER: &str = "select outcome, counted, estimated from usage_events";

#[tokio::test]
async fn a_stream_that_breaks_off_leaves_a_partial_reply_and_says_so() {
    let hasty = Deadlines {
        silence: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let app = TestApp::adjusted(&[], |config| {
        config.claude.as_mut().unwrap().deadlines = hasty
    })
    .await;
    let ada = app.member("ada").await;
    for fault in [
        Behaviour::Cut { after: 3 },
        Behaviour::Malformed { after: 3 },
        Behaviour::Error { after: 3 },
        Behaviour::Stall { after: 3 },
    ] {
        let discussion = ada.discussion().await;
        app.claude.next(fault.clone());
        let events = ada.stream(&discussion, "Why?").await.rest().await;
        let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(
            names,
            ["start", "delta", "delta", "delta", "failed"],
            "{fault:?}"
        );
        assert_eq!(
            (&events[4].data["code"], &events[4].data["status"]),
            (&json!("reply_interrupted"), &json!(502))
        );
        assert!(events[4].data["request_id"].is_string());
        let text: String = events[1..4]
            .iter()
            .map(|event| event.data["text"].as_str().unwrap())
            .collect();
        let kept = ada
            .get(&format!("/api/discussions/{discussion}/messages"))
            .await
            .json;
        assert_eq!(
            (&kept["data"][0]["status"], &kept["data"][0]["content"]),
            (&json!("partial"), &json!(text)),
            "{fault:?}"
        );

        app.claude.next(fault.clone());
        let whole = ada.send(&discussion, "And in one piece?").await;
        assert_eq!(
            (whole.status.as_u16(), &whole.json["reply"]["status"]),
            (201, &json!("partial")),
            "{fault:?}"
        );
    }
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 8);
    assert_eq!(
        app.value(&format!("{LEDGER} group by 1, 2, 3")).await,
        "partial,t,t"
    );
}

#[tokio::test]
async fn a_call_that_fails_before_any_token_costs_nothing_and_can_be_retried() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    for (fault, retry_after) in [
        (Script::from(Failure::Overloaded), "10"),
        (Failure::OwnSpendLimit.into(), "10"),
        (Failure::Internal.into(), "10"),
        (Failure::Invalid.into(), "10"),
        (Behaviour::Drop.into(), "10"),
        (
            Failure::RateLimited {
                retry_after_secs: 37,
            }
            .into(),
            "37",
        ),
    ] {
        app.claude.clear();
        app.claude.always(fault.clone());
        let refused = ada.send_with_key(&discussion, "Why?", "k-1").await;
        assert_eq!(
            (refused.problem(), refused.header("retry-after")),
            ((503, "unavailable"), retry_after),
            "{fault:?}"
        );
        assert!(
            !refused
                .json
                .to_string()
                .to_lowercase()
                .contains("anthropic"),
            "{}",
            refused.json
        );
        assert_eq!(
            ada.get("/api/auth/session").await.json["quota"]["used"],
            0,
            "{fault:?}"
        );
    }
    assert_eq!(
        app.value("select outcome, counted, cost_microusd from usage_events group by 1, 2, 3")
            .await,
        "failed,f,0"
    );
    app.claude.clear();
    app.advance(time::Duration::seconds(37));
    let answered = ada.send_with_key(&discussion, "Why?", "k-1").await;
    assert_eq!(
        (
            answered.status.as_u16(),
            answered.header("idempotent-replayed")
        ),
        (201, "")
    );
    let asked = app.claude.requests().last().unwrap().body["messages"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(asked, 1, "what failed is not told again");
}

#[tokio::test]
async fn a_billed_reply_counts_even_without_text() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Error { after: 0 });
    let events = ada.stream(&discussion, "Why?").await.rest().await;
    assert_eq!(
        (events.len(), &events[1].data["code"]),
        (2, &json!("unavailable"))
    );
    app.claude.next(Behaviour::Error { after: 0 });
    assert_eq!(
        ada.send(&discussion, "Why?").await.problem(),
        (503, "unavailable")
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 2);
    assert_eq!(
        app.value(&format!("{LEDGER} where cost_microusd > 0 limit 1"))
            .await,
        "failed,t,f"
    );
}

#[tokio::test]
async fn a_client_that_leaves_after_the_first_word_finds_the_whole_reply() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let usage = Usage {
        input: 700,
        cache_read: 20,
        output: 90,
        ..Usage::default()
    };
    app.claude.next(
        Script::from(Behaviour::Hold { after: 1 })
            .with_text("I know that I know nothing, and you?")
            .with_usage(usage),
    );
    let mut stream = ada.stream(&discussion, "Why?").await;
    stream.first_delta().await;
    drop(stream);
    app.claude.release();
    app.background.idle().await;
    let reply = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json["data"][0]
        .clone();
    assert_eq!(
        (&reply["status"], &reply["content"]),
        (
            &json!("complete"),
            &json!("I know that I know nothing, and you?")
        )
    );
    let expected = json!({"input_tokens": 700, "cache_write_tokens": 0, "cache_read_tokens": 20, "output_tokens": 90, "cost_microusd": 116});
    assert_eq!(reply["usage"], expected);
    assert_eq!(
        app.value("select outcome, cost_microusd from usage_events")
            .await,
        "complete,116"
    );
    assert_eq!(app.claude.cancelled(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_before_any_answer_finds_the_whole_reply() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 0 });
    {
        let body = Body::from(json!({"content": "Why?"}).to_string());
        let request = ada.prepare(
            &Method::POST,
            &format!("/api/discussions/{discussion}/messages"),
            &[],
            body,
        );
        let answer = app.call(request);
        tokio::pin!(answer);
        tokio::select! {
            _ = &mut answer => panic!("the reply is on hold"),
            _ = app.claude.wait_for_requests(1) => {}
        }
    }
    app.claude.release();
    app.background.idle().await;
    let kept = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(
        (&kept["data"][0]["status"], &kept["data"][1]["content"]),
        (&json!("complete"), &json!("Why?"))
    );
    assert_eq!(app.value(LEDGER).await, "complete,t,f");
}

#[tokio::test]
async fn a_running_reply_is_saved_as_it_grows() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 2 });
    let mut stream = ada.stream(&discussion, "Why?").await;
    let mut text = String::new();
    for _ in 0..3 {
        text.push_str(
            stream.next().await.unwrap().data["text"]
                .as_str()
                .unwrap_or_default(),
        );
    }
    let running = "select status, content <> '' from messages where role = 'assistant'";
    app.eventually(running, "streaming,t").await;
    assert_eq!(
        app.value("select content from messages where role = 'assistant'")
            .await
            .trim_matches('"'),
        text
    );
    assert_eq!(
        app.value("select outcome, estimated, cost_microusd > 0 from usage_events")
            .await,
        "running,t,t"
    );
    app.claude.release();
    assert_eq!(stream.rest().await.last().unwrap().name, "done");
}

#[tokio::test]
async fn a_dead_producers_reply_ends_with_its_lease_and_a_slow_one_still_completes() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Hold { after: 1 }).with_text("One. Two. Three."));
    let mut stream = ada.stream(&discussion, "Why?").await;
    stream.first_delta().await;
    assert_eq!(
        ada.send(&discussion, "Hello?").await.problem(),
        (409, "reply_in_progress")
    );
    app.eventually(
        "select content <> '' from messages where role = 'assistant'",
        "t",
    )
    .await;
    app.sql("update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'").await;
    assert_eq!(ada.send(&discussion, "Hello?").await.status, 201);
    assert_eq!(
        app.value("select count(*) from messages where status = 'partial'")
            .await,
        "1"
    );
    assert_eq!(
        app.value("select outcome, estimated from usage_events order by created_at limit 1")
            .await,
        "partial,t"
    );
    app.claude.release();
    let events = stream.rest().await;
    assert_eq!(
        events.last().unwrap().data["reply"]["content"],
        "One. Two. Three."
    );
    assert_eq!(
        app.value("select count(*) from messages where status <> 'complete'")
            .await,
        "0"
    );
    assert_eq!(
        app.value(&format!("{LEDGER} group by 1, 2, 3")).await,
        "complete,t,f"
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 2);
}

#[tokio::test]
async fn deleting_a_discussion_stops_its_reply_at_the_provider() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussion, "Why?").await;
    stream.first_delta().await;
    assert_eq!(
        ada.delete(&format!("/api/discussions/{discussion}"))
            .await
            .status,
        204
    );
    // The fake holds the reply until its client leaves.
    app.claude.wait_for_cancelled(1).await;
    assert_eq!(stream.rest().await.last().unwrap().name, "done");
    assert_eq!(app.value(LEDGER).await, "stopped,t,t");
    assert_eq!(app.value("select count(*) from messages").await, "0");
}

#[tokio::test]
async fn unknown_events_of_the_provider_do_not_break_a_reply() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    for novelty in [
        Behaviour::Strange,
        Behaviour::OnlyThinking,
        Behaviour::Refusal,
        Behaviour::MaxTokens,
    ] {
        let discussion = ada.discussion().await;
        app.claude.next(novelty.clone());
        let answer = ada.send(&discussion, "Why?").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json["reply"]["status"]),
            (201, &json!("complete")),
            "{novelty:?}"
        );
        assert_eq!(
            ada.send(&discussion, "Go on.").await.status,
            201,
            "{novelty:?}"
        );
    }
}
