//! The direct connection: migrations need a session, which a transaction-mode pooler does not give.

use sqlx::{
    Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};

/// The oldest Postgres that the statements are tested on.
pub(crate) const OLDEST_SERVER: i32 = 15;

/// Why an operator's command did not do its work; the text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The direct URL leads to a pooler.
    #[error(
        "DATABASE_URL_UNPOOLED leads to a pooler ({0}): give the direct URL of Postgres. A migration's lock belongs to \
         a session, and a transaction-mode pooler would leave it behind on a server connection, where the next \
         migration waits for it for ever"
    )]
    Pooler(String),
    /// The URL does not parse.
    #[error("DATABASE_URL_UNPOOLED is no Postgres URL: {0}")]
    Url(sqlx::Error),
    /// No connection.
    #[error("Postgres cannot be reached at {address}: {cause}")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// What the driver says.
        cause: sqlx::Error,
    },
    /// The server is older than the statements.
    #[error("the server is Postgres {0}; Iconoclash needs {OLDEST_SERVER} or later")]
    TooOld(i32),
    /// The database was migrated by a later release, or an applied file was edited.
    #[error("{0}")]
    History(String),
    /// A migration failed; it was rolled back.
    #[error("migration {version} failed and was rolled back: {cause}")]
    Migration {
        /// The number in front of its file name.
        version: i64,
        /// What the server says.
        cause: sqlx::migrate::MigrateError,
    },
    /// Any other statement failed.
    #[error("the database refused a statement: {0}")]
    Statement(#[from] sqlx::Error),
    /// sqlx could not keep its own table.
    #[error("the table of migrations cannot be used: {0}")]
    Bookkeeping(#[from] sqlx::migrate::MigrateError),
    /// The icons that are built in are no good.
    #[error("icons.json: {0}")]
    Icons(#[from] serde_json::Error),
}

/// A session with Postgres itself, without any timeout of its role.
pub(crate) struct Direct {
    pub(crate) connection: PgConnection,
    /// Host, port and database, as the URL has them.
    pub(crate) address: String,
    /// Such as 15.
    pub(crate) version: i32,
}

impl Direct {
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let options = options(url)?;
        let address = address(&options);
        // A pooler refuses startup options or drops them; only Postgres itself has this setting afterwards.
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

/// As the functions read the same parameters: certificates are checked wherever TLS is asked for.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let options: PgConnectOptions = url.parse().map_err(Error::Url)?;
    let options = match options.get_ssl_mode() {
        PgSslMode::Require | PgSslMode::VerifyCa => options.ssl_mode(PgSslMode::VerifyFull),
        _ => options,
    };
    // PgBouncer refuses a connection that sets it.
    Ok(options
        .extra_float_digits(None)
        .application_name("iconoclash-cli"))
}

pub(crate) fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}
