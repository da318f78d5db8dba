//! The Claude client against the stand-in, for everything that the stand-in can do.

#![expect(clippy::disallowed_methods, reason = "a test has its own HTTP client")]

use std::time::Duration;

use iconoclash::claude::{
    ApiKey, Claude, Deadlines, Error, Limit, Phase, Prompt, Reply, Role, Turn, Usage,
};
use iconoclash_local::claude::{Behaviour, Config, Failure, Only, Script, StandIn};

const KEY: &str = "sk-ant-local";
const WORDS: &str = "one two three four";
/// Of [`WORDS`], a token a piece but two for the longest.
const WORDS_OUTPUT: u32 = 5;

async fn stand_in() -> StandIn {
    StandIn::start(Config::default()).await.unwrap()
}

fn client(url: String, key: &str) -> Claude {
    let http = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .build();
    Claude::new(http.unwrap(), url, ApiKey::new("test", key))
}

fn prompt(text: &str) -> Prompt {
    Prompt {
        model: "claude-haiku-5-5".into(),
        max_tokens: 500,
        system: "You are Socrates, who asks.".into(),
        turns: vec![Turn {
            role: Role::User,
            text: text.into(),
        }],
        user_id: "u1".into(),
    }
}

/// Reads to the end or the error.
async fn read(reply: &mut Reply) -> (String, Result<(), Error>) {
    let mut text = String::new();
    loop {
        match reply.next().await {
            Ok(Some(piece)) => text.push_str(&piece),
            Ok(None) => return (text, Ok(())),
            Err(error) => return (text, Err(error)),
        }
    }
}

#[tokio::test]
async fn a_whole_reply_comes_in_pieces_with_its_usage() {
    let stand_in = stand_in().await;
    stand_in.remaining(KEY, 500);
    let mut reply = client(stand_in.url(), KEY)
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
    // Both texts are marked, so nothing of the prompt is left at the plain price.
    assert_eq!(
        (usage.input, usage.cache_write_5m, usage.cache_read),
        (0, 7 + 4, 0)
    );
    assert!(usage.output as usize > pieces / 2);

    let seen = &stand_in.requests()[0];
    assert_eq!(seen.key(), Some(KEY));
    assert_eq!(seen.headers["anthropic-version"], "2026-10-21");
    assert_eq!(seen.body["metadata"]["user_id"], "u1");
    assert_eq!(stand_in.cancelled(), 0);
}

#[tokio::test]
async fn the_next_message_reads_the_conversation_from_the_cache() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
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

    stand_in.accept(vec!["other".into()]);
    let mut reply = client(stand_in.url(), "other")
        .stream(&prompt)
        .await
        .unwrap();
    read(&mut reply).await.1.unwrap();
    assert_eq!(reply.usage().cache_read, 0, "a cache belongs to its key");
}

#[tokio::test]
async fn every_status_becomes_its_error() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    for (failure, kind, retry_after) in [
        (Failure::Invalid, "Invalid", None),
        (Failure::OwnSpendLimit, "SpendLimit", None),
        (Failure::Auth, "Auth", None),
        (Failure::Billing, "Auth", None),
        (Failure::Permission, "Auth", None),
        (Failure::NotFound, "Invalid", None),
        (Failure::TooLarge, "Invalid", None),
        (
            Failure::RateLimited {
                retry_after_secs: 17,
            },
            "RateLimited",
            Some(Duration::from_secs(17)),
        ),
        (Failure::TierSpendLimit, "SpendLimit", None),
        (Failure::ContractSpendLimit, "SpendLimit", None),
        (Failure::Internal, "Provider", None),
        (Failure::Timeout, "Provider", None),
        (Failure::Overloaded, "Overloaded", None),
    ] {
        stand_in.next(failure);
        let error = claude.stream(&prompt("Hello")).await.err().unwrap();
        assert!(
            format!("{error:?}").starts_with(kind),
            "{failure:?} gave {error:?}"
        );
        assert_eq!(error.retry_after(), retry_after, "{failure:?}");
        assert!(error.detail().unwrap().request_id.is_some(), "{failure:?}");
    }
    let (_, whole) = read(&mut claude.stream(&prompt("Hello")).await.unwrap()).await;
    whole.unwrap();
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_not_printed() {
    let stand_in = stand_in().await;
    let error = client(stand_in.url(), "sk-wrong")
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Auth(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("sk-wrong"));
    let error = client(stand_in.url(), "two\nlines")
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Auth(_)), "{error}");
    assert_eq!(stand_in.requests().len(), 1);
}

#[tokio::test]
async fn our_mistakes_are_invalid() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    let unknown_model = Prompt {
        model: "claude-1".into(),
        ..prompt("Hello")
    };
    let no_turns = Prompt {
        turns: vec![],
        ..prompt("Hello")
    };
    let blank = prompt(" ");
    for (wrong, message) in [
        (unknown_model, "model: claude-1"),
        (no_turns, "messages: at least one message is required"),
        (
            blank,
            "messages.0.content.0: text content blocks must be non-empty",
        ),
    ] {
        let error = claude.stream(&wrong).await.err().unwrap();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert_eq!(error.detail().unwrap().message, message);
    }
}

#[tokio::test]
async fn a_stream_that_fails_keeps_its_text_and_usage() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    for (behaviour, text, kind) in [
        (Behaviour::Cut { after: 0 }, "", "Cut"),
        (Behaviour::Cut { after: 2 }, "one two ", "Cut"),
        (Behaviour::Cut { after: 99 }, WORDS, "Cut"),
        (Behaviour::Malformed { after: 1 }, "one ", "Malformed"),
        (Behaviour::Error { after: 0 }, "", "InStream"),
        (Behaviour::Error { after: 3 }, "one two three ", "InStream"),
        (Behaviour::Error { after: 99 }, WORDS, "InStream"),
    ] {
        let cost = Usage {
            input: 11,
            cache_read: 7,
            output: 99,
            ..Usage::default()
        };
        stand_in.next(Script::from(behaviour.clone()).saying(WORDS).costing(cost));
        let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
        let (actual, ended) = read(&mut reply).await;
        let error = ended.unwrap_err();
        assert_eq!(actual, text, "{behaviour:?}");
        assert!(
            format!("{error:?}").starts_with(kind),
            "{behaviour:?} gave {error:?}"
        );
        assert_eq!(reply.usage(), Usage { output: 1, ..cost }, "{behaviour:?}");
        assert!(
            matches!(reply.next().await, Err(Error::Cut { .. })),
            "{behaviour:?}"
        );
    }
}

#[tokio::test]
async fn replies_that_are_odd_but_whole_are_whole() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    for (behaviour, text, stop_reason, output) in [
        (Behaviour::Strange, WORDS, "end_turn", WORDS_OUTPUT),
        (Behaviour::OnlyThinking, "", "end_turn", 40),
        (Behaviour::Refusal, "one two ", "refusal", 2),
        (Behaviour::MaxTokens, "one two ", "max_tokens", 2),
    ] {
        stand_in.next(Script::from(behaviour.clone()).saying(WORDS));
        let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
        let (actual, ended) = read(&mut reply).await;
        ended.unwrap();
        assert_eq!(
            (actual.as_str(), reply.stop_reason(), reply.usage().output),
            (text, Some(stop_reason), output),
            "{behaviour:?}"
        );
    }
    stand_in.next(Script::say(WORDS));
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
async fn no_head_is_a_transport_error_or_a_timeout() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    stand_in.next(Behaviour::Drop);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");

    stand_in.next(Behaviour::Hang);
    let soon = Deadlines {
        first_event: Duration::from_millis(50),
        ..Deadlines::default()
    };
    let error = claude
        .clone()
        .with_deadlines(soon)
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            Error::Timeout {
                phase: Phase::FirstEvent
            }
        ),
        "{error:?}"
    );
    stand_in.wait_for_cancelled(1).await;

    let url = stand_in.url();
    drop(stand_in);
    let error = client(url, KEY)
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn a_stall_ends_at_the_first_deadline_that_passes() {
    let stand_in = stand_in().await;
    let short = Duration::from_millis(100);
    for (deadlines, phase) in [
        (
            Deadlines {
                silence: short,
                ..Deadlines::default()
            },
            Phase::Silence,
        ),
        (
            Deadlines {
                whole: short,
                ..Deadlines::default()
            },
            Phase::Whole,
        ),
    ] {
        stand_in.next(Script::from(Behaviour::Stall { after: 2 }).saying(WORDS));
        let claude = client(stand_in.url(), KEY).with_deadlines(deadlines);
        let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
        let (text, ended) = read(&mut reply).await;
        let Err(Error::Timeout { phase: actual }) = ended else {
            panic!("{ended:?}")
        };
        assert_eq!((text.as_str(), actual), ("one two ", phase));
    }
    stand_in.wait_for_cancelled(2).await;
}

#[tokio::test]
async fn a_held_stream_waits_for_its_release() {
    let stand_in = stand_in().await;
    stand_in.next(Script::from(Behaviour::Hold { after: 2 }).saying(WORDS));
    let mut reply = client(stand_in.url(), KEY)
        .stream(&prompt("Hello"))
        .await
        .unwrap();
    assert_eq!(reply.next().await.unwrap().as_deref(), Some("one "));
    assert_eq!(reply.next().await.unwrap().as_deref(), Some("two "));
    let more = tokio::time::timeout(Duration::from_millis(50), reply.next()).await;
    assert!(more.is_err(), "{more:?}");
    stand_in.release();
    let (text, ended) = read(&mut reply).await;
    ended.unwrap();
    assert_eq!(text, "three four");
}

#[tokio::test]
async fn dropping_a_reply_cancels_the_request() {
    let stand_in = stand_in().await;
    stand_in.next(Behaviour::Hold { after: 1 });
    let mut reply = client(stand_in.url(), KEY)
        .stream(&prompt("Hello"))
        .await
        .unwrap();
    reply.next().await.unwrap();
    drop(reply);
    stand_in.wait_for_cancelled(1).await;
}

#[tokio::test]
async fn connections_are_used_again_after_a_whole_reply() {
    let stand_in = stand_in().await;
    let proxy = iconoclash_local::proxy::Tcp::start(
        stand_in
            .url()
            .trim_start_matches("http://")
            .parse()
            .unwrap(),
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
    // A second one may be opened while the first is on its way back to the pool.
    assert!(proxy.connections() <= 2, "{}", proxy.connections());
}

#[tokio::test]
async fn scripts_can_be_for_a_key_or_a_model() {
    let keys = vec!["k1".to_owned(), "k2".to_owned()];
    let stand_in = StandIn::start(Config {
        keys,
        ..Config::default()
    })
    .await
    .unwrap();
    stand_in.always_for(Only::key("k1"), Failure::Overloaded);
    stand_in.next_for(Only::model("claude-opus-5-5"), Failure::Internal);
    let (first, second) = (client(stand_in.url(), "k1"), client(stand_in.url(), "k2"));
    for _ in 0..2 {
        let error = first.stream(&prompt("Hello")).await.err().unwrap();
        assert!(matches!(error, Error::Overloaded { .. }), "{error}");
    }
    second.stream(&prompt("Hello")).await.unwrap();
    let opus = Prompt {
        model: "claude-opus-5-5".into(),
        ..prompt("Hello")
    };
    assert!(matches!(
        second.stream(&opus).await.err(),
        Some(Error::Provider { .. })
    ));
    second.stream(&opus).await.unwrap();
    assert_eq!(stand_in.wait_for_requests(5).await.len(), 5);
    stand_in.clear();
    first.stream(&prompt("Hello")).await.unwrap();
}

#[tokio::test]
async fn a_person_can_ask_for_faults() {
    let stand_in = stand_in().await;
    let claude = client(stand_in.url(), KEY);
    let error = claude
        .stream(&prompt("Is [[fault:rate_limited:3]] art?"))
        .await
        .err()
        .unwrap();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    let error = claude
        .stream(&prompt("Is [[fault:boredom]] art?"))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("own_spend_limit"), "{error}");

    let http = reqwest::Client::new();
    let faults = format!("{}/local/claude/faults", stand_in.url());
    let ask = |body: serde_json::Value| http.post(&faults).json(&body).send();
    let asked = ask(serde_json::json!({"fault": "overloaded", "times": 2}))
        .await
        .unwrap();
    assert_eq!(asked.status(), 200);
    for _ in 0..2 {
        let error = claude.stream(&prompt("Hello")).await.err().unwrap();
        assert!(matches!(error, Error::Overloaded { .. }), "{error}");
    }
    ask(serde_json::json!({"text": "Just this.", "always": true}))
        .await
        .unwrap();
    for _ in 0..2 {
        let (text, _) = read(&mut claude.stream(&prompt("Hello")).await.unwrap()).await;
        assert_eq!(text, "Just this.");
    }
    http.delete(&faults).send().await.unwrap();
    let (text, _) = read(&mut claude.stream(&prompt("Hello")).await.unwrap()).await;
    assert_ne!(text, "Just this.");
    assert_eq!(
        ask(serde_json::json!({"fault": "boredom"}))
            .await
            .unwrap()
            .status(),
        400
    );
}

#[tokio::test]
async fn an_answer_from_something_else_is_malformed() {
    let stand_in = stand_in().await;
    let proxy = iconoclash_local::proxy::Http::start(&stand_in.url(), Duration::ZERO)
        .await
        .unwrap();
    let claude = client(proxy.url(), KEY);
    proxy.mode(iconoclash_local::proxy::Mode::Html);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Provider { .. }), "{error:?}");
    proxy.mode(iconoclash_local::proxy::Mode::Swallow);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    proxy.mode(iconoclash_local::proxy::Mode::TruncatedJson);
    let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
    let (_, ended) = read(&mut reply).await;
    assert!(matches!(ended, Err(Error::Cut { .. })), "{ended:?}");
    proxy.mode(iconoclash_local::proxy::Mode::Pass);
    read(&mut claude.stream(&prompt("Hello")).await.unwrap())
        .await
        .1
        .unwrap();

    let json = client(format!("{}/local/claude/release?", stand_in.url()), KEY);
    let error = json.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}
