//! A piece of network that a test can break.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinSet,
};

/// Forwards connections to a server until told otherwise.
pub(crate) struct Gate {
    address: SocketAddr,
    faults: Arc<Faults>,
    /// Raised to swallow what goes through the connections open at that moment.
    swallowed: watch::Sender<usize>,
    _listening: JoinSet<()>,
}

#[derive(Default)]
struct Faults {
    answers_new: AtomicBool,
    cuts_next_answer: AtomicBool,
    accepted: AtomicUsize,
}

impl Gate {
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults::default());
        faults.answers_new.store(true, Ordering::SeqCst);
        let (swallowed, watched) = watch::channel(0);
        let mut listening = JoinSet::new();
        listening.spawn(accept(listener, server.to_owned(), faults.clone(), watched));
        Self {
            address,
            faults,
            swallowed,
            _listening: listening,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on what is open loses every byte without being closed, as behind a NAT that forgot it.
    pub(crate) fn swallow_open_connections(&self) {
        self.swallowed.send_modify(|generation| *generation += 1);
    }

    /// From now on connections are accepted and never answered.
    pub(crate) fn swallow_new_connections(&self) {
        self.faults.answers_new.store(false, Ordering::SeqCst);
    }

    /// The server gets the next statement, and its client never learns what came of it.
    pub(crate) fn cut_next_answer(&self) {
        self.faults.cuts_next_answer.store(true, Ordering::SeqCst);
    }

    pub(crate) fn accepted(&self) -> usize {
        self.faults.accepted.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    server: String,
    faults: Arc<Faults>,
    swallowed: watch::Receiver<usize>,
) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        faults.accepted.fetch_add(1, Ordering::SeqCst);
        let (server, faults, mut swallowed) = (server.clone(), faults.clone(), swallowed.clone());
        swallowed.mark_unchanged();
        open.spawn(async move {
            if !faults.answers_new.load(Ordering::SeqCst) {
                return hold(client).await;
            }
            let server = TcpStream::connect(server).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let mut forwarding = std::pin::pin!(async {
                tokio::select! {
                    () = requests(from_client, to_server) => {}
                    () = answers(from_server, to_client, &faults) => {}
                }
            });
            tokio::select! {
                () = &mut forwarding => {}
                // Kept and not polled: silence is not a close.
                _ = swallowed.changed() => std::future::pending().await,
            }
        });
    }
}

async fn hold(_client: TcpStream) {
    std::future::pending().await
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if faults.cuts_next_answer.swap(false, Ordering::SeqCst) {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
