//! Whole replies.

use std::time::Duration;

use claude::{Limit, Prompt, Role, Turn};
use iconoclash_fakes::claude::{Behaviour, Script};
use iconoclash_fakes::proxy::Tcp;

use crate::{KEY, WORDS, WORDS_OUTPUT, client, prompt, read, start_fake};

#[tokio::test]
async fn a_whole_reply_comes_in_pieces_with_its_usage() {
    let fake = start_fake().await;
    fake.set_remaining_requests(KEY, 500);
    let mut reply = client(fake.url(), KEY)
        .stream(&prompt("Beauty is dead."))
        .await
        .unwrap();
    assert_eq!(reply.model(), "claude-haiku-5-5");
    assert!(reply.request_id().unwrap().starts_with("req_"));
    let Some(Limit {
        limit: 1000,
        remaining: 499,
        reset: Some(_),
    }) = reply.limits().requests
    else {
        panic!("{:?}", reply.limits());
    };

    let mut pieces = 0;
    let mut text = String::new();
    while let Some(piece) = reply.next().await.unwrap() {
        pieces += 1;
        text.push_str(&piece);
    }
    assert!(
        text.contains("Socrates") && text.contains("Beauty is dead"),
        "{text}"
    );

    assert_eq!(pieces, text.split(' ').count());
    assert_eq!(reply.stop_reason(), Some("end_turn"));

    let usage = reply.usage();
    // Both texts are marked, so no token of the prompt has the plain price.
    assert_eq!(
        (usage.input, usage.cache_write_5m, usage.cache_read),
        (0, 7 + 4, 0)
    );
    assert!(usage.output as usize > pieces / 2);

    let seen = &fake.requests()[0];
    assert_eq!(seen.key(), Some(KEY));
    assert_eq!(seen.headers["anthropic-version"], "2026-10-21");
    assert_eq!(seen.body["metadata"]["user_id"], "u1");
    assert_eq!(fake.cancelled(), 0);
}

#[tokio::test]
async fn the_next_message_reads_the_conversation_from_the_cache() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);
    let mut prompt = prompt("Beauty is dead.");
    let mut reply = claude.stream(&prompt).await.unwrap();
    let (text, _) = read(&mut reply).await;
    let first = reply.usage();

    prompt.turns.push(Turn {
        role: Role::Assistant,
        text: text.clone(),
    });
    prompt.turns.push(Turn {
        role: Role::User,
        text: "No, it lives.".into(),
    });
    let mut reply = claude.stream(&prompt).await.unwrap();
    read(&mut reply).await.1.unwrap();
    let second = reply.usage();

    assert_eq!(second.cache_read, first.cache_write_5m);
    assert_eq!(second.input, 0);
    assert!(second.cache_write_5m > 4);

    fake.accept_keys(vec!["other".into()]);
    let mut reply = client(fake.url(), "other").stream(&prompt).await.unwrap();
    read(&mut reply).await.1.unwrap();
    assert_eq!(reply.usage().cache_read, 0, "a cache belongs to its key");
}

#[tokio::test]
async fn unusual_replies_are_whole() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);
    for (behaviour, text, stop_reason, output) in [
        (Behaviour::Strange, WORDS, "end_turn", WORDS_OUTPUT),
        (Behaviour::OnlyThinking, "", "end_turn", 40),
        (Behaviour::Refusal, "one two ", "refusal", 2),
        (Behaviour::MaxTokens, "one two ", "max_tokens", 2),
    ] {
        fake.next(Script::from(behaviour.clone()).with_text(WORDS));
        let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
        let (actual, ended) = read(&mut reply).await;
        ended.unwrap();
        assert_eq!(
            (actual.as_str(), reply.stop_reason(), reply.usage().output),
            (text, Some(stop_reason), output),
            "{behaviour:?}"
        );
    }

    fake.next(Script::say(WORDS));
    let short = Prompt {
        max_tokens: 3,
        ..prompt("Hello")
    };
    let mut reply = claude.stream(&short).await.unwrap();
    let (actual, _) = read(&mut reply).await;
    assert_eq!(
        (actual.as_str(), reply.stop_reason()),
        ("one two ", Some("max_tokens"))
    );
    assert_eq!(reply.usage().output, 3);
}

#[tokio::test]
async fn a_held_stream_waits_for_its_release() {
    let fake = start_fake().await;
    fake.next(Script::from(Behaviour::Hold { after: 2 }).with_text(WORDS));
    let mut reply = client(fake.url(), KEY)
        .stream(&prompt("Hello"))
        .await
        .unwrap();
    assert_eq!(reply.next().await.unwrap().as_deref(), Some("one "));
    assert_eq!(reply.next().await.unwrap().as_deref(), Some("two "));

    let more = tokio::time::timeout(Duration::from_millis(50), reply.next()).await;
    assert!(more.is_err(), "{more:?}");

    fake.release();
    let (text, ended) = read(&mut reply).await;
    ended.unwrap();
    assert_eq!(text, "three four");
}

#[tokio::test]
async fn dropping_a_reply_cancels_the_request() {
    let fake = start_fake().await;
    fake.next(Behaviour::Hold { after: 1 });
    let mut reply = client(fake.url(), KEY)
        .stream(&prompt("Hello"))
        .await
        .unwrap();
    reply.next().await.unwrap();
    drop(reply);
    fake.wait_for_cancelled(1).await;
}

#[tokio::test]
async fn connections_are_reused_after_a_whole_reply() {
    let fake = start_fake().await;
    let proxy = Tcp::start(
        fake.url().trim_start_matches("http://").parse().unwrap(),
        Duration::ZERO,
    );
    let proxy = proxy.await.unwrap();
    let claude = client(format!("http://{}", proxy.addr()), KEY);
    for _ in 0..20 {
        read(&mut claude.stream(&prompt("Hello")).await.unwrap())
            .await
            .1
            .unwrap();
    }
    // The client may open a second one while the first returns to the pool.
    assert!(proxy.connections() <= 2, "{}", proxy.connections());
}
