//! /api/discussions/{id}/messages
//!
//! GET   its owner   what was said, newest first; `?limit=&cursor=`   200 · 400 · 401 · 404
//! POST  its owner   say something: a stream of events, or one JSON answer   200 · 201 · 401 · 404 · 409 · 422 · 429 · 503
//!
//! Logic: `iconoclash::routes::messages`.

use iconoclash::{http::serve, routes::messages};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(messages::router).await
}
