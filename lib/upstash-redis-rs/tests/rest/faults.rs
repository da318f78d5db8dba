//! What comes back when something is broken, and what is sent again.

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
    client, client_of, front, http,
    stand_in::{Act, StandIn, addr, say},
};

fn incr() -> Command {
    Command::new("INCR").arg("n")
}

async fn count(redis: &Redis) -> Option<String> {
    redis.exec(&Command::new("GET").arg("n")).await.unwrap()
}

#[tokio::test]
async fn an_incr_whose_answer_was_lost_is_not_counted_twice() {
    let front = front().await;
    let stand_in = StandIn::start([Act::Swallow(addr(front.url()))]).await;
    let redis = client_of(&stand_in.url, front.token());
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert!(error.is_unavailable());
    assert_eq!(count(&client(&front)).await.as_deref(), Some("1"));
    assert_eq!(stand_in.requests(), 1);
}

#[tokio::test]
async fn an_idempotent_command_whose_answer_was_lost_is_sent_once_more() {
    let front = front().await;
    let server = addr(front.url());
    let stand_in = StandIn::start([Act::Swallow(server), Act::Forward(server)]).await;
    let redis = client_of(&stand_in.url, front.token());
    // Only a command that is not idempotent shows how often it ran.
    assert_eq!(redis.exec::<i64>(&incr().idempotent()).await.unwrap(), 2);
    assert_eq!(stand_in.requests(), 2);
}

#[tokio::test]
async fn there_is_no_second_retry() {
    let front = front().await;
    let stand_in = StandIn::start([Act::Swallow(addr(front.url()))]).await;
    let redis = client_of(&stand_in.url, front.token());
    let error = redis.exec::<i64>(&incr().idempotent()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert_eq!(count(&client(&front)).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_batch_is_sent_once_more_only_if_all_of_it_is_idempotent() {
    let front = front().await;
    let server = addr(front.url());
    let stand_in = StandIn::start([Act::Swallow(server)]).await;
    let redis = client_of(&stand_in.url, front.token());
    let ping = || Command::new("PING").idempotent();

    let mixed = redis.pipeline(&[ping(), incr()]).await;
    assert!(matches!(mixed, Err(Error::Transport(_))), "{mixed:?}");
    assert_eq!(stand_in.requests(), 1);
    let whole = redis.pipeline(&[ping(), ping()]).await;
    assert!(matches!(whole, Err(Error::Transport(_))), "{whole:?}");
    assert_eq!(stand_in.requests(), 3);
}

/// Sends the first connection to a port where nobody listens, the others to `then`.
struct RefusedFirst {
    lookups: AtomicUsize,
    then: SocketAddr,
}

const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

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
            0 => NOBODY,
            _ => self.then,
        };
        let addrs: Addrs = Box::new([addr].into_iter());
        Box::pin(async { Ok(addrs) })
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_once_more_for_any_command() {
    let front = front().await;
    let (resolver, redis) = RefusedFirst::client(addr(front.url()), front.token());
    assert_eq!(redis.exec::<i64>(&incr()).await.unwrap(), 1);
    assert_eq!(resolver.lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_store_that_is_gone_is_tried_twice_and_no_more() {
    let (resolver, redis) = RefusedFirst::client(NOBODY, "token");
    let error = redis.exec::<i64>(&incr().idempotent()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Transport(cause) if cause.is_connect()),
        "{error:?}"
    );
    assert_eq!(resolver.lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_deadline() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"resu";
    for act in [Act::HangAfter(""), Act::HangAfter(head)] {
        let stand_in = StandIn::start([act]).await;
        let redis = client_of(&stand_in.url, "token").with_deadline(Duration::from_millis(100));
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
        let stand_in = StandIn::start([first, Act::HangAfter("")]).await;
        let redis = client_of(&stand_in.url, "token").with_deadline(Duration::from_secs(1));
        let command = Script::new("return 1").command(&[], &[]).idempotent();
        let error = redis.exec::<i64>(&command).await.unwrap_err();
        assert!(matches!(error, Error::Timeout), "{error:?}");
        assert_eq!(stand_in.requests(), 2);
    }
}

#[tokio::test]
async fn what_a_pipeline_did_is_known_even_if_its_script_could_not_be_sent_again() {
    let first = say(
        "200 OK",
        r#"[{"result":1},{"error":"NOSCRIPT No matching script."}]"#,
    );
    let stand_in = StandIn::start([first, Act::Say(String::new())]).await;
    let redis = client_of(&stand_in.url, "token");
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

/// What an answer becomes, which is never asked for twice.
async fn check(status: &str, body: &str, expected: &str) {
    let stand_in = StandIn::start([say(status, body)]).await;
    let redis = client_of(&stand_in.url, "token");
    let error = redis.exec::<Value>(&incr().idempotent()).await.unwrap_err();
    assert_eq!(format!("{error:?}"), expected, "{status} {body}");
    assert_eq!(stand_in.requests(), 1, "{status} {body}");
    let batch = redis.pipeline(&[incr().idempotent()]).await.unwrap_err();
    assert_eq!(
        error.is_unavailable(),
        batch.is_unavailable(),
        "{status} {body}"
    );
    assert_eq!(stand_in.requests(), 2, "{status} {body}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_from_a_refusal() {
    let bad =
        |status: u16, detail: &str| format!("BadBody {{ status: {status}, detail: {detail:?} }}");
    let html = "<!DOCTYPE html><title>One moment</title>";
    check(
        "200 OK",
        html,
        &bad(200, "Syntax error in 40 bytes of JSON"),
    )
    .await;
    check("200 OK", "", &bad(200, "Eof error in 0 bytes of JSON")).await;
    check(
        "200 OK",
        r#"{"result":[1,"#,
        &bad(200, "Eof error in 13 bytes of JSON"),
    )
    .await;
    check("200 OK", "7", &bad(200, "neither a result nor an error")).await;
    check("200 OK", "{}", &bad(200, "neither a result nor an error")).await;
    check(
        "403 Forbidden",
        r#"{"result":1}"#,
        &bad(403, "neither a result nor an error"),
    )
    .await;
    check(
        "404 Not Found",
        r#"{"error":{"code":"404"}}"#,
        &bad(404, "neither a result nor an error"),
    )
    .await;
    check("502 Bad Gateway", html, &bad(502, "a server error")).await;
    check(
        "503 Unavailable",
        r#"{"error":"ERR no"}"#,
        &bad(503, "a server error"),
    )
    .await;
    check("429 Too Many Requests", html, "Quota").await;
    check("401 Unauthorized", html, "Auth").await;
    let quota = r#"{"error":"ERR max requests limit exceeded. Limit: 500000, Usage: 500001"}"#;
    check("400 Bad Request", quota, "Quota").await;
    check(
        "400 Bad Request",
        r#"{"error":"ERR syntax error"}"#,
        r#"Redis("ERR syntax error")"#,
    )
    .await;
}

#[tokio::test]
async fn a_batch_must_be_answered_item_by_item() {
    let short = StandIn::start([say("200 OK", r#"[{"result":1}]"#)]).await;
    let single = StandIn::start([say("200 OK", r#"{"result":1}"#)]).await;
    for stand_in in [short, single] {
        let redis = client_of(&stand_in.url, "token");
        let results = redis.pipeline(&[incr(), incr()]).await;
        assert!(
            matches!(results, Err(Error::BadBody { status: 200, .. })),
            "{results:?}"
        );
    }
}

#[tokio::test]
async fn a_body_cut_by_the_network_is_the_networks_fault() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"resu";
    let stand_in = StandIn::start([Act::Say(cut.to_owned())]).await;
    let redis = client_of(&stand_in.url, "token");
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
    assert_eq!(stand_in.requests(), 1);
}

#[tokio::test]
async fn a_body_over_the_cap_is_not_read() {
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
async fn a_front_that_was_stopped_refuses() {
    let front = front().await;
    let redis = client(&front);
    assert_eq!(redis.exec::<i64>(&incr()).await.unwrap(), 1);
    front.stop().await.unwrap();
    let error = redis.exec::<i64>(&incr()).await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error:?}");
}
