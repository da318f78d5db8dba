//! Connections to Postgres without a pooler. Migrations need a session, which a transaction-mode pooler does not have.

use sqlx::{
    Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};

/// The oldest version of Postgres that the tests cover.
pub(crate) const OLDEST_SERVER: i32 = 15;

/// Why an operator's command failed. The text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The direct URL leads to a pooler.
    #[error(
        "DATABASE_URL_UNPOOLED leads to a pooler ({0}): set it to the direct URL of Postgres. A \
         migration's lock belongs to a session. A transaction-mode pooler would keep the lock on a \
         server connection, and every later migration would wait for it"
    )]
    Pooler(String),
    /// The URL does not parse.
    #[error(
        "DATABASE_URL_UNPOOLED is no Postgres URL: {0}. Set it to one such as \
         postgres://user:password@host/database"
    )]
    Url(sqlx::Error),
    /// No connection.
    #[error(
        "cannot connect to Postgres at {address}: {cause}. Check host, port, password and sslmode"
    )]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// The driver's error.
        cause: sqlx::Error,
    },
    /// The server is older than the statements support.
    #[error("the server is Postgres {0}: upgrade it to {OLDEST_SERVER} or later")]
    TooOld(i32),
    /// The database was migrated by a later release, or an applied file was edited.
    #[error("{0}")]
    History(String),
    /// A migration failed and was rolled back.
    #[error("migration {version} failed and was rolled back: {cause}")]
    Migration {
        /// The number in its file name.
        version: i64,
        /// The server's error.
        cause: sqlx::migrate::MigrateError,
    },
    /// Another statement failed.
    #[error("the database rejected a statement: {0}")]
    Statement(#[from] sqlx::Error),
    /// The table of applied migrations is not usable.
    #[error("cannot use the table of applied migrations: {0}")]
    Bookkeeping(#[from] sqlx::migrate::MigrateError),
    /// The built-in icons are malformed.
    #[error("icons.json is malformed: {0}")]
    Icons(#[from] serde_json::Error),
}

/// A session with Postgres itself, without the timeouts of its role.
pub(crate) struct Direct {
    pub(crate) connection: PgConnection,
    /// Host, port and database of the URL.
    pub(crate) address: String,
    /// The major version.
    pub(crate) version: i32,
}

impl Direct {
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let options = options(url)?;
        let address = address(&options);

        // A pooler refuses startup options or drops them, so only Postgres itself knows this setting afterwards.
        let probing = options.options([
            ("iconoclash.direct", "yes"),
            ("statement_timeout", "0"),
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
        ]);
        let mut connection = match PgConnection::connect_with(&probing).await {
            Ok(connection) => connection,
            Err(cause) if cause.to_string().contains("startup parameter") => {
                return Err(Error::Pooler(address));
            }
            Err(cause) => return Err(Error::Unreachable { address, cause }),
        };

        let row = sqlx::query(
            "select current_setting('iconoclash.direct', true) is not distinct from 'yes' as direct,
                    current_setting('server_version_num')::int / 10000 as version",
        )
        .persistent(false)
        .fetch_one(&mut connection)
        .await?;
        if !row.try_get::<bool, _>("direct")? {
            return Err(Error::Pooler(address));
        }

        let version = row.try_get("version")?;
        if version < OLDEST_SERVER {
            return Err(Error::TooOld(version));
        }

        Ok(Self {
            connection,
            address,
            version,
        })
    }
}

/// Parses a URL. Verifies certificates for every `sslmode` that requires TLS, as the functions do.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let options: PgConnectOptions = url.parse().map_err(Error::Url)?;
    let options = match options.get_ssl_mode() {
        PgSslMode::Require | PgSslMode::VerifyCa => options.ssl_mode(PgSslMode::VerifyFull),
        _ => options,
    };

    // PgBouncer refuses connections with extra_float_digits.
    Ok(options
        .extra_float_digits(None)
        .application_name("iconoclash-cli"))
}

pub(crate) fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}
