//! TLS that always verifies the server's certificate.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    Socket,
    tls::{MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// An encrypted stream on top of the stream `S`.
pub(super) type Encrypted<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;

/// The TLS settings of a database. The certificate store is read for the first server that speaks TLS, because
/// reading it takes time that a server without TLS would waste.
#[derive(Clone)]
pub(super) struct Tls {
    root_certificates: Option<PathBuf>,
    maker: Arc<OnceLock<MakeRustlsConnect>>,
}

impl Tls {
    /// Trusts the platform's certificate authorities, and those in a PEM file.
    pub(super) fn new(root_certificates: Option<PathBuf>) -> Self {
        Self {
            root_certificates,
            maker: Arc::default(),
        }
    }

    /// A handshake with `host`; `wrap` finishes the encrypted stream.
    pub(super) fn handshake<W>(&self, host: &str, wrap: W) -> Handshake<W> {
        Handshake {
            tls: self.clone(),
            host: host.to_owned(),
            wrap,
        }
    }

    fn maker(&self) -> io::Result<MakeRustlsConnect> {
        if let Some(maker) = self.maker.get() {
            return Ok(maker.clone());
        }

        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier::new_with_extra_roots(self.extra_roots()?, provider.clone())
            .map_err(io::Error::other)?;

        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();

        let maker = self.maker.get_or_init(|| MakeRustlsConnect::new(config));

        Ok(maker.clone())
    }

    fn extra_roots(&self) -> io::Result<Vec<CertificateDer<'static>>> {
        let Some(path) = &self.root_certificates else {
            return Ok(Vec::new());
        };
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| io::Error::other(format!("sslrootcert {}: {error}", path.display())))
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Encrypted<Socket>;
    type TlsConnect = Handshake<fn(Encrypted<Socket>) -> Encrypted<Socket>>;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Self::TlsConnect> {
        Ok(self.handshake(host, std::convert::identity))
    }
}

/// A TLS handshake with one host. The driver starts it when the server agrees to TLS.
pub(super) struct Handshake<W> {
    tls: Tls,
    host: String,
    wrap: W,
}

impl<S, T, W> TlsConnect<S> for Handshake<W>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: TlsStream + Unpin,
    W: FnOnce(Encrypted<S>) -> T + Send + 'static,
{
    type Stream = T;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

    fn connect(self, socket: S) -> Self::Future {
        Box::pin(async move {
            let mut maker = self.tls.maker()?;
            let connector = MakeTlsConnect::<S>::make_tls_connect(&mut maker, &self.host)
                .map_err(io::Error::other)?;
            let encrypted = connector.connect(socket).await?;

            Ok((self.wrap)(encrypted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Tls;

    #[test]
    fn an_unreadable_root_certificate_is_named() {
        let tls = Tls::new(Some("/nowhere/ca.pem".into()));
        let error = tls.maker().err().unwrap().to_string();
        assert!(
            error.starts_with("sslrootcert /nowhere/ca.pem: "),
            "{error}"
        );
    }
}
