//! /api/openapi
//!
//! GET   anyone   the OpenAPI 3.1 document of all routes   200
//!
//! Logic: `iconoclash::routes::contract`.

use iconoclash::{routes::contract, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> serve::Result {
    serve::run(contract::router).await
}
