//! /api/billing/checkout
//!
//! POST  signed in   the page on which to pay for Pro   200 · 401 · 403 `sign_up_first` · 409 `already_subscribed` · 503
//!
//! Logic: `iconoclash::routes::billing`.

use iconoclash::{http::serve, routes::billing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(billing::router).await
}
