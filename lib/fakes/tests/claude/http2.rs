//! Many replies at once over HTTP/2 with TLS, from a server that grants few streams to a connection.

use std::time::Duration;

use claude::{ApiKey, Deadlines, Error, Phase, Pool, Reply, Route};
use futures_util::future::join_all;
use iconoclash_fakes::claude::{Behaviour, Config, FakeClaude, Script};
use reqwest::Certificate;
use time::macros::datetime;
use uuid::Uuid;

use crate::{KEY, WORDS, prompt, read};

const MAX_STREAMS: u32 = 8;
const ROUTE: Route<'static> = Route {
    conversation: Uuid::nil(),
    fallback: None,
};

async fn start_http2(max_streams: u32) -> FakeClaude {
    let fake = FakeClaude::start_http2(Config::default(), max_streams);
    fake.await.unwrap()
}

fn pool(fake: &FakeClaude, streams_per_connection: usize) -> Pool {
    pool_with(fake, streams_per_connection, Deadlines::default())
}

/// A pool of one key.
fn pool_with(fake: &FakeClaude, streams_per_connection: usize, deadlines: Deadlines) -> Pool {
    let certificate = Certificate::from_der(fake.certificate().unwrap()).unwrap();
    let http = move || {
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([certificate.clone()])
    };

    let keys = vec![ApiKey::new("test", KEY)];
    let now = || datetime!(2026-11-24 12:00 UTC);
    let pool = Pool::new(http, fake.url(), deadlines, keys, now);
    pool.with_streams_per_connection(streams_per_connection)
}

/// Starts replies at once, each of which is held after its first word.
async fn start_held(fake: &FakeClaude, pool: &Pool, count: usize) -> Vec<Reply> {
    for _ in 0..count {
        fake.next(Script::from(Behaviour::Hold { after: 1 }).with_text(WORDS));
    }
    let start = async |_| {
        let mut reply = pool.ask(&prompt("Why?"), &ROUTE).await.unwrap();
        assert_eq!(reply.next().await.unwrap().as_deref(), Some("one "));
        reply
    };
    join_all((0..count).map(start)).await
}

async fn read_whole(fake: &FakeClaude, replies: Vec<Reply>) {
    replies.iter().for_each(|_| fake.release());

    for mut reply in replies {
        let (text, whole) = read(&mut reply).await;
        whole.unwrap();
        assert_eq!(text, "two three four");
    }
}

#[tokio::test]
async fn a_hundred_replies_run_at_once_although_a_connection_carries_eight() {
    let fake = start_http2(MAX_STREAMS).await;
    let pool = pool(&fake, 8);

    // Held replies end only after all of them have started.
    let replies = start_held(&fake, &pool, 100).await;
    assert_eq!(fake.replies_started(), 100);
    assert_eq!(
        fake.connections(),
        13,
        "requests share a connection that is being made"
    );
    read_whole(&fake, replies).await;

    // The places are free again.
    let replies = start_held(&fake, &pool, 100).await;
    read_whole(&fake, replies).await;
    assert_eq!((fake.requests().len(), fake.cancelled()), (200, 0));
}

#[tokio::test]
async fn a_reply_that_ended_or_was_dropped_frees_its_place() {
    let fake = start_http2(1).await;
    // Never more than one connection that the server would grant.
    let pool = pool(&fake, 1);
    let ask = async || pool.ask(&prompt("Why?"), &ROUTE).await.unwrap();

    let mut whole = ask().await;
    read(&mut whole).await.1.unwrap();

    fake.next(Behaviour::Error { after: 1 });
    let mut failed = ask().await;
    read(&mut failed).await.1.unwrap_err();

    fake.next(Behaviour::Hold { after: 1 });
    let mut dropped = ask().await;
    dropped.next().await.unwrap();
    drop(dropped);

    read(&mut ask().await).await.1.unwrap();
    assert_eq!(fake.connections(), 1);
    assert!(!whole.usage().eq(&claude::Usage::default()));
}

#[tokio::test]
async fn a_request_without_a_stream_was_never_sent_and_cannot_be_billed() {
    let fake = start_http2(1).await;
    let deadlines = Deadlines {
        first_event: Duration::from_secs(2),
        ..Deadlines::default()
    };
    // More than the server grants.
    let pool = pool_with(&fake, 8, deadlines);
    let held = start_held(&fake, &pool, 1).await;

    let error = pool.ask(&prompt("Why?"), &ROUTE).await.err().unwrap();
    let unsent = Phase::Connect;
    assert!(
        matches!(&error, Error::Timeout { phase } if *phase == unsent),
        "{error:?}"
    );
    assert!(!error.may_be_billed());
    assert_eq!(fake.requests().len(), 1);

    // Nor is it sent when the stream is free.
    read_whole(&fake, held).await;
    read(&mut pool.ask(&prompt("Why?"), &ROUTE).await.unwrap())
        .await
        .1
        .unwrap();
    assert_eq!((fake.requests().len(), fake.replies_started()), (2, 2));

    fake.next(Behaviour::Hang);
    let error = pool.ask(&prompt("Why?"), &ROUTE).await.err().unwrap();
    assert!(error.may_be_billed(), "{error:?}");
}

#[tokio::test]
async fn a_request_that_the_server_did_not_process_is_sent_again() {
    let fake = start_http2(MAX_STREAMS).await;
    let pool = pool(&fake, 8);

    fake.next(Behaviour::Refuse);
    fake.next(Behaviour::Refuse);
    let mut reply = pool.ask(&prompt("Why?"), &ROUTE).await.unwrap();
    read(&mut reply).await.1.unwrap();
    assert_eq!(fake.requests().len(), 3);
    assert_eq!(reply.abandoned_attempts(), []);
    assert!(pool.take_outcomes()[reply.key_label()].error.is_none());

    fake.always(Behaviour::Refuse);
    let error = pool.ask(&prompt("Why?"), &ROUTE).await.err().unwrap();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert!(!error.may_be_billed());
}

#[tokio::test]
async fn a_connection_that_takes_no_more_requests_finishes_its_replies() {
    let fake = start_http2(MAX_STREAMS).await;
    let pool = pool(&fake, 8);
    let held = start_held(&fake, &pool, 4).await;

    fake.go_away();
    let later = start_held(&fake, &pool, 3).await;

    read_whole(&fake, held).await;
    read_whole(&fake, later).await;
    assert_eq!(fake.cancelled(), 0);
}

#[tokio::test]
async fn a_reset_stream_is_cut_and_its_neighbours_go_on() {
    let fake = start_http2(MAX_STREAMS).await;
    let pool = pool(&fake, 8);
    let held = start_held(&fake, &pool, 4).await;

    fake.next(Script::from(Behaviour::Cut { after: 2 }).with_text(WORDS));
    let mut cut = pool.ask(&prompt("Why?"), &ROUTE).await.unwrap();
    let (text, ended) = read(&mut cut).await;
    assert_eq!(text, "one two ");
    assert!(
        matches!(
            ended,
            Err(Error::Cut {
                source: Some(_),
                ..
            })
        ),
        "{ended:?}"
    );

    // A reset without an answer is tried once more.
    fake.next(Behaviour::Drop);
    let mut reply = pool.ask(&prompt("Why?"), &ROUTE).await.unwrap();
    read(&mut reply).await.1.unwrap();

    read_whole(&fake, held).await;
}

#[tokio::test]
async fn a_lost_connection_cuts_its_replies_and_the_next_reply_gets_another() {
    let fake = start_http2(MAX_STREAMS).await;
    let pool = pool(&fake, 8);
    let held = start_held(&fake, &pool, 4).await;

    fake.close_connections();
    for mut reply in held {
        let (_, ended) = read(&mut reply).await;
        assert!(matches!(ended, Err(Error::Cut { .. })), "{ended:?}");
        assert_eq!(reply.usage().output, 1, "the usage so far stays valid");
    }

    let next = start_held(&fake, &pool, 4).await;
    read_whole(&fake, next).await;
}
