//! /api/cron/reconcile
//!
//! GET  cron  end the replies of dead processes, compare Redis with the ledger   200 · 401 · 503
//!
//! Logic: `iconoclash::routes::cron`.

use iconoclash::{http::serve, routes::cron};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(cron::router).await
}
