//! How connections are made: the URL, the pool and its limits.

use std::{path::PathBuf, time::Duration};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod,
    Runtime, Timeouts,
};
use tokio::time::timeout;
use tokio_postgres::Config;

use super::{Error, cancel::Canceller, tls::Tls};

const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_BEFORE_CHECK: Duration = Duration::from_secs(5);
const CHECK_TIMEOUT: Duration = Duration::from_millis(300);

/// A pool that makes its first connection for the first statement.
pub(super) fn pool(
    url: &str,
    size: usize,
    application_name: Option<&str>,
) -> Result<(Pool, Canceller), Error> {
    let Database {
        config,
        root_certificates,
    } = Database::from_url(url, application_name)?;
    let tls = Tls::new(root_certificates);
    let canceller = Canceller::new(&config, tls.clone());

    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let pool = Pool::builder(Manager::from_config(config, tls, recycling))
        .max_size(size.max(1))
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(WAIT_TIMEOUT),
            create: Some(CONNECT_TIMEOUT),
            recycle: None,
        })
        // The connection used last is the least likely to be dead.
        .queue_mode(QueueMode::Lifo)
        .pre_recycle(Hook::async_fn(|connection, metrics| {
            Box::pin(check_if_idle(connection, metrics.last_used()))
        }))
        .build()
        .map_err(Error::other)?;

    Ok((pool, canceller))
}

/// Fails for a connection that was idle for a while and does not answer any more.
async fn check_if_idle(connection: &ClientWrapper, idle: Duration) -> Result<(), HookError> {
    if idle < IDLE_BEFORE_CHECK {
        return Ok(());
    }

    match timeout(CHECK_TIMEOUT, connection.check_connection()).await {
        Ok(answer) => answer.map_err(HookError::Backend),
        Err(_) => Err(HookError::message("no answer on an idle connection")),
    }
}

/// The parameters of a URL that the driver knows and a pooler accepts. Providers add their own (`pgbouncer=true`,
/// `supa=…`), which the driver rejects, and poolers reject `options`.
const SUPPORTED_PARAMETERS: [&str; 6] = [
    "application_name",
    "channel_binding",
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
    "user",
];

/// A database as its URL describes it.
struct Database {
    config: Config,
    root_certificates: Option<PathBuf>,
}

impl Database {
    fn from_url(url: &str, application_name: Option<&str>) -> Result<Self, Error> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut supported = Vec::new();
        let mut root_certificates = None;

        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match (name, value) {
                // Certificates are always verified, so these modes ask for nothing more.
                ("sslmode", "verify-ca" | "verify-full") => {
                    supported.push("sslmode=require".to_owned());
                }
                ("sslmode", "allow") => supported.push("sslmode=prefer".to_owned()),
                ("sslrootcert", "system") => {}
                ("sslrootcert", path) => root_certificates = Some(PathBuf::from(path)),
                _ if SUPPORTED_PARAMETERS.contains(&name) => {
                    supported.push(format!("{name}={value}"));
                }
                _ => {}
            }
        }

        let mut config: Config = format!("{address}?{}", supported.join("&"))
            .parse()
            .map_err(Error::other)?;
        if config.get_hosts().is_empty() {
            return Err(Error::other("the database URL names no host"));
        }

        if let Some(name) = application_name
            && config.get_application_name().is_none()
        {
            config.application_name(name);
        }
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(5));

        Ok(Self {
            config,
            root_certificates,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_postgres::config::SslMode;

    use super::Database;

    fn parse(url: &str) -> Database {
        Database::from_url(url, Some("the-application")).unwrap()
    }

    #[test]
    fn parameters_of_providers_and_startup_options_are_left_out() {
        let url = "postgres://u:p%40ss@h:6543/d\
                   ?pgbouncer=true&options=-c%20x%3Dy&supa=base&sslmode=require";
        let config = parse(url).config;

        assert_eq!(config.get_user(), Some("u"));
        assert_eq!(config.get_password(), Some(b"p@ss".as_slice()));
        assert_eq!(config.get_options(), None);
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn the_url_may_name_the_application() {
        let config = parse("postgres://u@h/d").config;
        assert_eq!(config.get_application_name(), Some("the-application"));

        let config = parse("postgres://u@h/d?application_name=other").config;
        assert_eq!(config.get_application_name(), Some("other"));
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
            let config = parse(&format!("postgres://u@h/d?sslmode={mode}")).config;
            assert_eq!(config.get_ssl_mode(), expected, "{mode}");
        }
        assert!(Database::from_url("postgres://u@h/d?sslmode=maybe", None).is_err());
    }

    #[test]
    fn the_url_names_a_private_certificate_authority() {
        let database = parse("postgres://u@h/d?sslrootcert=/etc/ca.pem");
        assert_eq!(
            database.root_certificates.as_deref(),
            Some(Path::new("/etc/ca.pem"))
        );

        let database = parse("postgres://u@h/d?sslrootcert=system");
        assert_eq!(database.root_certificates, None);
    }

    #[test]
    fn a_malformed_url_is_refused_without_repeating_its_password() {
        for url in [
            "",
            "nonsense",
            "postgres://u:secret@h:port/d",
            "u:secret@h/d",
        ] {
            let error = Database::from_url(url, None)
                .err()
                .unwrap_or_else(|| panic!("{url} was accepted"));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
