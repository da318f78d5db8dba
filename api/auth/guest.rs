//! /api/auth/guest
//!
//! POST  anyone   a visitor's account, its messages counted by network   201
//!
//! Logic: `iconoclash::routes::accounts`.

use iconoclash::{http::serve, routes::accounts};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(accounts::router).await
}
