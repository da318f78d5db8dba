//! /api/auth/signup
//!
//! POST  anyone  create an account, or turn a guest into one   201 · 409 · 422 · 429
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
