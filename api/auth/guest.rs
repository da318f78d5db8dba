//! /api/auth/guest
//!
//! POST  anyone  create a guest account, whose messages count by network   201 · 429
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
