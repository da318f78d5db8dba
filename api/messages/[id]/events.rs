//! /api/messages/{id}/events
//!
//! GET  its owner  the rest of a reply's stream, after `Last-Event-ID`   200 · 204 · 400 · 401 · 404
//!
//! Logic: `iconoclash::routes::messages`.

use iconoclash::{http::serve, routes::messages};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(messages::router).await
}
