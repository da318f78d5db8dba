//! The effect of one reply's failure on later replies.

use claude::Deadlines;
use iconoclash_fakes::claude::{Behaviour, Failure, Only};
use serde_json::json;
use std::time::Duration;

use crate::{
    harness::TestApp,
    keys::{conversation, with_keys},
};

fn likely_key(app: &TestApp, discussion: &str) -> String {
    let pool = app.app.claude().unwrap();
    pool.likely_key(discussion.parse().unwrap())
}

#[tokio::test]
async fn a_key_whose_reply_broke_off_comes_last_for_a_while_unless_the_reply_was_too_long() {
    let deadlines = Deadlines {
        whole: Duration::from_secs(2),
        ..Deadlines::default()
    };
    let app = with_keys("a=sk-a,b=sk-b", &[], deadlines).await;
    let ada = app.member("ada").await;

    for (fault, expected_key) in [
        (Behaviour::Cut { after: 1 }, "b"),
        (Behaviour::Stall { after: 1 }, "a"),
    ] {
        let discussion = loop {
            // Discussions have a rate limit.
            app.advance(time::Duration::MINUTE);
            let discussion = ada.discussion().await;
            if likely_key(&app, &discussion) == "a" {
                break discussion;
            }
        };

        app.claude.next(fault.clone());
        let answer = ada.send(&discussion, "Why?").await;
        assert_eq!(answer.json["reply"]["status"], "partial", "{fault:?}");
        assert_eq!(likely_key(&app, &discussion), expected_key, "{fault:?}");

        app.advance(time::Duration::seconds(11));
        assert_eq!(likely_key(&app, &discussion), "a", "{fault:?}");
    }
}

#[tokio::test]
async fn a_model_that_failed_a_moment_ago_is_used_if_the_other_model_fails() {
    let app = with_keys("a=sk-a", &[("QUOTA_PRO", "1000")], Deadlines::default()).await;
    let conversation = conversation(&app).await;
    app.sql("update users set plan = 'pro'").await;
    let sonnet = json!("claude-sonnet-5-5");
    let haiku = json!("claude-haiku-5-5");

    app.claude.next(Failure::Overloaded);
    let answer = conversation.send().await;
    assert_eq!(answer.json["reply"]["model"], haiku);

    app.claude
        .always_for(Only::model("claude-haiku-5-5"), Failure::Overloaded);
    let answer = conversation.send().await;
    assert_eq!(answer.json["reply"]["model"], sonnet);

    let requests = app.claude.requests();
    let models: Vec<_> = requests
        .iter()
        .map(|request| &request.body["model"])
        .collect();
    assert_eq!(models, [&sonnet, &haiku, &haiku, &sonnet]);
}

#[tokio::test]
async fn a_cooldown_is_published_at_the_end_of_a_message_however_short_it_was() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    let conversation = conversation(&app).await;
    app.claude.next(Failure::RateLimited {
        retry_after_secs: 60,
    });

    // All attempts fall into one publishing interval, so only the end of a message publishes. A busy Redis may miss one.
    for _ in 0..3 {
        let refused = conversation.send().await;
        assert_eq!(refused.problem(), (503, "unavailable"));
        app.background.idle().await;
        if app.redis_command(&["ZCARD", "{keys}:cooling"]).await == json!(1) {
            return;
        }
    }
    panic!("the cooldown was not published");
}

#[tokio::test]
async fn an_attempt_that_may_be_billed_is_in_the_ledger_beside_the_reply() {
    let deadlines = Deadlines {
        first_event: Duration::from_secs(3),
        ..Deadlines::default()
    };
    let app = with_keys("a=sk-a,b=sk-b", &[], deadlines).await;
    let conversation = conversation(&app).await;

    // The first attempt gets no answer in time; the second one replies.
    app.claude.next(Behaviour::Hang);
    let answer = conversation.send().await;
    assert_eq!(answer.status, 201, "{}", answer.json);
    app.background.idle().await;
    assert_eq!(app.claude.requests().len(), 2);

    let rows =
        "select outcome, counted::text, estimated::text, (cost_microusd > 0)::text, key_label
        from usage_events order by created_at, request_id";
    let mut rows = app.rows(rows).await;
    rows.sort();
    assert_eq!(rows[0][..4], ["complete", "true", "false", "true"]);
    assert_eq!(rows[1][..4], ["failed", "false", "true", "true"]);
    assert_ne!(rows[0][4], rows[1][4], "two keys");
    assert_eq!(rows.len(), 2);
}
