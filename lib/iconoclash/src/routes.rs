//! The resources, one file each: router, types, handlers and SQL together. They never import each other.

use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

pub mod accounts;
pub mod billing;
pub mod catalog;
pub mod cron;
pub mod discussions;
pub mod messages;
pub mod openapi;
pub mod operations;

/// Every route, for one process that serves them all, and for the document that describes them.
pub fn all() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Head::openapi())
        .merge(openapi::router())
        .merge(operations::router())
        .merge(cron::router())
        .merge(catalog::router())
        .merge(accounts::router())
        .merge(discussions::router())
        .merge(messages::router())
        .merge(billing::router())
}
