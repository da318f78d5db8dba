//! Postgres, by way of a transaction-mode pooler.
//!
//! This is the only module that knows a driver. A statement is one flight: everything goes out in one batch with an
//! unnamed statement, because poolers lose and mix up anything that outlives a batch. Statements are declared with
//! [`sql!`](crate::sql) and their rows with [`row!`](crate::row), which also has every one of them described by the
//! migrated schema in the tests. Writes that belong together are one statement with several CTEs; there are no
//! transactions that span flights.

mod cancel;
#[cfg(test)]
pub(crate) mod check;
mod connect;
mod error;
mod flight;
mod sql;

use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::time::{Instant, timeout_at};

use self::{cancel::Canceller, error::connection_lost, flight::Flight};

pub use self::{
    error::Error,
    sql::{Access, Cells, Column, ColumnSpec, Row, Sql},
};
/// The name in the public interface for an error of the driver.
pub use tokio_postgres::Error as DriverError;
pub use tokio_postgres::types::{ToSql, Type};

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
    pub async fn all<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<R>, Error> {
        let (rows, _) = self.fetch(sql, params).await?;
        rows.iter().map(decode).collect()
    }

    /// The row if there is one; more than one is an error.
    pub async fn optional<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<R>, Error> {
        let (rows, _) = self.fetch(sql, params).await?;
        match rows.as_slice() {
            [] => Ok(None),
            [row] => decode(row).map(Some),
            _ => Err(Error::other("more than one row where at most one was due")),
        }
    }

    /// The row that there always is, as of an aggregate or an unconditional `returning`.
    pub async fn one<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<R, Error> {
        let row = self.optional(sql, params).await?;
        row.ok_or_else(|| Error::other("no row where one was due"))
    }

    /// The number of rows that the statement touched.
    pub async fn execute(
        &self,
        sql: &Sql<()>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        let (_, touched) = self.fetch(sql, params).await?;
        Ok(touched)
    }

    async fn fetch<R>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Error> {
        let (due, given) = (sql.params.len(), params.len());
        if due != given {
            let text = sql.text;
            return Err(Error::other(format!(
                "{given} parameters given where {due} are due: {text}"
            )));
        }
        let until = Instant::now() + self.deadline;
        match self.fly(sql, params, until).await {
            Err(Failure::ConnectionLost(_)) if sql.access == Access::Read => {
                // What killed one connection has most likely killed those that lay idle beside it.
                self.pool.retain(|_, _| false);
                self.fly(sql, params, until).await
            }
            outcome => outcome,
        }
        .map_err(Error::from)
    }

    async fn fly<R>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
        until: Instant,
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Failure> {
        // The pool itself replaces a socket that is known to be dead, for writes too: nothing has been sent yet.
        let connection = timeout_at(until, self.pool.get())
            .await
            .map_err(|_| Error::unavailable("no connection within the statement's deadline"))?
            .map_err(Error::unavailable)?;
        let flight = Flight::new(connection, self.canceller.clone());
        match timeout_at(until, flight.send(sql.text, sql.params, params)).await {
            Ok(Ok(answer)) => {
                flight.land();
                Ok(answer)
            }
            Ok(Err(error)) if connection_lost(&error) => {
                flight.crash();
                Err(Failure::ConnectionLost(error))
            }
            Ok(Err(error)) => {
                // Without an answer of the server nobody knows what the connection would say next.
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
    R::decode(&mut Cells::of(row)).map_err(Error::other)
}
