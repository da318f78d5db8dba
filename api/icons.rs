//! /api/icons
//!
//! GET  anyone  the personas to argue with; cached by the CDN, with an ETag   200 · 304 · 429
//!
//! Logic: `iconoclash::routes::catalog`.

use iconoclash::{http::serve, routes::catalog};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(catalog::router).await
}
