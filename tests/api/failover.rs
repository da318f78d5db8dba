//! What one reply's failure means for the next one.

use claude::Deadlines;
use iconoclash_fakes::claude::{Behaviour, Failure, Only};
use serde_json::json;
use std::time::Duration;

use crate::keys::with_keys;

#[tokio::test]
async fn a_key_whose_reply_broke_off_comes_last_for_a_while_unless_the_reply_was_too_long() {
    let deadlines = Deadlines {
        whole: Duration::from_secs(2),
        ..Deadlines::default()
    };
    let app = with_keys("a=sk-a,b=sk-b", &[], deadlines).await;
    let ada = app.member("ada").await;
    for (fault, next) in [
        (Behaviour::Cut { after: 1 }, "b"),
        (Behaviour::Stall { after: 1 }, "a"),
    ] {
        let likely = |of: &str| app.app.claude().unwrap().likely_key(of.parse().unwrap());
        let discussion = loop {
            app.advance(time::Duration::MINUTE);
            let discussion = ada.discussion().await;
            if likely(&discussion) == "a" {
                break discussion;
            }
        };
        app.claude.next(fault.clone());
        assert_eq!(
            ada.send(&discussion, "Why?").await.json["reply"]["status"],
            "partial",
            "{fault:?}"
        );
        assert_eq!(likely(&discussion), next, "{fault:?}");
        app.advance(time::Duration::seconds(11));
        assert_eq!(likely(&discussion), "a", "{fault:?}");
    }
}

#[tokio::test]
async fn a_model_that_failed_just_now_is_asked_where_the_other_does_not_answer() {
    let app = with_keys("a=sk-a", &[("QUOTA_PRO", "1000")], Deadlines::default()).await;
    let ada = app.member("ada").await;
    app.sql("update users set plan = 'pro'").await;
    let discussion = ada.discussion().await;
    let models = || {
        app.claude
            .requests()
            .into_iter()
            .map(|it| it.body["model"].clone())
            .collect::<Vec<_>>()
    };
    let (sonnet, haiku) = (json!("claude-sonnet-5-5"), json!("claude-haiku-5-5"));
    app.claude.next(Failure::Overloaded);
    assert_eq!(
        ada.send(&discussion, "Why?").await.json["reply"]["model"],
        haiku
    );
    app.claude
        .always_for(Only::model("claude-haiku-5-5"), Failure::Overloaded);
    assert_eq!(
        ada.send(&discussion, "Again?").await.json["reply"]["model"],
        sonnet
    );
    assert_eq!(
        models(),
        [&sonnet, &haiku, &haiku, &sonnet].map(Clone::clone)
    );
}

#[tokio::test]
async fn what_a_message_learns_is_told_when_it_ends_however_short_it_was() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Failure::RateLimited {
        retry_after_secs: 60,
    });
    // Within a second, in which nobody tells anything but at a message's end; a busy Redis may miss that once.
    for _ in 0..3 {
        assert_eq!(
            ada.send(&discussion, "Why?").await.problem(),
            (503, "unavailable")
        );
        app.background.idle().await;
        if app.redis_command(&["ZCARD", "{keys}:cooling"]).await == json!(1) {
            return;
        }
    }
    panic!("nobody else knows");
}
