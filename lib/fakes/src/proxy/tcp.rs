//! A TCP proxy that understands the start of a Postgres connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::postgres::{Encrypted, StartUp, is_terminate};
use crate::sync::lock;

/// Forwards connections and counts their round trips.
///
/// A round trip is everything that a client sends between two answers of the server, in any number
/// of packets and statements. The proxy reads the protocol to find the end of a connection's
/// start-up, so it closes encrypted connections.
pub struct Tcp {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// Round trips since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// Those before the server was first ready for a query.
    pub connect: u64,
    /// Those after.
    pub query: u64,
}

struct Shared {
    upstream: SocketAddr,
    delay: Duration,
    connect: AtomicU64,
    query: AtomicU64,
    connections: AtomicU64,
    paused: watch::Sender<bool>,
    /// Closes the connections that are open now.
    open: Mutex<CancellationToken>,
}

impl Tcp {
    /// Listens on a free port. Each round trip reaches the server after `delay`.
    pub async fn start(upstream: SocketAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;

        let shared = Arc::new(Shared {
            upstream,
            delay,
            connect: AtomicU64::new(0),
            query: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            paused: watch::Sender::new(false),
            open: Mutex::default(),
        });

        let stop = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(&shared), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));

        Ok(Self {
            addr,
            shared,
            _stop: stop.drop_guard(),
        })
    }

    /// The address for clients.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The round trips so far.
    pub fn round_trips(&self) -> RoundTrips {
        RoundTrips {
            connect: self.shared.connect.load(Ordering::SeqCst),
            query: self.shared.query.load(Ordering::SeqCst),
        }
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Resets the counters.
    pub fn reset(&self) {
        self.shared.connect.store(0, Ordering::SeqCst);
        self.shared.query.store(0, Ordering::SeqCst);
        self.shared.connections.store(0, Ordering::SeqCst);
    }

    /// Accepts connections, but forwards nothing.
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Forwards the bytes that waited, and all later ones.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// Closes every open connection; new ones are accepted.
    pub fn sever(&self) {
        let mut open = lock(&self.shared.open);
        open.cancel();
        *open = CancellationToken::new();
    }
}

impl Shared {
    async fn wait_while_paused(&self) {
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);

        let shared = Arc::clone(&shared);
        let stop = stop.clone();
        let open = lock(&shared.open).clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = open.cancelled() => {}
                // An error on one side ends the connection, which closes the other side.
                _ = forward(client, &shared) => {}
            }
        });
    }
}

/// The state that both directions of a connection share.
#[derive(Default)]
struct Exchange {
    start_up: StartUp,
    client_sent_last: bool,
}

async fn forward(client: TcpStream, shared: &Shared) -> io::Result<()> {
    shared.wait_while_paused().await;
    let server = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;

    let exchange = Mutex::new(Exchange::default());
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();

    tokio::select! {
        ended = forward_to_server(from_client, to_server, shared, &exchange) => ended,
        ended = forward_to_client(from_server, to_client, shared, &exchange) => ended,
    }
}

async fn forward_to_server(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    exchange: &Mutex<Exchange>,
) -> io::Result<()> {
    let mut burst = Vec::with_capacity(16 * 1024);
    loop {
        if from.read_buf(&mut burst).await? == 0 {
            return Ok(());
        }

        if starts_round_trip(exchange, &burst, shared) {
            // Bytes that arrive during the delay belong to the same round trip.
            let deadline = Instant::now() + shared.delay;
            while let Ok(read) = timeout_at(deadline, from.read_buf(&mut burst)).await {
                if read? == 0 {
                    tokio::time::sleep_until(deadline).await;
                    break;
                }
            }
        }

        shared.wait_while_paused().await;
        to.write_all(&burst).await?;
        burst.clear();
    }
}

async fn forward_to_client(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    exchange: &Mutex<Exchange>,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    loop {
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        shared.wait_while_paused().await;

        // Before the client can answer, so that its next bytes start a new round trip.
        server_sent(exchange, &bytes)?;
        to.write_all(&bytes).await?;
        bytes.clear();
    }
}

fn server_sent(exchange: &Mutex<Exchange>, bytes: &[u8]) -> io::Result<()> {
    let mut exchange = lock(exchange);
    exchange.client_sent_last = false;

    let read = exchange.start_up.server_sent(bytes);
    read.map_err(|Encrypted| {
        io::Error::other("round trips of an encrypted connection cannot be counted")
    })
}

/// Counts a round trip if these bytes of the client start one.
fn starts_round_trip(exchange: &Mutex<Exchange>, burst: &[u8], shared: &Shared) -> bool {
    let mut exchange = lock(exchange);
    exchange.start_up.client_sent(burst);

    let continues = std::mem::replace(&mut exchange.client_sent_last, true);
    if continues || is_terminate(burst) {
        return false;
    }

    let counter = match exchange.start_up.is_ready() {
        true => &shared.query,
        false => &shared.connect,
    };
    counter.fetch_add(1, Ordering::SeqCst);
    true
}
