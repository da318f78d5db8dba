//! /api/health
//!
//! GET  anyone  whether the function works; `?deep=1` with the cron secret checks its dependencies   200 · 401 · 503
//!
//! Logic: `iconoclash::routes::operations`.

use iconoclash::{http::serve, routes::operations};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(operations::router).await
}
