//! /api/auth/login
//!
//! POST  anyone  sign in with an address and its password   200 · 401 · 403 · 422 · 429
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
