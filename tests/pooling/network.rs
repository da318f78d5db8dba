//! A network between a client and a server that a test can break.

use std::{
    future::pending,
    net::SocketAddr,
    pin::pin,
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

/// Forwards connections to a server until a test breaks it.
pub(crate) struct FaultyNetwork {
    address: SocketAddr,
    faults: Arc<Faults>,
    /// Changes when the connections that are open go silent.
    silence: watch::Sender<usize>,
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct Faults {
    new_connections_are_silent: AtomicBool,
    cut_next_answer: AtomicBool,
    accepted: AtomicUsize,
}

impl FaultyNetwork {
    pub(crate) async fn in_front_of(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults::default());
        let (silence, silenced) = watch::channel(0);

        let mut accepting = JoinSet::new();
        accepting.spawn(accept(
            listener,
            server.to_owned(),
            faults.clone(),
            silenced,
        ));
        Self {
            address,
            faults,
            silence,
            _accepting: accepting,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The open connections lose every byte without being closed, as behind a NAT that dropped them.
    pub(crate) fn silence_open_connections(&self) {
        self.silence.send_modify(|generation| *generation += 1);
    }

    /// New connections are accepted and never answered.
    pub(crate) fn silence_new_connections(&self) {
        let silent = &self.faults.new_connections_are_silent;
        silent.store(true, Ordering::SeqCst);
    }

    /// The server receives the next statement, and the connection closes before its answer arrives.
    pub(crate) fn cut_next_answer(&self) {
        self.faults.cut_next_answer.store(true, Ordering::SeqCst);
    }

    /// The number of connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.faults.accepted.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    server: String,
    faults: Arc<Faults>,
    silenced: watch::Receiver<usize>,
) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        faults.accepted.fetch_add(1, Ordering::SeqCst);

        let mut silenced = silenced.clone();
        silenced.mark_unchanged();
        open.spawn(forward(client, server.clone(), faults.clone(), silenced));
    }
}

async fn forward(
    client: TcpStream,
    server: String,
    faults: Arc<Faults>,
    mut silenced: watch::Receiver<usize>,
) {
    if faults.new_connections_are_silent.load(Ordering::SeqCst) {
        return keep_open(client).await;
    }

    let server = TcpStream::connect(server).await.unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut forwarding = pin!(async {
        tokio::select! {
            () = forward_requests(from_client, to_server) => {}
            () = forward_answers(from_server, to_client, &faults) => {}
        }
    });

    tokio::select! {
        () = &mut forwarding => {}
        // Not dropped, because that would close the connection.
        _ = silenced.changed() => pending().await,
    }
}

async fn keep_open(_client: TcpStream) {
    pending().await
}

async fn forward_requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn forward_answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if faults.cut_next_answer.swap(false, Ordering::SeqCst) {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
