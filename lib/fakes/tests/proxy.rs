//! The measuring proxies before servers small enough to be sure of.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test has its own servers and clients"
)]

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iconoclash_fakes::claude::{Config, StandIn};
use iconoclash_fakes::proxy::{Flights, Http, Mode, Tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const START: &[u8] = b"\0\0\0\x08\0\x03\0\0";
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const AUTH: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 3];
const READY: &[u8] = &[b'Z', 0, 0, 0, 5, b'I'];

/// Asks for a password, is ready after it, and from then on says whatever it hears.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = [0; 1024];
                for answer in [AUTH, READY] {
                    let mut read = socket.read(&mut heard).await?;
                    if &heard[..read] == SSL_REQUEST {
                        socket.write_all(b"N").await?;
                        read = socket.read(&mut heard).await?;
                    }
                    assert!(read > 0);
                    socket.write_all(answer).await?;
                }
                loop {
                    let read = socket.read(&mut heard).await?;
                    if read == 0 {
                        return io::Result::Ok(());
                    }
                    socket.write_all(&heard[..read]).await?;
                }
            });
        }
    });
    addr
}

async fn say(socket: &mut TcpStream, said: &[u8], expected: &[u8]) -> Duration {
    let began = Instant::now();
    socket.write_all(said).await.unwrap();
    let mut heard = vec![0; expected.len()];
    socket.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, expected);
    began.elapsed()
}

async fn connect(proxy: &Tcp) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    socket.set_nodelay(true).unwrap();
    say(&mut socket, START, AUTH).await;
    say(&mut socket, b"password", READY).await;
    socket
}

#[tokio::test]
async fn flights_are_counted_apart_from_those_that_connect() {
    let proxy = Tcp::start(server().await, Duration::ZERO).await.unwrap();
    let mut socket = TcpStream::connect(proxy.addr()).await.unwrap();
    say(&mut socket, SSL_REQUEST, b"N").await;
    say(&mut socket, START, AUTH).await;
    say(&mut socket, b"password", READY).await;
    assert_eq!(
        proxy.flights(),
        Flights {
            connect: 3,
            query: 0
        }
    );
    for _ in 0..4 {
        say(&mut socket, b"select 1", b"select 1").await;
    }
    assert_eq!(
        proxy.flights(),
        Flights {
            connect: 3,
            query: 4
        }
    );
    assert_eq!(proxy.connections(), 1);
    proxy.reset();
    say(&mut socket, b"select 1", b"select 1").await;
    assert_eq!(
        proxy.flights(),
        Flights {
            connect: 0,
            query: 1
        }
    );
}

#[tokio::test]
async fn the_delay_is_added_once_a_flight_and_what_follows_meanwhile_belongs_to_it() {
    let delay = Duration::from_millis(200);
    let proxy = Tcp::start(server().await, delay).await.unwrap();
    let mut socket = connect(&proxy).await;
    let took = say(&mut socket, b"select 1", b"select 1").await;
    assert!(took >= delay, "{took:?}");

    let began = Instant::now();
    for byte in b"pipelined" {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut heard = [0; 9];
    socket.read_exact(&mut heard).await.unwrap();
    assert!(began.elapsed() >= delay);
    assert_eq!(
        proxy.flights(),
        Flights {
            connect: 2,
            query: 2
        }
    );
}

#[tokio::test]
async fn a_goodbye_is_no_flight() {
    let proxy = Tcp::start(server().await, Duration::ZERO).await.unwrap();
    let mut socket = connect(&proxy).await;
    // The server of this test says it back, which tells that it went through.
    say(&mut socket, b"X\0\0\0\x04", b"X\0\0\0\x04").await;
    assert_eq!(
        proxy.flights(),
        Flights {
            connect: 2,
            query: 0
        }
    );
}

#[tokio::test]
async fn a_paused_proxy_accepts_and_keeps_everything_for_later() {
    let proxy = Tcp::start(server().await, Duration::ZERO).await.unwrap();
    let mut open = connect(&proxy).await;
    proxy.pause();
    let waiting = async {
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        tokio::join!(
            say(&mut open, b"hello", b"hello"),
            say(&mut new, START, AUTH)
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
async fn severing_closes_what_is_open_and_nothing_else() {
    let proxy = Tcp::start(server().await, Duration::ZERO).await.unwrap();
    let mut open = connect(&proxy).await;
    proxy.sever();
    let read = open.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let mut new = connect(&proxy).await;
    say(&mut new, b"hello", b"hello").await;
    let addr = proxy.addr();
    drop(proxy);
    let read = new.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn requests_and_their_flights_are_counted_and_delayed() {
    let stand_in = StandIn::start(Config::default()).await.unwrap();
    let delay = Duration::from_millis(20);
    let proxy = Http::start(&stand_in.url(), delay).await.unwrap();
    let models = || async {
        let url = format!("{}/v1/models?limit=5", proxy.url());
        let request = reqwest::Client::new()
            .get(url)
            .header("x-api-key", "sk-ant-local");
        request
            .header("anthropic-version", "2026-10-21")
            .send()
            .await
    };
    let began = Instant::now();
    let answer = models().await.unwrap();
    assert!(began.elapsed() >= delay);
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("request-id"));
    let body: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(body["data"][0]["type"], "model");

    let (one, two) = tokio::join!(models(), models());
    one.and(two).unwrap();
    assert_eq!((proxy.requests(), proxy.flights()), (3, 2));
    proxy.reset();
    assert_eq!((proxy.requests(), proxy.flights()), (0, 0));

    proxy.pause();
    let seen = stand_in.requests().len();
    let waiting = models();
    tokio::pin!(waiting);
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        () = proxy.wait_for_requests(1) => {}
    }
    assert!(tokio::time::timeout(delay * 2, &mut waiting).await.is_err());
    assert_eq!(stand_in.requests().len(), seen);
    proxy.resume();
    waiting.await.unwrap();

    proxy.mode(Mode::Html);
    let page = models().await.unwrap();
    assert_eq!(
        (
            page.status().as_u16(),
            page.headers()["content-type"].as_bytes()
        ),
        (502, &b"text/html"[..])
    );
    proxy.mode(Mode::TruncatedJson);
    let half = models().await.unwrap().text().await.unwrap();
    assert!(half.starts_with('{') && serde_json::from_str::<serde_json::Value>(&half).is_err());
    let asked = stand_in.requests().len();
    proxy.mode(Mode::Swallow);
    assert!(models().await.is_err());
    assert_eq!(
        stand_in.requests().len(),
        asked + 1,
        "swallowed after the upstream answered"
    );
    proxy.mode(Mode::Pass);
    models().await.unwrap();
}
