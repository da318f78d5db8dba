//! /api/openapi
//!
//! GET   anyone   the OpenAPI 3.1 document of all routes   200
//!
//! Logic: `iconoclash::routes::operations`.

use iconoclash::{routes::operations, serve};

#[tokio::main]
async fn main() -> serve::Result {
    serve::run(operations::router).await
}
