//! /api/openapi
//!
//! GET  anyone  the OpenAPI 3.1 document of all routes   200
//!
//! Logic: `iconoclash::routes::openapi`.

use iconoclash::{http::serve, routes::openapi};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(openapi::router).await
}
