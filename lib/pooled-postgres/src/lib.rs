#![doc = include_str!("../README.md")]

// The expansion of `sql!` names this crate by its full path, also inside this crate.
extern crate self as pooled_postgres;

mod cancel;
mod checkout;
mod connect;
mod error;
mod row;
#[cfg(feature = "schema-check")]
pub mod schema_check;
mod statement;
mod tls;

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::{Instant, timeout_at};

use self::{
    cancel::Canceller,
    checkout::Checkout,
    error::{connection_lost, rolled_back},
};

pub use self::{
    error::Error,
    row::{Cells, Column, ColumnSpec, Row, UnknownVariant},
    statement::{Access, Param, Statement},
};

/// Declares statements as structs whose fields are the statement's named parameters.
///
/// A declaration has `read` or `write`, the statement's name, its parameters, the [`Row`] that it returns (`()` for
/// none), and the text with `:name` placeholders. Write `read` only where sending the statement twice is harmless.
///
/// Each statement also becomes a test, `<statement_in_snake_case>::agrees_with_the_schema`, that compares it with the
/// migrated schema. The test is a module, so `sql!` stands at the level of a module, and the crate that uses it has
/// the feature `schema-check` and `tokio` with its macros among its dev-dependencies.
///
/// Text inside string literals, quoted identifiers and comments is left alone, and so are casts (`::text`) and array
/// slices (`x[1:2]`).
///
/// ```
/// pooled_postgres::sql! {
///     /// Finds a user, whatever the case of the address.
///     pub(crate) read IdByEmail { email: &str } -> uuid::Uuid =
///         "select id from users where lower(email) = lower(:email)";
///
///     /// Ends every session of a user.
///     write RaiseTokenVersion { user: uuid::Uuid } -> () =
///         "update users set token_version = token_version + 1 where id = :user";
/// }
///
/// async fn sign_out(db: &pooled_postgres::Db, email: &str) -> Result<(), pooled_postgres::Error> {
///     if let Some(user) = db.optional(IdByEmail { email }).await? {
///         db.execute(RaiseTokenVersion { user }).await?;
///     }
///     Ok(())
/// }
/// ```
///
/// A parameter without a placeholder does not compile, nor does a placeholder without a parameter:
///
/// ```compile_fail
/// pooled_postgres::sql! {
///     read EmailById { user: uuid::Uuid } -> Option<String> =
///         "select email from users where id = :id";
/// }
/// ```
pub use pooled_postgres_macros::sql;
/// An error of the driver.
pub use tokio_postgres::Error as DriverError;
pub use tokio_postgres::types::{ToSql, Type};

/// Names that the expansion of [`text_enum!`] uses.
#[doc(hidden)]
pub mod codec {
    pub use bytes::BytesMut;
    pub use tokio_postgres::types::{FromSql, IsNull};

    pub type BoxError = Box<dyn std::error::Error + Sync + Send>;
}

const DEADLINE: Duration = Duration::from_secs(5);

/// A database behind a pool of connections. The first statement makes the first connection.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
    canceller: Canceller,
    deadline: Duration,
}

impl Db {
    /// A database at `url` with at most `pool_size` connections. Connects to nothing; fails for a malformed URL.
    ///
    /// `sslmode=require` and `prefer` verify the certificate against the platform's authorities and those in the file
    /// `sslrootcert`. `prefer`, the default, accepts a server without TLS.
    pub fn new(url: &str, pool_size: usize) -> Result<Self, Error> {
        Ok(Self::with_pool(connect::pool(url, pool_size, None)?))
    }

    /// Like [`Db::new`], with the name under which `pg_stat_activity` lists the connections, unless the URL has an
    /// `application_name`.
    pub fn named(application_name: &str, url: &str, pool_size: usize) -> Result<Self, Error> {
        let pool = connect::pool(url, pool_size, Some(application_name))?;
        Ok(Self::with_pool(pool))
    }

    fn with_pool((pool, canceller): (Pool, Canceller)) -> Self {
        Self {
            pool,
            canceller,
            deadline: DEADLINE,
        }
    }

    /// The same connections with another deadline than five seconds.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// All rows, in the statement's order.
    pub async fn all<S: Statement>(&self, statement: S) -> Result<Vec<S::Row>, Error> {
        let (rows, _) = self.fetch(&statement).await?;
        rows.iter().map(decode).collect()
    }

    /// One row or none. More than one is an error.
    pub async fn optional<S: Statement>(&self, statement: S) -> Result<Option<S::Row>, Error> {
        let (rows, _) = self.fetch(&statement).await?;
        match rows.as_slice() {
            [] => Ok(None),
            [row] => decode(row).map(Some),
            _ => Err(unexpected::<S>("returned more than one row")),
        }
    }

    /// Exactly one row, as of an aggregate or an unconditional `returning`. Any other number is an error.
    pub async fn one<S: Statement>(&self, statement: S) -> Result<S::Row, Error> {
        let row = self.optional(statement).await?;
        row.ok_or_else(|| unexpected::<S>("returned no row"))
    }

    /// The number of rows that the statement changed.
    pub async fn execute<S: Statement<Row = ()>>(&self, statement: S) -> Result<u64, Error> {
        let (_, changed) = self.fetch(&statement).await?;
        Ok(changed)
    }

    async fn fetch<S: Statement>(
        &self,
        statement: &S,
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Error> {
        let query = Query {
            text: S::TEXT,
            types: S::PARAMS,
            values: &statement.values(),
        };
        let until = Instant::now() + self.deadline;

        let answer = match self.run(&query, until).await {
            Err(Failure::ConnectionLost(_)) if S::ACCESS == Access::Read => {
                // The event that killed this connection has probably killed the idle ones too.
                self.pool.retain(|_, _| false);
                self.run(&query, until).await
            }
            Err(Failure::RolledBack(_)) => self.run(&query, until).await,
            answer => answer,
        };
        answer.map_err(Error::from)
    }

    async fn run(
        &self,
        query: &Query<'_>,
        until: Instant,
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Failure> {
        // The pool replaces a dead connection. That is safe for writes too, because nothing has been sent yet.
        let connection = timeout_at(until, self.pool.get())
            .await
            .map_err(|_| Error::unavailable("no connection within the statement's deadline"))?
            .map_err(Error::unavailable)?;

        let checkout = Checkout::new(connection, self.canceller.clone());
        match timeout_at(until, checkout.run(query)).await {
            Ok(Ok(answer)) => {
                checkout.release();
                Ok(answer)
            }
            Ok(Err(error)) if connection_lost(&error) => {
                checkout.discard();
                Err(Failure::ConnectionLost(error))
            }
            Ok(Err(error)) => {
                // Only an answer of the server shows that the connection is ready for the next statement.
                match error.as_db_error() {
                    Some(_) => checkout.release(),
                    None => checkout.discard(),
                }
                if rolled_back(&error) {
                    return Err(Failure::RolledBack(error));
                }
                Err(Failure::Final(error.into()))
            }
            Err(_) => {
                checkout.cancel().await;
                Err(Failure::Final(Error::Deadline))
            }
        }
    }
}

/// A statement as it goes to the server.
struct Query<'a> {
    text: &'a str,
    types: &'a [Type],
    values: &'a [&'a (dyn ToSql + Sync)],
}

fn unexpected<S: Statement>(what: &str) -> Error {
    Error::other(format!("{} {what}", S::NAME))
}

/// Why one attempt failed.
enum Failure {
    ConnectionLost(DriverError),
    /// Of a deadlock, for example: sending the statement again is harmless.
    RolledBack(DriverError),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::ConnectionLost(error) | Failure::RolledBack(error) => error.into(),
            Failure::Final(error) => error,
        }
    }
}

fn decode<R: Row>(row: &tokio_postgres::Row) -> Result<R, Error> {
    R::decode(&mut Cells::new(row)).map_err(Error::other)
}
