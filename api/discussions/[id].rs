//! /api/discussions/{id}
//!
//! GET     its owner  the discussion   200 · 401 · 404
//! PATCH   its owner  rename, archive, share   200 · 401 · 404 · 422
//! DELETE  its owner  delete it with all its messages   204 · 401 · 404
//!
//! Logic: `iconoclash::routes::discussions`.

use iconoclash::{http::serve, routes::discussions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(discussions::router).await
}
