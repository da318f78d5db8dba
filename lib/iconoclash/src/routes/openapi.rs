//! The OpenAPI document of every route.

use axum::response::{IntoResponse, Response};
use http::header;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;

/// `/api/openapi`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(openapi))
}

/// The head of the document; the routers add the paths.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Iconoclash",
        description = "Argue with icons of every age, played by Claude.",
        license(name = "Proprietary"),
    ),
    modifiers(&BearerScheme),
)]
pub(super) struct Head;

struct BearerScheme;

impl Modify for BearerScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("bearer", bearer);
    }
}

/// The OpenAPI 3.1 document of all routes.
#[utoipa::path(
    get, path = "/api/openapi", tag = "operations",
    responses((status = 200, body = serde_json::Value)),
)]
async fn openapi() -> Response {
    let document = super::all().into_openapi();
    (PUBLIC_FOR_AN_HOUR, axum::Json(document)).into_response()
}

const PUBLIC_FOR_AN_HOUR: [(header::HeaderName, &str); 1] =
    [(header::CACHE_CONTROL, "public, s-maxage=3600, max-age=60")];
