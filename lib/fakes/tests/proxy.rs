//! The measuring proxies in front of minimal servers.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test has its own servers and clients"
)]

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iconoclash_fakes::claude::{Config, FakeClaude};
use iconoclash_fakes::proxy::{Http, Mode, RoundTrips, Tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const START: &[u8] = b"\0\0\0\x08\0\x03\0\0";
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const AUTH: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 3];
const READY: &[u8] = &[b'Z', 0, 0, 0, 5, b'I'];

/// Starts a server that asks for a password, then is ready, then echoes every byte.
async fn start_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();

    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(socket));
        }
    });
    addr
}

async fn serve(mut socket: TcpStream) -> io::Result<()> {
    let mut received = [0; 1024];

    for answer in [AUTH, READY] {
        let mut read = socket.read(&mut received).await?;
        if &received[..read] == SSL_REQUEST {
            socket.write_all(b"N").await?;
            read = socket.read(&mut received).await?;
        }
        assert!(read > 0);
        socket.write_all(answer).await?;
    }

    loop {
        let read = socket.read(&mut received).await?;
        if read == 0 {
            return Ok(());
        }
        socket.write_all(&received[..read]).await?;
    }
}

/// Sends bytes, checks the answer and returns how long it took.
async fn exchange(socket: &mut TcpStream, sent: &[u8], expected: &[u8]) -> Duration {
    let started_at = Instant::now();
    socket.write_all(sent).await.unwrap();

    let mut received = vec![0; expected.len()];
    socket.read_exact(&mut received).await.unwrap();
    assert_eq!(received, expected);

    started_at.elapsed()
}

async fn connect(proxy: &Tcp) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    socket.set_nodelay(true).unwrap();
    exchange(&mut socket, START, AUTH).await;
    exchange(&mut socket, b"password", READY).await;

    socket
}

#[track_caller]
fn check_round_trips(proxy: &Tcp, connect: u64, query: u64) {
    assert_eq!(proxy.round_trips(), RoundTrips { connect, query });
}

#[tokio::test]
async fn round_trips_of_queries_and_of_connecting_are_counted_separately() {
    let proxy = Tcp::start(start_server().await, Duration::ZERO)
        .await
        .unwrap();
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    exchange(&mut socket, SSL_REQUEST, b"N").await;
    exchange(&mut socket, START, AUTH).await;
    exchange(&mut socket, b"password", READY).await;
    check_round_trips(&proxy, 3, 0);

    for _ in 0..4 {
        exchange(&mut socket, b"select 1", b"select 1").await;
    }
    check_round_trips(&proxy, 3, 4);
    assert_eq!(proxy.connections(), 1);

    proxy.reset();
    exchange(&mut socket, b"select 1", b"select 1").await;
    check_round_trips(&proxy, 0, 1);
}

#[tokio::test]
async fn the_delay_is_added_once_per_round_trip_and_bytes_during_it_belong_to_the_same() {
    let delay = Duration::from_millis(200);
    let proxy = Tcp::start(start_server().await, delay).await.unwrap();
    let mut socket = connect(&proxy).await;

    let took = exchange(&mut socket, b"select 1", b"select 1").await;
    assert!(took >= delay, "{took:?}");

    let started_at = Instant::now();
    for byte in b"pipelined" {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }

    let mut received = [0; 9];
    socket.read_exact(&mut received).await.unwrap();
    assert!(started_at.elapsed() >= delay);
    check_round_trips(&proxy, 2, 2);
}

#[tokio::test]
async fn a_terminate_message_is_no_round_trip() {
    let proxy = Tcp::start(start_server().await, Duration::ZERO)
        .await
        .unwrap();
    let mut socket = connect(&proxy).await;

    // The test's server echoes it, which proves that it was forwarded.
    exchange(&mut socket, b"X\0\0\0\x04", b"X\0\0\0\x04").await;
    check_round_trips(&proxy, 2, 0);
}

#[tokio::test]
async fn a_paused_proxy_accepts_and_forwards_everything_later() {
    let proxy = Tcp::start(start_server().await, Duration::ZERO)
        .await
        .unwrap();
    let mut open = connect(&proxy).await;

    proxy.pause();
    let waiting = async {
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        tokio::join!(
            exchange(&mut open, b"hello", b"hello"),
            exchange(&mut new, START, AUTH)
        )
    };
    tokio::pin!(waiting);

    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut waiting)
            .await
            .is_err()
    );

    proxy.resume();
    waiting.await;
}

#[tokio::test]
async fn severing_closes_open_connections_and_accepts_new_ones() {
    let proxy = Tcp::start(start_server().await, Duration::ZERO)
        .await
        .unwrap();
    let mut open = connect(&proxy).await;

    proxy.sever();
    let read = open.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");

    let mut new = connect(&proxy).await;
    exchange(&mut new, b"hello", b"hello").await;

    let addr = proxy.addr();
    drop(proxy);
    let read = new.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(TcpStream::connect(addr).await.is_err());
}

/// Lists the models of a fake Claude through a proxy.
async fn list_models(proxy: &Http) -> reqwest::Result<reqwest::Response> {
    let request = reqwest::Client::new()
        .get(format!("{}/v1/models?limit=5", proxy.url()))
        .header("x-api-key", "sk-ant-local")
        .header("anthropic-version", "2026-10-21");

    request.send().await
}

#[tokio::test]
async fn requests_and_their_round_trips_are_counted_and_delayed() {
    let fake = FakeClaude::start(Config::default()).await.unwrap();
    let delay = Duration::from_millis(20);
    let proxy = Http::start(&fake.url(), delay).await.unwrap();

    let started_at = Instant::now();
    let answer = list_models(&proxy).await.unwrap();
    assert!(started_at.elapsed() >= delay);
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("request-id"));
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(body["data"][0]["type"], "model");

    let (one, two) = tokio::join!(list_models(&proxy), list_models(&proxy));
    one.and(two).unwrap();
    assert_eq!((proxy.requests(), proxy.round_trips()), (3, 2));

    proxy.reset();
    assert_eq!((proxy.requests(), proxy.round_trips()), (0, 0));
}

#[tokio::test]
async fn a_paused_proxy_counts_requests_and_forwards_them_later() {
    let fake = FakeClaude::start(Config::default()).await.unwrap();
    let proxy = Http::start(&fake.url(), Duration::ZERO).await.unwrap();

    proxy.pause();
    let waiting = list_models(&proxy);
    tokio::pin!(waiting);
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        () = proxy.wait_for_requests(1) => {}
    }

    let soon = Duration::from_millis(40);
    assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
    assert_eq!(fake.requests().len(), 0);

    proxy.resume();
    waiting.await.unwrap();
}

#[tokio::test]
async fn answers_are_replaced_cut_or_swallowed() {
    let fake = FakeClaude::start(Config::default()).await.unwrap();
    let proxy = Http::start(&fake.url(), Duration::ZERO).await.unwrap();

    proxy.mode(Mode::Html);
    let page = list_models(&proxy).await.unwrap();
    assert_eq!(page.status(), 502);
    assert_eq!(page.headers()["content-type"], "text/html");

    proxy.mode(Mode::TruncatedJson);
    let half = list_models(&proxy).await.unwrap().text().await.unwrap();
    assert!(half.starts_with('{'));
    assert!(serde_json::from_str::<serde_json::Value>(&half).is_err());

    let before = fake.requests().len();
    proxy.mode(Mode::Swallow);
    assert!(list_models(&proxy).await.is_err());
    assert_eq!(
        fake.requests().len(),
        before + 1,
        "swallowed after the upstream answered"
    );

    proxy.mode(Mode::Pass);
    list_models(&proxy).await.unwrap();
}
