//! A proxy for Postgres connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::postgres::{Encrypted, StartUp, is_goodbye};

/// Forwards connections and counts their flights: what a client sends after the server last spoke,
/// however many packets and statements it is, is one flight.
///
/// It reads the protocol to tell a connection's start-up from its use, so encryption is refused by closing.
pub struct Tcp {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// Flights since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flights {
    /// Those before a connection's server was first ready for a query.
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
    /// Ends the connections that are open now.
    open: Mutex<CancellationToken>,
}

impl Tcp {
    /// Listens on a free port; `delay` is added to each flight before the server sees it.
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

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The flights so far.
    pub fn flights(&self) -> Flights {
        Flights {
            connect: self.shared.connect.load(Ordering::SeqCst),
            query: self.shared.query.load(Ordering::SeqCst),
        }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Counts from zero.
    pub fn reset(&self) {
        self.shared.connect.store(0, Ordering::SeqCst);
        self.shared.query.store(0, Ordering::SeqCst);
        self.shared.connections.store(0, Ordering::SeqCst);
    }

    /// Goes on to accept, but forwards nothing.
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Forwards what was kept back, and all that comes.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// Closes every open connection; new ones are welcome.
    pub fn sever(&self) {
        let mut open = self.shared.open();
        open.cancel();
        *open = CancellationToken::new();
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, CancellationToken> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unpaused(&self) {
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (shared, stop, open) = (Arc::clone(&shared), stop.clone(), shared.open().clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = open.cancelled() => {}
                // An error of either side ends the connection, which is how the other side learns of it.
                _ = forward(client, &shared) => {}
            }
        });
    }
}

/// What the two directions of a connection know of each other.
#[derive(Default)]
struct Talk {
    start_up: StartUp,
    client_spoke_last: bool,
}

async fn forward(client: TcpStream, shared: &Shared) -> io::Result<()> {
    shared.unpaused().await;
    let server = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let talk = Mutex::new(Talk::default());
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = to_the_server(from_client, to_server, shared, &talk) => ended,
        ended = to_the_client(from_server, to_client, shared, &talk) => ended,
    }
}

async fn to_the_server(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    talk: &Mutex<Talk>,
) -> io::Result<()> {
    let mut burst = Vec::with_capacity(16 * 1024);
    loop {
        if from.read_buf(&mut burst).await? == 0 {
            return Ok(());
        }
        if begins_flight(talk, &burst, shared) {
            // What the client adds meanwhile belongs to the same flight.
            let deadline = Instant::now() + shared.delay;
            while let Ok(read) = timeout_at(deadline, from.read_buf(&mut burst)).await {
                if read? == 0 {
                    tokio::time::sleep_until(deadline).await;
                    break;
                }
            }
        }
        shared.unpaused().await;
        to.write_all(&burst).await?;
        burst.clear();
    }
}

async fn to_the_client(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    talk: &Mutex<Talk>,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    loop {
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        shared.unpaused().await;
        {
            // Before the client can answer: its next bytes are then a new flight.
            let mut talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
            talk.client_spoke_last = false;
            talk.start_up.server_said(&bytes).map_err(|Encrypted| {
                io::Error::other("the connection is encrypted, so its flights cannot be told apart")
            })?;
        }
        to.write_all(&bytes).await?;
        bytes.clear();
    }
}

fn begins_flight(talk: &Mutex<Talk>, burst: &[u8], shared: &Shared) -> bool {
    let mut talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
    talk.start_up.client_said(burst);
    if std::mem::replace(&mut talk.client_spoke_last, true) || is_goodbye(burst) {
        return false;
    }
    let counter = if talk.start_up.is_ready() {
        &shared.query
    } else {
        &shared.connect
    };
    counter.fetch_add(1, Ordering::SeqCst);
    true
}
