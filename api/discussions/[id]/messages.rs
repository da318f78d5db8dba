//! /api/discussions/{id}/messages
//!
//! GET   its owner  the messages, newest first; `?limit=&cursor=`   200 · 400 · 401 · 404
//! POST  its owner  send a message; streams the reply, or sends it as one JSON body   200 · 201 · 401 · 402 · 404 · 409 · 422 · 429 · 502 · 503
//!
//! Logic: `iconoclash::routes::messages`.

use iconoclash::{http::serve, routes::messages};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(messages::router).await
}
