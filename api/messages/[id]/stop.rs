//! /api/messages/{id}/stop
//!
//! POST  its owner  stop a running reply at the provider   202 · 401 · 404 · 409
//!
//! Logic: `iconoclash::routes::messages`.

use iconoclash::{http::serve, routes::messages};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(messages::router).await
}
