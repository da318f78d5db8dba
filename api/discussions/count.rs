//! /api/discussions/count
//!
//! GET  signed in  how many discussions, in all and today   200 · 401
//!
//! Logic: `iconoclash::routes::discussions`.

use iconoclash::{http::serve, routes::discussions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(discussions::router).await
}
