//! Errors before and inside a reply, and the ways to request them.

use std::time::Duration;

use claude::{Deadlines, Error, Phase, Prompt, Usage};
use iconoclash_fakes::claude::{Behaviour, Config, Failure, FakeClaude, Only, Script};
use iconoclash_fakes::proxy::{Http, Mode};

use crate::{KEY, WORDS, client, prompt, read, start_fake};

#[tokio::test]
async fn every_status_becomes_its_error() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);

    for (failure, kind, retry_after) in [
        (Failure::Invalid, "Invalid", None),
        (Failure::OwnSpendLimit, "Invalid", None),
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
        fake.next(failure);
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
    let fake = start_fake().await;
    let error = client(fake.url(), "sk-wrong")
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Auth(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("sk-wrong"));

    let error = client(fake.url(), "two\nlines")
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Auth(_)), "{error}");
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn invalid_requests_are_refused() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);
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
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);

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
        fake.next(
            Script::from(behaviour.clone())
                .with_text(WORDS)
                .with_usage(cost),
        );
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
async fn no_answer_is_a_transport_error_or_a_timeout() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);

    fake.next(Behaviour::Drop);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");

    fake.next(Behaviour::Hang);
    let soon = Deadlines {
        first_event: Duration::from_secs(1),
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
    fake.wait_for_cancelled(1).await;

    let url = fake.url();
    drop(fake);
    let error = client(url, KEY)
        .stream(&prompt("Hello"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
}

#[tokio::test]
async fn a_stall_ends_at_the_first_deadline_that_passes() {
    let fake = start_fake().await;
    let short = Duration::from_millis(500);
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
        fake.next(Script::from(Behaviour::Stall { after: 2 }).with_text(WORDS));
        let claude = client(fake.url(), KEY).with_deadlines(deadlines);
        let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
        let (text, ended) = read(&mut reply).await;
        let Err(Error::Timeout { phase: actual }) = ended else {
            panic!("{ended:?}")
        };
        assert_eq!((text.as_str(), actual), ("one two ", phase));
    }
    fake.wait_for_cancelled(2).await;
}

#[tokio::test]
async fn scripts_apply_to_a_key_or_a_model() {
    let keys = vec!["k1".to_owned(), "k2".to_owned()];
    let fake = FakeClaude::start(Config {
        keys,
        ..Config::default()
    })
    .await
    .unwrap();
    fake.always_for(Only::key("k1"), Failure::Overloaded);
    fake.next_for(Only::model("claude-opus-5-5"), Failure::Internal);

    let first = client(fake.url(), "k1");
    let second = client(fake.url(), "k2");
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
    assert_eq!(fake.wait_for_requests(5).await.len(), 5);

    fake.clear();
    first.stream(&prompt("Hello")).await.unwrap();
}

#[tokio::test]
async fn a_developer_can_ask_for_faults() {
    let fake = start_fake().await;
    let claude = client(fake.url(), KEY);

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
    let faults = format!("{}/local/claude/faults", fake.url());
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
    let fake = start_fake().await;
    let proxy = Http::start(&fake.url(), Duration::ZERO).await.unwrap();
    let claude = client(proxy.url(), KEY);

    proxy.mode(Mode::Html);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Provider { .. }), "{error:?}");

    proxy.mode(Mode::Swallow);
    let error = claude.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");

    proxy.mode(Mode::TruncatedJson);
    let mut reply = claude.stream(&prompt("Hello")).await.unwrap();
    let (_, ended) = read(&mut reply).await;
    assert!(matches!(ended, Err(Error::Cut { .. })), "{ended:?}");

    proxy.mode(Mode::Pass);
    read(&mut claude.stream(&prompt("Hello")).await.unwrap())
        .await
        .1
        .unwrap();

    let json = client(format!("{}/local/claude/release?", fake.url()), KEY);
    let error = json.stream(&prompt("Hello")).await.err().unwrap();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}
