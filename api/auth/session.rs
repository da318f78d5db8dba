//! /api/auth/session
//!
//! GET  signed in  the user, and what is left of today's messages   200 · 401
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
