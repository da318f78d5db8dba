//! Resuming a reply's stream after its connection broke.

use futures_util::{StreamExt, stream};
use iconoclash_fakes::claude::{Behaviour, Script};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::json;
use std::time::Duration;

use http::Method;

use crate::harness::{Actor, Event, TestApp};

/// The part of a reply that a client has received.
#[derive(Default)]
struct Heard {
    text: String,
    last: u64,
    ended: bool,
}

impl Heard {
    fn take(&mut self, event: &Event) {
        assert!(event.id > self.last, "{} after {}", event.id, self.last);
        self.last = event.id;
        match event.name.as_str() {
            "start" => assert!(self.text.is_empty(), "it began again"),
            "delta" => self.text.push_str(event.data["text"].as_str().unwrap()),
            "done" => {
                self.ended = true;
                assert_eq!(event.data["reply"]["content"], self.text);
            }
            other => panic!("{other}: {}", event.data),
        }
    }
}

/// Words of all widths, so that no position but the right one fits.
fn words(chance: &mut SmallRng) -> String {
    let words = [
        "doubt ",
        "étonnement ",
        "知識は ",
        "🦉 ",
        "I ",
        "“know” ",
        "nothing\n\n",
        "и ничего ",
    ];
    (0..chance.random_range(40..100))
        .map(|_| words[chance.random_range(0..words.len())])
        .collect()
}

/// Receives a reply through connections that break at random events, each resumed on another instance. Returns how often
/// one broke while the reply ran, and after its end.
async fn listen_through_cuts(
    first: Actor<'_>,
    others: [Actor<'_>; 2],
    seed: u64,
) -> (usize, usize) {
    let mut chance = SmallRng::seed_from_u64(seed);
    let discussion = first.discussion().await;
    let mut heard = Heard::default();
    let mut events = first.stream(&discussion, "Why?").await;
    let start = events.next().await.unwrap();
    let reply = start.data["reply_id"].as_str().unwrap().to_owned();
    heard.take(&start);
    let mut ids = vec![heard.last];
    let (mut running, mut after) = (0, 0);
    for round in 0.. {
        for _ in 0..chance.random_range(0..2) {
            let Some(event) = events.next().await else {
                panic!("it ended without an end")
            };
            heard.take(&event);
            ids.push(event.id);
            if heard.ended {
                break;
            }
        }
        if heard.ended {
            break;
        }
        running += 1;
        events = others[round % 2].resume(&reply, Some(heard.last)).await;
    }
    let text = heard.text;
    let kept = first
        .get(&format!("/api/discussions/{discussion}/messages"))
        .await
        .json;
    assert_eq!(kept["data"][0]["content"], text);
    // After the end, every event id yields exactly the rest.
    ids.pop();
    while running + after < 20 {
        let from = ids[chance.random_range(0..ids.len())];
        let rest = others[after % 2]
            .resume(&reply, Some(from))
            .await
            .rest()
            .await;
        let said: String = rest
            .iter()
            .filter_map(|event| event.data["text"].as_str())
            .collect();
        let had: String = text
            .chars()
            .take(usize::try_from(from - 1).unwrap())
            .collect();
        assert_eq!(format!("{had}{said}"), text);
        assert_eq!(rest.last().unwrap().name, "done");
        after += 1;
    }
    (running, after)
}

#[tokio::test]
async fn a_thousand_cuts_lose_and_repeat_nothing() {
    let app = TestApp::paced(Duration::from_millis(50), &[("QUOTA_FREE", "1000")], |_| {}).await;
    let (second, third) = (app.another(), app.another());
    app.sql("update budgets set limit_microusd = 1000000000")
        .await;
    let mut members = Vec::new();
    for user in 0..10 {
        members.push(app.member(&format!("user{user}")).await);
    }
    let mut chance = SmallRng::seed_from_u64(7);
    (0..50).for_each(|_| app.claude.next(Script::say(words(&mut chance))));
    let cuts = stream::iter(0..50_u64).map(|seed| {
        let first = members[usize::try_from(seed).unwrap() % 10].clone();
        let token = first.token.as_deref().unwrap();
        let others = [second.bearer(token), third.bearer(token)];
        listen_through_cuts(first, others, seed)
    });
    let cuts: Vec<(usize, usize)> = cuts.buffer_unordered(10).collect().await;
    let (running, after) = cuts
        .iter()
        .fold((0, 0), |sum, cut| (sum.0 + cut.0, sum.1 + cut.1));
    eprintln!("{running} cuts while a reply ran, {after} after its end");
    assert!(
        running + after >= 1_000 && running >= 300,
        "{running} and {after}"
    );
    app.background.idle().await;
    app.assert_counters_equal_the_ledger().await;
}

#[tokio::test]
async fn a_reply_streams_from_the_start_without_a_last_event_id() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Hold { after: 2 }).with_text("One two three."));
    let mut sent = ada.stream(&discussion, "Why?").await;
    let start = sent.next().await.unwrap();
    let reply = start.data["reply_id"].as_str().unwrap();
    let other = app.another();
    let mut resumed = other
        .bearer(ada.token.as_deref().unwrap())
        .resume(reply, None)
        .await;
    let again = resumed.next().await.unwrap();
    assert_eq!((again.id, &again.data), (start.id, &start.data));
    app.eventually(
        "select content from messages where role = 'assistant'",
        "\"One two \"",
    )
    .await;
    assert_eq!(
        resumed.next().await.unwrap().data,
        json!({"text": "One two "})
    );
    app.claude.release();
    let (rest, sent) = (resumed.rest().await, sent.rest().await);
    let said: String = rest
        .iter()
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    let (done, told) = (rest.last().unwrap(), sent.last().unwrap());
    assert_eq!(
        (said.as_str(), &done.data, done.id),
        ("three.", &told.data, told.id)
    );
}

#[tokio::test]
async fn a_stream_that_reaches_its_time_limit_has_no_end_and_can_be_resumed() {
    let app = TestApp::adjusted(&[], |config| {
        config.timeouts.follow = Duration::from_millis(600)
    })
    .await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Hold { after: 2 }).with_text("One two three."));
    let mut sent = ada.stream(&discussion, "Why?").await;
    let reply = sent.next().await.unwrap().data["reply_id"]
        .as_str()
        .unwrap()
        .to_owned();
    app.eventually(
        "select content from messages where role = 'assistant'",
        "\"One two \"",
    )
    .await;
    let told = ada.resume(&reply, None).await.rest().await;
    let names: Vec<&str> = told.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["start", "delta"]);
    app.claude.release();
    sent.rest().await;
    let rest = ada.resume(&reply, Some(told[1].id)).await.rest().await;
    assert_eq!(
        (&rest[0].data, rest[1].name.as_str()),
        (&json!({"text": "three."}), "done")
    );
}

#[tokio::test]
async fn a_resumed_partial_reply_ends_with_its_failure() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Cut { after: 2 }).with_text("One two three."));
    let events = ada.stream(&discussion, "Why?").await.rest().await;
    let reply = events[0].data["reply_id"].as_str().unwrap().to_owned();
    let rest = ada.resume(&reply, Some(events[1].id)).await.rest().await;
    assert_eq!(
        (rest[0].data["text"].as_str().unwrap(), rest[0].id),
        ("two ", events[2].id)
    );
    assert_eq!(
        (rest[1].name.as_str(), &rest[1].data["code"]),
        ("failed", &json!("reply_interrupted"))
    );
    let end = ada.resume(&reply, Some(events[2].id)).await.rest().await;
    assert_eq!(end.len(), 1);
    assert_eq!((end[0].name.as_str(), end[0].id), ("failed", events[3].id));
    // A client that has the end gets nothing, so that an `EventSource` does not reconnect for ever.
    for end in [events[3].id, events[3].id + 1, 1_000_000] {
        let headers = [("last-event-id", end.to_string())];
        let headers = headers.each_ref().map(|(name, id)| (*name, id.as_str()));
        let path = format!("/api/messages/{reply}/events");
        let nothing = ada.request(Method::GET, &path, &headers, json!(null)).await;
        assert_eq!(nothing.status, 204, "{end}");
    }
}

#[tokio::test]
async fn a_follower_ends_the_reply_of_a_dead_producer() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Stall { after: 1 }).with_text("One two."));
    let mut stream = ada.stream(&discussion, "Why?").await;
    let reply = stream.next().await.unwrap().data["reply_id"]
        .as_str()
        .unwrap()
        .to_owned();
    app.eventually(
        "select content from messages where role = 'assistant'",
        "\"One \"",
    )
    .await;
    app.sql("update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'").await;
    let rest = ada.resume(&reply, Some(1)).await.rest().await;
    let names: Vec<&str> = rest.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["delta", "failed"]);
    assert_eq!(
        app.value("select status from messages where role = 'assistant'")
            .await,
        "partial"
    );
}

#[tokio::test]
async fn only_the_owner_can_resume_a_stream_and_only_after_an_event_id() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.member("ada").await, app.member("bob").await);
    let discussion = ada.discussion().await;
    let answer = ada.send(&discussion, "Why?").await.json;
    let path = |id: &serde_json::Value| format!("/api/messages/{}/events", id.as_str().unwrap());
    let (reply, message) = (path(&answer["reply"]["id"]), path(&answer["message"]["id"]));
    assert_eq!(bob.get(&reply).await.problem(), (404, "not_found"));
    assert_eq!(ada.get(&message).await.problem(), (404, "not_found"));
    assert_eq!(
        ada.get("/api/messages/01890000-0000-7000-8000-000000000000/events")
            .await
            .status,
        404
    );
    let beyond = u64::MAX.to_string();
    let headers = [("last-event-id", beyond.as_str())];
    let nothing = ada
        .request(Method::GET, &reply, &headers, json!(null))
        .await;
    assert_eq!(nothing.status, 204);
    for id in ["x", "-1", "1.5"] {
        let asked = ada
            .request(Method::GET, &reply, &[("last-event-id", id)], json!(null))
            .await;
        assert_eq!(asked.problem(), (400, "bad_request"), "{id}");
    }
}
