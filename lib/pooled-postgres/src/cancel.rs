//! Cancels statements at the server.
//!
//! The driver's own cancel request closes its socket as soon as it is written. Postgres accepts that, but PgBouncer
//! drops a request whose sender has left before the request was forwarded: PgBouncer 1.18 never cancelled anything.
//! Requests made here keep their socket open until the server closes it, which it does when the request is handled.

use std::{
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
    tls::{ChannelBinding, TlsStream},
};

use super::tls::Tls;

/// Sends cancel requests to the database's host.
#[derive(Clone)]
pub(super) struct Canceller {
    /// Host and port, or `None` for a Unix socket: Postgres itself listens there, not a pooler.
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

    /// Returns when the request is handled; a request that cannot be sent is given up.
    pub(super) async fn cancel(&self, token: CancelToken) {
        let Some((host, port)) = &self.address else {
            drop(token.cancel_query(self.tls.clone()).await);
            return;
        };
        let Ok(addresses) = lookup_host((host.as_str(), *port)).await else {
            return;
        };

        // Several addresses may be several poolers. Only one of them knows the token; the others ignore it.
        join_all(addresses.map(|address| {
            let token = token.clone();
            let handshake = self.tls.handshake(host, LingeringStream);
            async move {
                if let Ok(socket) = TcpStream::connect(address).await {
                    let stream = LingeringStream(socket);
                    drop(token.cancel_query_raw(stream, handshake).await);
                }
            }
        }))
        .await;
    }
}

/// A stream whose shutdown waits until the server closes the connection.
struct LingeringStream<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for LingeringStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringStream<S> {
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

impl<S: TlsStream + Unpin> TlsStream for LingeringStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}
