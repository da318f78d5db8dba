//! HTTP/2 over TLS, with a limit of streams, `GOAWAY` and lost connections.

use std::io;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::HttpService;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};
use tokio_util::sync::CancellationToken;

use super::{Body, HangUp};
use crate::sync::lock;

/// The side of a server that speaks HTTP/2.
pub(crate) struct Http2 {
    acceptor: TlsAcceptor,
    certificate: Vec<u8>,
    max_streams: u32,
    /// Oldest first, closed ones included.
    connections: Mutex<Vec<Connection>>,
}

/// What a test can ask of a connection.
#[derive(Clone, Default)]
struct Connection {
    go_away: CancellationToken,
    close: CancellationToken,
}

impl Http2 {
    /// A certificate for the loopback address, and a limit of streams on a connection.
    pub(super) fn new(max_streams: u32) -> io::Result<Self> {
        let names = ["127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());

        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec()];

        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate: cert.der().to_vec(),
            max_streams,
            connections: Mutex::default(),
        })
    }

    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The number of connections, closed ones included.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.connections).len()
    }

    /// Announces on every connection that it takes no more requests. Those under way go on.
    pub(crate) fn go_away(&self) {
        for connection in &*lock(&self.connections) {
            connection.go_away.cancel();
        }
    }

    /// Closes every connection.
    pub(crate) fn close(&self) {
        for connection in &*lock(&self.connections) {
            connection.close.cancel();
        }
    }

    pub(super) async fn serve<S>(self: Arc<Self>, socket: TcpStream, service: S)
    where
        S: HttpService<Incoming, ResBody = Body, Error = HangUp> + Send + 'static,
        S::Future: Send + 'static,
    {
        // A client that has found another connection leaves during the handshake.
        let Ok(stream) = self.acceptor.accept(socket).await else {
            return;
        };
        let asked = Connection::default();
        lock(&self.connections).push(asked.clone());

        let mut connection = Box::pin(
            http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(self.max_streams)
                .serve_connection(TokioIo::new(stream), service),
        );
        tokio::select! {
            _ended = connection.as_mut() => return,
            () = asked.close.cancelled() => return,
            () = asked.go_away.cancelled() => connection.as_mut().graceful_shutdown(),
        }

        let _ended = asked.close.run_until_cancelled(connection).await;
    }
}
