#![doc = include_str!("../README.md")]

// `sql!` names this crate by its full path, here too.
extern crate self as pooled_postgres;

mod cancel;
mod connect;
mod error;
mod flight;
mod positional;
mod row;
#[cfg(feature = "schema-check")]
pub mod schema_check;
mod statement;
pub use positional::Sql;

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::{Instant, timeout_at};

use self::{cancel::Canceller, error::connection_lost, flight::Flight};

pub use self::{
    error::Error,
    row::{Cells, Column, ColumnSpec, Row, UnknownVariant},
    statement::{Access, Param, Statement},
};

/// Declares statements, each with a test of its own that compares it with the migrated schema.
///
/// A declaration is `read` or `write`, the statement's name, its parameters, what a row decodes to (`()` for none), and
/// the text with `:name` placeholders. It becomes a struct whose fields are the parameters. `sql!` stands at the level of
/// a module, because each statement's test is a module too.
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
pub use pooled_postgres_macros::sql;
/// The name in the public interface for an error of the driver.
pub use tokio_postgres::Error as DriverError;
pub use tokio_postgres::types::{ToSql, Type};

/// What the expansion of [`text_enum!`] needs.
#[doc(hidden)]
pub mod codec {
    pub use bytes::BytesMut;
    pub use tokio_postgres::types::{FromSql, IsNull, to_sql_checked};
}

const DEADLINE: Duration = Duration::from_secs(5);

/// A database behind a pool of connections, none of which is made before the first statement.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
    canceller: Canceller,
    deadline: Duration,
}

impl Db {
    /// A database at `url` with at most `pool_size` connections; fails only where the URL is no good.
    ///
    /// `sslmode=require` and `prefer` verify the certificate, against `sslrootcert` too where the URL names one;
    /// `prefer`, the default, accepts a server that has no TLS.
    pub fn new(url: &str, pool_size: usize) -> Result<Self, Error> {
        let (pool, canceller) = connect::pool(url, pool_size)?;
        Ok(Self {
            pool,
            canceller,
            deadline: DEADLINE,
        })
    }

    /// The same connections for statements that may take longer, or less, than five seconds.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Every row, in the statement's order.
    pub async fn all<S: Statement>(&self, statement: S) -> Result<Vec<S::Row>, Error> {
        let (rows, _) = self.fetch(&statement).await?;
        rows.iter().map(decode).collect()
    }

    /// The row if there is one. More than one is an error.
    pub async fn optional<S: Statement>(&self, statement: S) -> Result<Option<S::Row>, Error> {
        let (rows, _) = self.fetch(&statement).await?;
        match rows.as_slice() {
            [] => Ok(None),
            [row] => decode(row).map(Some),
            _ => Err(unexpected::<S>("returned more than one row")),
        }
    }

    /// The row that there always is, as of an aggregate or an unconditional `returning`.
    pub async fn one<S: Statement>(&self, statement: S) -> Result<S::Row, Error> {
        let row = self.optional(statement).await?;
        row.ok_or_else(|| unexpected::<S>("returned no row"))
    }

    /// The number of rows that the statement changed.
    pub async fn execute<S: Statement<Row = ()>>(&self, statement: S) -> Result<u64, Error> {
        let (_, touched) = self.fetch(&statement).await?;
        Ok(touched)
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

        let first = self.fly(&query, until).await;
        let answer = match first {
            Err(Failure::ConnectionLost(_)) if S::ACCESS == Access::Read => {
                // The event that killed one connection has most likely killed the idle ones too.
                self.pool.retain(|_, _| false);
                self.fly(&query, until).await
            }
            answer => answer,
        };
        answer.map_err(Error::from)
    }

    async fn fly(
        &self,
        query: &Query<'_>,
        until: Instant,
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Failure> {
        // The pool replaces a socket that is known to be dead, for writes too: nothing has been sent yet.
        let connection = timeout_at(until, self.pool.get())
            .await
            .map_err(|_| Error::unavailable("no connection within the statement's deadline"))?
            .map_err(Error::unavailable)?;

        let flight = Flight::new(connection, self.canceller.clone());
        match timeout_at(until, flight.send(query)).await {
            Ok(Ok(answer)) => {
                flight.land();
                Ok(answer)
            }
            Ok(Err(error)) if connection_lost(&error) => {
                flight.crash();
                Err(Failure::ConnectionLost(error))
            }
            Ok(Err(error)) => {
                // Without an answer of the server the state of the connection is unknown.
                match error.as_db_error() {
                    Some(_) => flight.land(),
                    None => flight.crash(),
                }
                Err(Failure::Final(error.into()))
            }
            Err(_) => {
                flight.abandon().await;
                Err(Failure::Final(Error::Deadline))
            }
        }
    }
}

/// What goes to the server in one batch.
struct Query<'a> {
    text: &'a str,
    types: &'a [Type],
    values: &'a [&'a (dyn ToSql + Sync)],
}

fn unexpected<S: Statement>(what: &str) -> Error {
    Error::other(format!("{} {what}", S::NAME))
}

enum Failure {
    ConnectionLost(DriverError),
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
            Failure::ConnectionLost(error) => error.into(),
            Failure::Final(error) => error,
        }
    }
}

fn decode<R: Row>(row: &tokio_postgres::Row) -> Result<R, Error> {
    R::decode(&mut Cells::new(row)).map_err(Error::other)
}
