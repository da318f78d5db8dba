//! /api/discussions
//!
//! GET   signed in  own discussions, newest first; `?archived=&sort=updated,created&limit=&cursor=`   200 · 400 · 401
//! POST  signed in  create a discussion; `Idempotency-Key`   201 · 401 · 422 · 429
//!
//! Logic: `iconoclash::routes::discussions`.

use iconoclash::{http::serve, routes::discussions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(discussions::router).await
}
