//! One statement on one connection, and what becomes of the connection when the statement does not end.
//!
//! A connection goes back to the pool only when the server has answered. Whoever gives up earlier, by a deadline or
//! by dropping the future, leaves a query running: it is cancelled and the connection closed, because the next user
//! would wait behind it and the pooler's server connection would stay taken until it ends.

use std::{pin::pin, time::Duration};

use deadpool_postgres::Object;
use futures_util::TryStreamExt;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_postgres::Row;

use super::{Query, cancel::Canceller};

const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that carries a statement.
pub(super) struct Flight {
    connection: Option<Object>,
    canceller: Canceller,
}

impl Flight {
    pub(super) fn new(connection: Object, canceller: Canceller) -> Self {
        Self {
            connection: Some(connection),
            canceller,
        }
    }

    /// Sends everything in one batch with an unnamed statement, which is the only shape that every pooler keeps whole.
    pub(super) async fn send(
        &self,
        query: &Query<'_>,
    ) -> Result<(Vec<Row>, u64), tokio_postgres::Error> {
        let connection = self.connection.as_ref().expect("a flight has not ended");
        let values = query.values.iter().copied();
        let typed = values.zip(query.types.iter().cloned());

        let mut answer = pin!(connection.query_typed_raw(query.text, typed).await?);
        let rows = answer.as_mut().try_collect().await?;
        Ok((rows, answer.rows_affected().unwrap_or(0)))
    }

    /// The server has answered: the connection may carry the next statement.
    pub(super) fn land(mut self) {
        drop(self.connection.take());
    }

    /// The connection is of no use to anybody.
    pub(super) fn crash(mut self) {
        drop(self.connection.take().map(Object::take));
    }

    /// Cancels the statement; done when the server is free of it, within two timeouts at the most.
    pub(super) async fn abandon(mut self) {
        if let Some(cancelling) = self.cancel_in_background() {
            // The task neither panics nor is aborted while somebody waits here.
            drop(cancelling.await);
        }
    }

    fn cancel_in_background(&mut self) -> Option<JoinHandle<()>> {
        let doomed = Doomed(Some(self.connection.take()?));
        let canceller = self.canceller.clone();
        // Not registered with the platform: a dropped future has nobody to wait for it, and if the instance is frozen
        // first the role's statement_timeout ends the query. A drop may also come after the runtime, hence the handle.
        Some(
            Handle::try_current()
                .ok()?
                .spawn(async move { doomed.cancel(canceller).await }),
        )
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cancel_in_background();
    }
}

/// A connection that never returns to its pool, but holds its place there while the server is busy with it.
struct Doomed(Option<Object>);

impl Doomed {
    async fn cancel(self, canceller: Canceller) {
        let Some(connection) = self.0.as_ref() else {
            return;
        };
        let token = connection.cancel_token();
        if timeout(CANCEL_TIMEOUT, canceller.cancel(token))
            .await
            .is_ok()
        {
            // A pooler drops the request of a client that has left, so the client stays until the statement is over.
            drop(timeout(CANCEL_TIMEOUT, connection.check_connection()).await);
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}
