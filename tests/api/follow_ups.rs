//! Titles and summaries, made by the small model after a reply, under the same budgets.

use claude::Usage;
use iconoclash_fakes::claude::{Behaviour, Failure, Script};
use serde_json::{Value, json};
use std::time::Duration;

use crate::harness::{Actor, TestApp};

/// A discussion without a title of its own.
async fn untitled(ada: &Actor<'_>) -> String {
    let begun = ada
        .post(
            "/api/discussions",
            json!({"icons": ["socrates"], "topic": "Is doubt a virtue?"}),
        )
        .await;
    begun.json["id"].as_str().unwrap().to_owned()
}

async fn title(ada: &Actor<'_>, discussion: &str) -> Value {
    ada.get(&format!("/api/discussions/{discussion}"))
        .await
        .json["title"]
        .clone()
}

fn texts(request: &Value) -> Vec<&str> {
    let turns = request["messages"].as_array().unwrap().iter();
    turns
        .flat_map(|turn| turn["content"].as_array().unwrap())
        .map(|block| block["text"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn the_small_model_names_an_untitled_discussion_after_its_first_reply() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    app.sql("update users set plan = 'pro'").await;
    let discussion = untitled(&ada).await;
    assert_eq!(title(&ada, &discussion).await, "Is doubt a virtue?");
    app.claude.next(Script::say("What do you doubt?"));
    app.claude.next(Script::say("**The worth of doubt.**"));
    assert_eq!(ada.send(&discussion, "I doubt it.").await.status, 201);
    app.background.idle().await;
    assert_eq!(title(&ada, &discussion).await, "The worth of doubt");
    let asked = app.claude.requests();
    assert_eq!(
        (&asked[0].body["model"], &asked[1].body["model"]),
        (&json!("claude-sonnet-5-5"), &json!("claude-haiku-5-5"))
    );
    let told = texts(&asked[1].body).concat();
    assert!(
        told.contains("I doubt it.") && told.contains("What do you doubt?"),
        "{told}"
    );
    let ledger = "select counted, estimated, cost_microusd > 0, price_date from usage_events where kind = 'title'";
    assert_eq!(app.value(ledger).await, "f,f,t,2026-10-07");
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
    app.assert_counters_equal_the_ledger().await;
    // The second reply does not rename it.
    ada.send(&discussion, "Go on.").await;
    app.background.idle().await;
    assert_eq!(app.claude.requests().len(), 3);
}

#[tokio::test]
async fn a_title_that_the_user_set_stays() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let named = ada.discussion().await;
    ada.send(&named, "I doubt it.").await;
    let renamed = untitled(&ada).await;
    ada.patch(
        &format!("/api/discussions/{renamed}"),
        json!({"title": "Mine"}),
    )
    .await;
    ada.send(&renamed, "I doubt it.").await;
    app.background.idle().await;
    assert_eq!(app.claude.requests().len(), 2);
    let meanwhile = untitled(&ada).await;
    app.claude.next(Script::say("What do you doubt?"));
    app.claude
        .next(Script::from(Behaviour::Hold { after: 0 }).with_text("Doubt"));
    ada.send(&meanwhile, "I doubt it.").await;
    app.claude.wait_for_requests(4).await;
    ada.patch(
        &format!("/api/discussions/{meanwhile}"),
        json!({"title": "Mine, too"}),
    )
    .await;
    app.claude.release();
    app.background.idle().await;
    assert_eq!(
        (title(&ada, &renamed).await, title(&ada, &meanwhile).await),
        (json!("Mine"), json!("Mine, too"))
    );
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn without_budget_or_after_a_failure_only_the_title_is_missing() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    // The first overload is retried.
    for (fault, times) in [
        (Script::from(Failure::Overloaded), 2),
        (Behaviour::Refusal.into(), 1),
        (Script::say("x ".repeat(50)), 1),
    ] {
        let discussion = untitled(&ada).await;
        app.claude.next(Script::say("What do you doubt?"));
        (0..times).for_each(|_| app.claude.next(fault.clone()));
        assert_eq!(
            ada.send(&discussion, "I doubt it.").await.json["reply"]["status"],
            "complete"
        );
        app.background.idle().await;
        assert_eq!(title(&ada, &discussion).await, "Is doubt a virtue?");
    }
    let outcomes = "select string_agg(outcome, ' ' order by created_at) from usage_events where kind = 'title'";
    assert_eq!(
        app.value(outcomes).await.trim_matches('"'),
        "failed failed complete"
    );
    app.assert_counters_equal_the_ledger().await;

    let asked = app.claude.requests().len();
    let bob = app.member("bob").await;
    let discussion = untitled(&bob).await;
    // Room for the reply's hold, and almost none after the reply has cost more than that.
    app.sql("update budgets set limit_microusd = 9000 where scope = 'free'")
        .await;
    app.claude.next(Script::say("Dear.").with_usage(Usage {
        output: 17_900,
        ..Usage::default()
    }));
    assert_eq!(bob.send(&discussion, "I doubt it.").await.status, 201);
    app.background.idle().await;
    assert_eq!(app.claude.requests().len(), asked + 1);
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn a_background_call_that_is_too_late_is_dropped_and_booked() {
    let app = TestApp::adjusted(&[], |config| {
        config.timeouts.background_call = Duration::from_millis(300)
    })
    .await;
    let ada = app.member("ada").await;
    for (given_up, silence) in [Behaviour::Hang, Behaviour::Stall { after: 1 }]
        .into_iter()
        .enumerate()
    {
        let discussion = untitled(&ada).await;
        app.claude.next(Script::say("What do you doubt?"));
        app.claude
            .next(Script::from(silence).with_text("Late but good"));
        assert_eq!(
            ada.send(&discussion, "I doubt it.").await.json["reply"]["status"],
            "complete"
        );
        app.background.idle().await;
        app.claude.wait_for_cancelled(given_up + 1).await;
        assert_eq!(title(&ada, &discussion).await, "Is doubt a virtue?");
    }
    let ledger = "select string_agg(concat(outcome, ' ', estimated, ' ', cost_microusd > 0), ', ') from usage_events \
                  where kind = 'title'";
    assert_eq!(
        app.value(ledger).await.trim_matches('"'),
        "failed t t, failed t t"
    );
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn without_redis_there_are_no_background_calls() {
    let app = TestApp::with(&[("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9")]).await;
    let ada = app.member("ada").await;
    let discussion = untitled(&ada).await;
    assert_eq!(ada.send(&discussion, "I doubt it.").await.status, 201);
    app.background.idle().await;
    assert_eq!(app.claude.requests().len(), 1);
    assert_eq!(app.value("select count(*) from usage_events").await, "1");
}

#[tokio::test]
async fn a_long_conversation_is_sent_as_its_summary_and_its_newest_turns() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let long = |name: &str| format!("{name} {}", "word ".repeat(1_500));
    for name in ["first", "second", "third"] {
        app.claude
            .next(Script::say(long("reply")).with_usage(Usage {
                input: 10,
                output: 10,
                ..Usage::default()
            }));
        if name == "third" {
            app.claude.next(Script::say("They doubt."));
        }
        assert_eq!(ada.send(&discussion, &long(name)).await.status, 201);
        app.background.idle().await;
    }
    // The summary is made from the older part alone.
    let requests = app.claude.requests();
    let told = texts(&requests[3].body).concat();
    assert!(
        told.contains("first") && told.contains("second") && !told.contains("minutes so far"),
        "{told}"
    );
    assert_eq!(
        app.value("select summary from discussions")
            .await
            .trim_matches('"'),
        "They doubt."
    );

    assert_eq!(ada.send(&discussion, "And now?").await.status, 201);
    app.background.idle().await;
    let asked = app.claude.requests().pop().unwrap().body;
    assert_eq!(
        asked["system"], requests[0].body["system"],
        "the prefix that the cache keeps is the same"
    );
    let said = texts(&asked);
    assert!(
        said[0].contains("They doubt.") && said.last() == Some(&"And now?"),
        "{said:?}"
    );
    assert!(
        said.concat().len() < 12_000 && !said.concat().contains("first"),
        "{said:?}"
    );
    let marked = |block: &Value| block["cache_control"].is_object();
    assert!(marked(&asked["messages"][0]["content"][0]) && marked(&asked["system"][0]));
    // The next summary is made from this one and the messages since.
    for _ in 0..3 {
        app.claude
            .next(Script::say(long("later")).with_usage(Usage {
                input: 10,
                output: 10,
                ..Usage::default()
            }));
        ada.send(&discussion, &long("more")).await;
        app.background.idle().await;
    }
    let summed = app.claude.requests().pop().unwrap().body;
    assert!(
        texts(&summed)
            .concat()
            .contains("The minutes so far:\nThey doubt.")
    );
    assert_eq!(
        app.value("select count(*) from usage_events where kind = 'summary' and not counted")
            .await,
        "2"
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 7);
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn a_background_call_of_a_dead_process_is_reconciled_and_returns_no_message() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = untitled(&ada).await;
    app.claude.next(Script::say("What do you doubt?"));
    app.claude.next(Behaviour::Hang);
    assert_eq!(ada.send(&discussion, "I doubt it.").await.status, 201);
    app.eventually(
        "select outcome from usage_events where kind = 'title' limit 1",
        "running",
    )
    .await;
    app.claude.wait_for_requests(2).await;
    app.sql("update usage_events set created_at = created_at - interval '11 minutes' where kind = 'title'").await;
    let cron = app.bearer("a-cron-secret-of-32-characters!!");
    for _ in 0..2 {
        assert_eq!(cron.get("/api/cron/reconcile").await.status, 200);
    }
    assert_eq!(
        app.value("select outcome, counted, estimated from usage_events where kind = 'title'")
            .await,
        "partial,f,t"
    );
    assert_eq!(ada.get("/api/auth/session").await.json["quota"]["used"], 1);
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn several_icons_answer_in_turn_in_one_message() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let icons = json!({"icons": ["socrates", "hypatia"], "title": "Two"});
    let discussion = ada.post("/api/discussions", icons).await.json["id"]
        .as_str()
        .unwrap()
        .to_owned();
    app.claude.next(Script::say(
        "**Socrates:** What is a circle?\n\n**Hypatia:** A cut cone, Socrates.",
    ));
    let done = ada
        .stream(&discussion, "What is round?")
        .await
        .rest()
        .await
        .pop()
        .unwrap();
    let parts = json!([
        {"icon": "socrates", "text": "What is a circle?"}, {"icon": "hypatia", "text": "A cut cone, Socrates."}
    ]);
    assert_eq!(
        (&done.data["reply"]["parts"], &done.data["quota"]["used"]),
        (&parts, &json!(1))
    );
    let kept = ada
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(
        (&kept["data"][0]["parts"], kept["data"][1].get("parts")),
        (&parts, None)
    );
    let again = ada
        .resume(kept["data"][0]["id"].as_str().unwrap(), Some(1))
        .await
        .rest()
        .await
        .pop()
        .unwrap();
    assert_eq!(again.data["reply"], done.data["reply"]);
    let answer = ada.send(&discussion, "And without names?").await.json;
    assert_eq!(
        answer["reply"]["parts"],
        json!([{"icon": "socrates", "text": answer["reply"]["content"]}])
    );
    let alone = ada.discussion().await;
    assert_eq!(
        ada.send(&alone, "Why?").await.json["reply"].get("parts"),
        None
    );
}
