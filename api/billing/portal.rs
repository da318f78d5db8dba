//! /api/billing/portal
//!
//! POST  signed in   the page on which to manage a subscription   200 · 401 · 403 `sign_up_first` · 409 `not_subscribed`
//!
//! Logic: `iconoclash::routes::billing`.

use iconoclash::{http::serve, routes::billing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(billing::router).await
}
