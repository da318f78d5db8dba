use futures_util::{StreamExt, stream};

use super::*;
use crate::Deadlines;
use crate::event_stream::MAX_EVENT_BYTES;

/// The result of reading a body.
#[derive(Debug, PartialEq)]
struct Outcome {
    text: String,
    usage: Usage,
    stop_reason: Option<String>,
    error: Option<String>,
}

fn reply(body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static) -> Reply {
    let head = Head {
        model: "asked".into(),
        asked_model: "asked".into(),
        key: ApiKey::new("test", "sk-1"),
        limits: Limits::default(),
        request_id: Some("req_1".into()),
    };
    Reply::new(body, head, ReplyTimer::start(Deadlines::default()))
}

async fn read(mut reply: Reply) -> Outcome {
    let mut text = String::new();
    let error = loop {
        match reply.next().await {
            Ok(Some(piece)) => text.push_str(&piece),
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    Outcome {
        text,
        usage: reply.usage(),
        stop_reason: reply.stop_reason().map(str::to_owned),
        error,
    }
}

fn body(chunks: Vec<Bytes>) -> impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static {
    stream::iter(chunks.into_iter().map(Ok))
}

async fn outcome(events: &str) -> Outcome {
    read(reply(body(vec![Bytes::copy_from_slice(events.as_bytes())]))).await
}

fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn start() -> String {
    event(
        "message_start",
        r#"{"type":"message_start","message":{"model":"claude-haiku-5-5","usage":{"input_tokens":9,"cache_creation_input_tokens":30,
data: "cache_read_input_tokens":5,"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20},"output_tokens":1}}}"#,
    )
}

fn delta(text: &str) -> String {
    let data = serde_json::json!({
        "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}
    });
    event("content_block_delta", &data.to_string())
}

fn end() -> String {
    event(
        "message_delta",
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":12}}"#,
    ) + &event("message_stop", r#"{"type":"message_stop"}"#)
}

const STARTED: Usage = Usage {
    input: 9,
    cache_write_5m: 10,
    cache_write_1h: 20,
    cache_read: 5,
    output: 1,
};

fn complete(text: &str) -> Outcome {
    Outcome {
        text: text.into(),
        usage: Usage {
            output: 12,
            ..STARTED
        },
        stop_reason: Some("end_turn".into()),
        error: None,
    }
}

fn failed(text: &str, error: &str) -> Outcome {
    Outcome {
        text: text.into(),
        usage: STARTED,
        stop_reason: None,
        error: Some(error.into()),
    }
}

#[tokio::test]
async fn unknown_events_and_fields_are_ignored() {
    #[track_caller]
    fn check(actual: Outcome, expected: Outcome) {
        assert_eq!(actual, expected);
    }
    let plain = start() + &delta("Know ") + &delta("thyself") + &end();
    check(outcome(&plain).await, complete("Know thyself"));
    for strange in [
        event("ping", "{}"),
        event("ping", "not even JSON"),
        event("weather_report", r#"{"type":"weather_report"}"#),
        event("weather_report", "sunny"),
        ": a comment\n\n".to_owned(),
        "data: an event without a name\n\n".to_owned(),
        event(
            "content_block_start",
            r#"{"content_block":{"type":"hologram","text":7}}"#,
        ),
        event(
            "content_block_start",
            r#"{"content_block":{"type":"text","text":""}}"#,
        ),
        event(
            "content_block_delta",
            r#"{"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
        ),
        event(
            "content_block_delta",
            r#"{"delta":{"type":"smell_delta","text":7}}"#,
        ),
        event(
            "content_block_delta",
            r#"{"delta":{"type":"text_delta","text":""}}"#,
        ),
        event(
            "content_block_delta",
            r#"{"delta":{"type":"text_delta","text":"\u0000"}}"#,
        ),
        event("content_block_stop", r#"{"index":0}"#),
        event(
            "message_delta",
            r#"{"delta":{"stop_reason":null},"usage":{"output_tokens":2,"input_tokens":null}}"#,
        ),
    ] {
        let events = start() + &delta("Know ") + &strange + &delta("thyself") + &end();
        check(outcome(&events).await, complete("Know thyself"));
    }
    let odd = start()
        + &event(
            "message_delta",
            r#"{"delta":{"stop_reason":"bored"},"usage":{"output_tokens":12}}"#,
        );
    let odd = outcome(&(odd + &event("message_stop", "{}"))).await;
    check(
        odd,
        Outcome {
            stop_reason: Some("bored".into()),
            ..complete("")
        },
    );
}

#[tokio::test]
async fn nothing_but_message_stop_is_a_normal_end() {
    let started = start() + &delta("Know ");
    #[track_caller]
    fn check(actual: Outcome, error: &str) {
        assert_eq!(actual, failed("Know ", error));
    }
    check(outcome(&started).await, "reply cut off (request-id req_1)");
    let unfinished = started.clone() + "event: message_stop\ndata: {}\n";
    check(
        outcome(&unfinished).await,
        "reply cut off (request-id req_1)",
    );
    let error =
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded sk-1"}}"#;
    check(
        outcome(&(started.clone() + &event("error", error) + &end())).await,
        r#"reply failed: overloaded_error "Overloaded [key]" (request-id req_1)"#,
    );
    check(
        outcome(
            &(started.clone() + &event("content_block_delta", r#"{"delta":{"type":"te"#) + &end()),
        )
        .await,
        "malformed reply: broken JSON at column 20 of content_block_delta (request-id req_1)",
    );
    check(
        outcome(
            &(started.clone()
                + &event("message_delta", r#"{"usage":{"output_tokens":-1}}"#)
                + &end()),
        )
        .await,
        "malformed reply: unexpected shape at column 28 of message_delta (request-id req_1)",
    );
}

#[tokio::test]
async fn a_reply_that_never_started_cannot_be_complete() {
    let stopped = outcome(&event("message_stop", "{}")).await;
    assert_eq!(
        stopped.error.unwrap(),
        "malformed reply: message_stop before message_start (request-id req_1)"
    );
}

#[tokio::test]
async fn an_error_stays_an_error() {
    let mut reply = reply(body(vec![Bytes::from(
        event("error", "{}") + &start() + &end(),
    )]));
    assert!(matches!(reply.next().await, Err(Error::InStream { .. })));
    assert!(matches!(reply.next().await, Err(Error::Cut { .. })));
    assert!(matches!(reply.next().await, Err(Error::Cut { .. })));
}

#[tokio::test]
async fn events_survive_any_division_into_chunks() {
    let events = start() + &delta("Γνῶθι ") + &delta("σεαυτόν 🦉") + &end();
    for size in [1, 2, 3, 7, 64] {
        let chunks = events
            .as_bytes()
            .chunks(size)
            .map(Bytes::copy_from_slice)
            .collect();
        assert_eq!(
            read(reply(body(chunks))).await,
            complete("Γνῶθι σεαυτόν 🦉"),
            "{size}"
        );
    }
    let crlf = events.replace('\n', "\r\n");
    assert_eq!(outcome(&crlf).await, complete("Γνῶθι σεαυτόν 🦉"));
}

#[tokio::test]
async fn bytes_that_are_not_utf8_are_malformed() {
    let chunks = vec![
        Bytes::from(start()),
        Bytes::from_static(b"data: \xff\xff\n\n"),
    ];
    let outcome = read(reply(body(chunks))).await;
    assert_eq!(
        outcome,
        failed("", "malformed reply: not UTF-8 (request-id req_1)")
    );
}

#[tokio::test]
async fn an_event_without_an_end_is_refused_before_it_fills_the_memory() {
    let chunk = Bytes::from(vec![b'x'; 16 * 1024]);
    let endless = stream::once(async { Ok(Bytes::from(start() + "data: ")) })
        .chain(stream::repeat_with(move || Ok(chunk.clone())));
    let outcome = read(reply(endless)).await;
    assert_eq!(
        outcome,
        failed(
            "",
            "malformed reply: an event has no end (request-id req_1)"
        )
    );

    let long = "x".repeat(MAX_EVENT_BYTES);
    let sized = read(reply(body(vec![Bytes::from(start() + &delta(&long))]))).await;
    assert_eq!(
        sized,
        failed(
            "",
            "malformed reply: an event is too long (request-id req_1)"
        )
    );

    let many = vec![
        Bytes::from(start() + &delta("abcdefgh").repeat(20_000)),
        Bytes::from(end()),
    ];
    assert_eq!(read(reply(body(many))).await.error, None);
}

#[tokio::test]
async fn cache_writes_without_a_split_are_for_five_minutes() {
    async fn check(start_usage: &str, delta_usage: &str, (write_5m, write_1h): (u32, u32)) {
        let events = event(
            "message_start",
            &format!(r#"{{"message":{{"model":"m","usage":{start_usage}}}}}"#),
        ) + &event(
            "message_delta",
            &format!(r#"{{"delta":{{}},"usage":{delta_usage}}}"#),
        ) + &event("message_stop", "{}");
        let usage = outcome(&events).await.usage;
        assert_eq!(
            (usage.cache_write_5m, usage.cache_write_1h),
            (write_5m, write_1h),
            "{start_usage} {delta_usage}"
        );
    }
    let split = r#"{"cache_creation_input_tokens":30,"cache_creation":{"ephemeral_5m_input_tokens":10,"ephemeral_1h_input_tokens":20}}"#;
    check(r#"{"cache_creation_input_tokens":30}"#, "{}", (30, 0)).await;
    check(
        r#"{"cache_creation_input_tokens":30,"cache_creation":null}"#,
        "{}",
        (30, 0),
    )
    .await;
    check(split, "{}", (10, 20)).await;
    check(split, r#"{"cache_creation_input_tokens":30}"#, (10, 20)).await;
    check(split, r#"{"cache_creation_input_tokens":45}"#, (25, 20)).await;
    check(split, r#"{"cache_creation_input_tokens":15}"#, (0, 15)).await;
    check(
        r#"{"cache_creation":{"ephemeral_1h_input_tokens":20}}"#,
        "{}",
        (0, 20),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_deadline_names_its_phase_and_keeps_the_usage() {
    let silent = || stream::pending::<reqwest::Result<Bytes>>();
    let phase = |mut reply: Reply| async move {
        let started_at = Instant::now();
        let error = loop {
            match reply.next().await {
                Ok(text) => assert!(text.is_some()),
                Err(error) => break error,
            }
        };
        let Error::Timeout { phase } = error else {
            panic!("{error}")
        };
        (phase, started_at.elapsed().as_secs(), reply.usage())
    };
    assert_eq!(
        phase(reply(silent())).await,
        (Phase::FirstEvent, 30, Usage::default())
    );

    let started = body(vec![Bytes::from(start())]).chain(silent());
    assert_eq!(phase(reply(started)).await, (Phase::Silence, 60, STARTED));

    let every_50_s = |event: String| {
        stream::repeat_with(move || event.clone()).then(|event| async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            Ok(Bytes::from(event))
        })
    };
    let pings = body(vec![Bytes::from(start())]).chain(every_50_s(event("ping", "{}")));
    assert_eq!(phase(reply(pings)).await, (Phase::Whole, 240, STARTED));
}

#[tokio::test(start_paused = true)]
async fn polling_again_does_not_extend_the_silence_deadline() {
    let mut reply = reply(body(vec![Bytes::from(start())]).chain(stream::pending()));
    let started_at = Instant::now();
    let error = loop {
        if let Ok(ended) = timeout(Duration::from_secs(1), reply.next()).await {
            break ended.unwrap_err();
        }
    };
    assert!(
        matches!(
            error,
            Error::Timeout {
                phase: Phase::Silence
            }
        ),
        "{error}"
    );
    assert_eq!(started_at.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_pauses_still_ends_at_the_whole_deadline() {
    let flood =
        body(vec![Bytes::from(start())]).chain(stream::repeat_with(|| Ok(Bytes::from(delta("x")))));
    let mut reply = reply(flood);
    reply.next().await.unwrap();
    tokio::time::advance(Duration::from_secs(240)).await;
    assert!(matches!(
        reply.next().await,
        Err(Error::Timeout {
            phase: Phase::Whole
        })
    ));
}
