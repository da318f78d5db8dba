//! /api/billing/webhook
//!
//! POST  Stripe  signed events, in any order, possibly repeated   200 · 400 · 500 · 503
//!
//! Logic: `iconoclash::routes::billing`.

use iconoclash::{http::serve, routes::billing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(billing::router).await
}
