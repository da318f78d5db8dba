//! /api/auth/session
//!
//! GET   signed in   who one is, and what is left of today   200 · 401
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
