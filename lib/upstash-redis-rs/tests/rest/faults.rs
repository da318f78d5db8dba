//! Errors of a broken server, and retries.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde_json::Value;
use upstash_redis_rs::{Command, Error, Redis, Script};

use crate::{
    client, client_of,
    fake_server::{Act, FakeServer, addr, say},
    front, http,
};

fn incr() -> Command {
    Command::new("INCR").arg("n")
}

async fn count(redis: &Redis) -> Option<String> {
    redis.exec(&Command::new("GET").arg("n")).await.unwrap()
}

#[tokio::test]
async fn an_incr_whose_answer_was_lost_is_not_retried() {
    let front = front().await;
    let fake_server = FakeServer::start([Act::Swallow(addr(front.url()))]).await;
    let redis = client_of(&fake_server.url, front.token());
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert!(error.is_unavailable());
    assert_eq!(count(&client(&front)).await.as_deref(), Some("1"));
    assert_eq!(fake_server.requests(), 1);
}

#[tokio::test]
async fn an_idempotent_command_whose_answer_was_lost_is_retried() {
    let front = front().await;
    let server = addr(front.url());
    let fake_server = FakeServer::start([Act::Swallow(server), Act::Forward(server)]).await;
    let redis = client_of(&fake_server.url, front.token());
    // INCR is not idempotent, so its result shows how often it ran.
    assert_eq!(redis.exec::<i64>(&incr().idempotent()).await.unwrap(), 2);
    assert_eq!(fake_server.requests(), 2);
}

#[tokio::test]
async fn a_command_is_retried_at_most_once() {
    let front = front().await;
    let fake_server = FakeServer::start([Act::Swallow(addr(front.url()))]).await;
    let redis = client_of(&fake_server.url, front.token());
    let error = redis.exec::<i64>(&incr().idempotent()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert_eq!(count(&client(&front)).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_batch_is_retried_only_if_every_command_is_idempotent() {
    let front = front().await;
    let server = addr(front.url());
    let fake_server = FakeServer::start([Act::Swallow(server)]).await;
    let redis = client_of(&fake_server.url, front.token());
    let ping = || Command::new("PING").idempotent();

    let mixed = redis.pipeline(&[ping(), incr()]).await;
    assert!(matches!(mixed, Err(Error::Transport(_))), "{mixed:?}");
    assert_eq!(fake_server.requests(), 1);
    let whole = redis.pipeline(&[ping(), ping()]).await;
    assert!(matches!(whole, Err(Error::Transport(_))), "{whole:?}");
    assert_eq!(fake_server.requests(), 3);
}

/// Resolves the first connection to a closed port, the others to `then`.
struct RefusedFirst {
    lookups: AtomicUsize,
    then: SocketAddr,
}

const CLOSED_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

impl RefusedFirst {
    fn client(then: SocketAddr, token: &str) -> (Arc<Self>, Redis) {
        let lookups = AtomicUsize::new(0);
        let resolver = Arc::new(Self { lookups, then });
        let http = http().dns_resolver(Arc::clone(&resolver)).build().unwrap();
        let redis = Redis::new("http://redis.test", token, http).unwrap();
        (resolver, redis.with_deadline(Duration::from_secs(20)))
    }
}

impl Resolve for RefusedFirst {
    fn resolve(&self, _: Name) -> Resolving {
        let addr = match self.lookups.fetch_add(1, Ordering::SeqCst) {
            0 => CLOSED_PORT,
            _ => self.then,
        };
        let addrs: Addrs = Box::new([addr].into_iter());
        Box::pin(async { Ok(addrs) })
    }
}

#[tokio::test]
async fn a_refused_connection_is_retried_for_any_command() {
    let front = front().await;
    let (resolver, redis) = RefusedFirst::client(addr(front.url()), front.token());
    assert_eq!(redis.exec::<i64>(&incr()).await.unwrap(), 1);
    assert_eq!(resolver.lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_unreachable_store_is_tried_twice() {
    let (resolver, redis) = RefusedFirst::client(CLOSED_PORT, "token");
    let error = redis.exec::<i64>(&incr().idempotent()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Transport(cause) if cause.is_connect()),
        "{error:?}"
    );
    assert_eq!(resolver.lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_hangs_times_out_at_the_deadline() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"resu";
    for act in [Act::HangAfter(""), Act::HangAfter(head)] {
        let fake_server = FakeServer::start([act]).await;
        let redis = client_of(&fake_server.url, "token").with_deadline(Duration::from_millis(100));
        let error = redis.exec::<i64>(&incr().idempotent()).await.unwrap_err();
        assert!(matches!(error, Error::Timeout), "{error:?}");
        assert!(error.is_unavailable());
    }
}

#[tokio::test]
async fn the_deadline_covers_the_retry_and_the_second_trip_of_a_script() {
    let noscript = say(
        "400 Bad Request",
        r#"{"error":"NOSCRIPT No matching script."}"#,
    );
    let broken = Act::Say(String::new());
    for first in [noscript, broken] {
        let fake_server = FakeServer::start([first, Act::HangAfter("")]).await;
        let redis = client_of(&fake_server.url, "token").with_deadline(Duration::from_secs(1));
        let command = Script::new("return 1").command(&[], &[]).idempotent();
        let error = redis.exec::<i64>(&command).await.unwrap_err();
        assert!(matches!(error, Error::Timeout), "{error:?}");
        assert_eq!(fake_server.requests(), 2);
    }
}

#[tokio::test]
async fn a_failed_retry_of_a_script_keeps_the_results_of_the_other_commands() {
    let first = say(
        "200 OK",
        r#"[{"result":1},{"error":"NOSCRIPT No matching script."}]"#,
    );
    let fake_server = FakeServer::start([first, Act::Say(String::new())]).await;
    let redis = client_of(&fake_server.url, "token");
    let script = Script::new("return 1").command(&[], &[]);
    let results = redis.pipeline(&[incr(), script]).await.unwrap();
    assert!(
        matches!(
            &results[..],
            [Ok(Value::Number(_)), Err(Error::Transport(_))]
        ),
        "{results:?}"
    );
}

/// Asserts the error that an answer becomes, without a retry.
async fn assert_error(status: &str, body: &str, expected: &str) {
    let fake_server = FakeServer::start([say(status, body)]).await;
    let redis = client_of(&fake_server.url, "token");
    let error = redis.exec::<Value>(&incr().idempotent()).await.unwrap_err();
    assert_eq!(format!("{error:?}"), expected, "{status} {body}");
    assert_eq!(fake_server.requests(), 1, "{status} {body}");
    let batch = redis.pipeline(&[incr().idempotent()]).await.unwrap_err();
    assert_eq!(
        error.is_unavailable(),
        batch.is_unavailable(),
        "{status} {body}"
    );
    assert_eq!(fake_server.requests(), 2, "{status} {body}");
}

#[tokio::test]
async fn an_answer_outside_the_protocol_differs_from_a_rejection() {
    let bad_body =
        |status: u16, detail: &str| format!("BadBody {{ status: {status}, detail: {detail:?} }}");
    let html = "<!DOCTYPE html><title>One moment</title>";
    assert_error(
        "200 OK",
        html,
        &bad_body(200, "Syntax error in 40 bytes of JSON"),
    )
    .await;
    assert_error("200 OK", "", &bad_body(200, "Eof error in 0 bytes of JSON")).await;
    assert_error(
        "200 OK",
        r#"{"result":[1,"#,
        &bad_body(200, "Eof error in 13 bytes of JSON"),
    )
    .await;
    assert_error(
        "200 OK",
        "7",
        &bad_body(200, "neither a result nor an error"),
    )
    .await;
    assert_error(
        "200 OK",
        "{}",
        &bad_body(200, "neither a result nor an error"),
    )
    .await;
    assert_error(
        "403 Forbidden",
        r#"{"result":1}"#,
        &bad_body(403, "neither a result nor an error"),
    )
    .await;
    assert_error(
        "404 Not Found",
        r#"{"error":{"code":"404"}}"#,
        &bad_body(404, "neither a result nor an error"),
    )
    .await;
    assert_error("502 Bad Gateway", html, &bad_body(502, "a server error")).await;
    assert_error(
        "503 Unavailable",
        r#"{"error":"ERR no"}"#,
        &bad_body(503, "a server error"),
    )
    .await;
    assert_error("429 Too Many Requests", html, "Quota").await;
    assert_error("401 Unauthorized", html, "Auth").await;
    let quota = r#"{"error":"ERR max requests limit exceeded. Limit: 500000, Usage: 500001"}"#;
    assert_error("400 Bad Request", quota, "Quota").await;
    assert_error(
        "400 Bad Request",
        r#"{"error":"ERR syntax error"}"#,
        r#"Redis("ERR syntax error")"#,
    )
    .await;
}

#[tokio::test]
async fn a_batch_needs_one_result_per_command() {
    let short = FakeServer::start([say("200 OK", r#"[{"result":1}]"#)]).await;
    let single = FakeServer::start([say("200 OK", r#"{"result":1}"#)]).await;
    for fake_server in [short, single] {
        let redis = client_of(&fake_server.url, "token");
        let results = redis.pipeline(&[incr(), incr()]).await;
        assert!(
            matches!(results, Err(Error::BadBody { status: 200, .. })),
            "{results:?}"
        );
    }
}

#[tokio::test]
async fn a_truncated_body_is_a_transport_error() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"resu";
    let fake_server = FakeServer::start([Act::Say(cut.to_owned())]).await;
    let redis = client_of(&fake_server.url, "token");
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert_eq!(fake_server.requests(), 1);
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_read() {
    let front = front().await;
    let redis = client(&front).with_max_body_bytes(1024);
    let set = |bytes: usize| Command::new("SET").arg("k").arg("x".repeat(bytes));
    let get = Command::new("GET").arg("k");
    let frame = r#"{"result":""}"#.len();

    redis.exec::<String>(&set(1024 - frame)).await.unwrap();
    assert_eq!(
        redis.exec::<String>(&get).await.unwrap().len(),
        1024 - frame
    );
    redis.exec::<String>(&set(1025 - frame)).await.unwrap();
    let error = redis.exec::<String>(&get).await.unwrap_err();
    let Error::BadBody {
        status: 200,
        detail,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(detail, "the body is over 1024 bytes");
}

#[tokio::test]
async fn a_stopped_front_refuses_connections() {
    let front = front().await;
    let redis = client(&front);
    assert_eq!(redis.exec::<i64>(&incr()).await.unwrap(), 1);
    front.stop().await.unwrap();
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
}
