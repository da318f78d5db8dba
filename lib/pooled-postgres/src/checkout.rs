//! One statement on one connection of the pool.
//!
//! A connection returns to the pool only after the server has answered. A deadline or a dropped future leaves the
//! query running: it is cancelled and the connection closed. Otherwise the next statement would wait for that query,
//! and the pooler's server connection would stay busy until it ends.

use std::{pin::pin, time::Duration};

use deadpool_postgres::Object;
use futures_util::TryStreamExt;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_postgres::Row;

use super::{Query, cancel::Canceller};

const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection checked out of the pool for one statement. Dropping it cancels the statement.
pub(super) struct Checkout {
    /// `None` once the checkout has ended.
    connection: Option<Object>,
    canceller: Canceller,
}

impl Checkout {
    pub(super) fn new(connection: Object, canceller: Canceller) -> Self {
        Self {
            connection: Some(connection),
            canceller,
        }
    }

    /// Sends the statement in one batch and reads its rows and the number of rows it changed.
    pub(super) async fn run(
        &self,
        query: &Query<'_>,
    ) -> Result<(Vec<Row>, u64), tokio_postgres::Error> {
        let connection = self
            .connection
            .as_ref()
            .expect("a checkout runs until it ends");
        let values = query.values.iter().copied();
        let typed = values.zip(query.types.iter().cloned());

        let mut answer = pin!(connection.query_typed_raw(query.text, typed).await?);
        let rows = answer.as_mut().try_collect().await?;
        Ok((rows, answer.rows_affected().unwrap_or(0)))
    }

    /// Returns the connection to the pool, after an answer of the server.
    pub(super) fn release(mut self) {
        drop(self.connection.take());
    }

    /// Closes a connection that no other statement can use.
    pub(super) fn discard(mut self) {
        drop(self.connection.take().map(Object::take));
    }

    /// Cancels the statement and waits until the server has ended it, for at most two timeouts.
    pub(super) async fn cancel(mut self) {
        if let Some(cancelling) = self.cancel_in_background() {
            // A failed task is a cancelled one: the runtime is shutting down.
            drop(cancelling.await);
        }
    }

    fn cancel_in_background(&mut self) -> Option<JoinHandle<()>> {
        let connection = CancellingConnection(Some(self.connection.take()?));
        let canceller = self.canceller.clone();

        // A destructor cannot wait, so the task runs by itself. If the process is frozen first, the role's
        // statement_timeout ends the query. There is no runtime when the drop comes after its shutdown.
        let runtime = Handle::try_current().ok()?;
        Some(runtime.spawn(async move { connection.cancel(canceller).await }))
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.cancel_in_background();
    }
}

/// A connection whose statement is being cancelled. It keeps its place in the pool, so that the pool does not exceed
/// its size at the server, and is closed at the end.
struct CancellingConnection(Option<Object>);

impl CancellingConnection {
    async fn cancel(self, canceller: Canceller) {
        let Some(connection) = self.0.as_ref() else {
            return;
        };
        let cancelling = canceller.cancel(connection.cancel_token());

        if timeout(CANCEL_TIMEOUT, cancelling).await.is_ok() {
            // A pooler drops the cancel request of a client that has left, so stay until the statement has ended.
            drop(timeout(CANCEL_TIMEOUT, connection.check_connection()).await);
        }
    }
}

impl Drop for CancellingConnection {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}
