//! Asks a server to cancel a statement, and waits until it has.
//!
//! The driver's own request closes its socket as soon as it is written. Postgres does not mind, but PgBouncer drops a
//! request whose sender has left before it was passed on (measured on 1.18, where no statement was ever cancelled).
//! So here the socket stays open until the other side closes it, which is how a server says that it is done.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
};
use tokio_postgres::{
    CancelToken, Config,
    config::Host,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connect::Tls;

/// Where requests to cancel are sent, and how.
#[derive(Clone)]
pub(super) struct Canceller {
    /// None for a local socket, at which Postgres itself listens.
    address: Option<(String, u16)>,
    tls: Tls,
}

impl Canceller {
    pub(super) fn new(config: &Config, tls: Tls) -> Self {
        let address = match config.get_hosts() {
            [Host::Tcp(host)] => {
                let port = config.get_ports().first().copied().unwrap_or(5432);
                Some((host.clone(), port))
            }
            _ => None,
        };
        Self { address, tls }
    }

    pub(super) async fn cancel(&self, token: CancelToken) {
        let Some((host, port)) = &self.address else {
            drop(token.cancel_query(self.tls.clone()).await);
            return;
        };
        let Ok(addresses) = lookup_host((host.as_str(), *port)).await else {
            return;
        };
        // Several addresses may be several poolers, and only one of them knows the key; to the others it is nothing.
        join_all(addresses.map(|address| {
            let token = token.clone();
            let handshake = Handshake {
                tls: self.tls.clone(),
                host: host.clone(),
            };
            async move {
                if let Ok(socket) = TcpStream::connect(address).await {
                    drop(token.cancel_query_raw(Patient(socket), handshake).await);
                }
            }
        }))
        .await;
    }
}

type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Patient<TcpStream>>>::Stream;

struct Handshake {
    tls: Tls,
    host: String,
}

impl TlsConnect<Patient<TcpStream>> for Handshake {
    type Stream = Patient<Encrypted>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, socket: Patient<TcpStream>) -> Self::Future {
        Box::pin(async move { Ok(Patient(self.tls.shake_hands(&self.host, socket).await?)) })
    }
}

/// A stream that ends by waiting for the other side to end it.
struct Patient<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut bytes = [0; 64];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: TlsStream + Unpin> TlsStream for Patient<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}
