//! /api/billing/refresh
//!
//! POST  signed in  the plan and the quota, after asking Stripe once   200 · 401 · 429 · 503
//!
//! Logic: `iconoclash::routes::billing`.

use iconoclash::{http::serve, routes::billing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(billing::router).await
}
