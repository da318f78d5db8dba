//! /api/billing/portal
//!
//! POST  signed in  the page to manage a subscription   200 · 401 · 403 · 409 · 429 · 503
//!
//! Logic: `iconoclash::routes::billing`.

use iconoclash::{http::serve, routes::billing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(billing::router).await
}
