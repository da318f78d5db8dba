//! /api/jwks
//!
//! GET  anyone  the public keys of the session tokens   200
//!
//! Logic: `iconoclash::routes::operations`.

use iconoclash::{http::serve, routes::operations};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(operations::router).await
}
