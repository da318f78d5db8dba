//! How connections are made: the URL, TLS, the pool and its bounds.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use rustls::{
    ClientConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_postgres::{
    Config, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Error, cancel::Canceller};

const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_BEFORE_CHECK: Duration = Duration::from_secs(5);
const CHECK_TIMEOUT: Duration = Duration::from_millis(300);

/// A pool that connects when it is first asked.
pub(super) fn pool(url: &str, size: usize) -> Result<(Pool, Canceller), Error> {
    let (config, tls) = read(url)?;
    let canceller = Canceller::new(&config, tls.clone());
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(config, tls, recycling);
    let pool = Pool::builder(manager)
        .max_size(size.max(1))
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(WAIT_TIMEOUT),
            create: Some(CONNECT_TIMEOUT),
            recycle: None,
        })
        // The connection used last is the least likely to have gone stale.
        .queue_mode(deadpool_postgres::QueueMode::Lifo)
        .pre_recycle(Hook::async_fn(|connection, metrics| {
            let idle = metrics.last_used();
            Box::pin(async move {
                if idle < IDLE_BEFORE_CHECK {
                    return Ok(());
                }
                match timeout(CHECK_TIMEOUT, connection.check_connection()).await {
                    Ok(answer) => answer.map_err(HookError::Backend),
                    Err(_) => Err(HookError::message("no answer on an idle connection")),
                }
            })
        }))
        .build()
        .map_err(Error::other)?;
    Ok((pool, canceller))
}

/// Parameters that the driver knows and a pooler takes. Providers add their own (`pgbouncer=true`, `supa=…`), and
/// `options` would have the connection refused.
const KNOWN: [&str; 6] = [
    "application_name",
    "channel_binding",
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

fn read(url: &str) -> Result<(Config, Tls), Error> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let mut kept = Vec::new();
    let mut root_certificates = None;
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match (name, value) {
            // Certificates are always checked, so these ask for nothing more.
            ("sslmode", "verify-ca" | "verify-full") => kept.push("sslmode=require".to_owned()),
            ("sslmode", "allow") => kept.push("sslmode=prefer".to_owned()),
            ("sslrootcert", "system") => {}
            ("sslrootcert", path) => root_certificates = Some(PathBuf::from(path)),
            _ if KNOWN.contains(&name) => kept.push(format!("{name}={value}")),
            _ => {}
        }
    }
    let mut config: Config = format!("{address}?{}", kept.join("&"))
        .parse()
        .map_err(Error::other)?;
    if config.get_hosts().is_empty() {
        return Err(Error::other("the database URL names no host"));
    }
    if config.get_application_name().is_none() {
        config.application_name("iconoclash");
    }
    config
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(5));
    let tls = Tls {
        root_certificates,
        maker: Arc::default(),
    };
    Ok((config, tls))
}

/// TLS that reads the certificate store when a server first speaks TLS: a local server never costs it.
#[derive(Clone)]
pub(super) struct Tls {
    root_certificates: Option<PathBuf>,
    maker: Arc<OnceLock<MakeRustlsConnect>>,
}

impl Tls {
    fn maker(&self) -> io::Result<MakeRustlsConnect> {
        if let Some(maker) = self.maker.get() {
            return Ok(maker.clone());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let extra = match &self.root_certificates {
            Some(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| {
                    io::Error::other(format!("sslrootcert {}: {error}", path.display()))
                })?,
            None => Vec::new(),
        };
        let verifier =
            Verifier::new_with_extra_roots(extra, provider.clone()).map_err(io::Error::other)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(self
            .maker
            .get_or_init(|| MakeRustlsConnect::new(config))
            .clone())
    }

    pub(super) async fn shake_hands<S>(
        &self,
        host: &str,
        socket: S,
    ) -> io::Result<<MakeRustlsConnect as MakeTlsConnect<S>>::Stream>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut maker = self.maker()?;
        let connector =
            MakeTlsConnect::<S>::make_tls_connect(&mut maker, host).map_err(io::Error::other)?;
        connector.connect(socket).await
    }
}

type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// A handshake with one host, begun only when the server agrees to TLS.
pub(super) struct Handshake {
    tls: Tls,
    host: String,
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        Ok(Handshake {
            tls: self.clone(),
            host: host.to_owned(),
        })
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move { self.tls.shake_hands(&self.host, socket).await })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_postgres::config::SslMode;

    use super::read;

    #[test]
    fn providers_own_parameters_and_startup_options_are_left_out() {
        let (config, _) =
            read("postgres://u:p%40ss@h:6543/d?pgbouncer=true&options=-c%20x%3Dy&supa=base&sslmode=require").unwrap();
        assert_eq!(config.get_user(), Some("u"));
        assert_eq!(config.get_password(), Some(b"p@ss".as_slice()));
        assert_eq!(config.get_options(), None);
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_application_name(), Some("iconoclash"));
    }

    #[test]
    fn every_sslmode_of_libpq_is_understood() {
        for (mode, expected) in [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Prefer),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::Require),
            ("verify-full", SslMode::Require),
        ] {
            let (config, _) = read(&format!("postgres://u@h/d?sslmode={mode}")).unwrap();
            assert_eq!(config.get_ssl_mode(), expected, "{mode}");
        }
        assert!(read("postgres://u@h/d?sslmode=maybe").is_err());
    }

    #[test]
    fn a_private_authority_is_named_in_the_url() {
        let (_, tls) = read("postgres://u@h/d?sslrootcert=/etc/ca.pem").unwrap();
        assert_eq!(
            tls.root_certificates.as_deref(),
            Some(Path::new("/etc/ca.pem"))
        );
        let (_, tls) = read("postgres://u@h/d?sslrootcert=system").unwrap();
        assert_eq!(tls.root_certificates, None);
    }

    #[test]
    fn what_is_no_url_is_refused_without_repeating_its_password() {
        for url in [
            "",
            "nonsense",
            "postgres://u:secret@h:port/d",
            "u:secret@h/d",
        ] {
            let error = read(url).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
