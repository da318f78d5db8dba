//! Which pages may call the API from a browser, and which headers they may send and read.

use std::time::Duration;

use axum::http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::app::App;

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_TTL: Duration = Duration::from_secs(7200);

/// Response headers that a page can read.
const EXPOSED: [&str; 8] = [
    "x-request-id",
    "ratelimit-policy",
    "ratelimit",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "retry-after",
    "idempotent-replayed",
];

/// Allows the configured origins, with cookies.
pub(super) fn layer(app: App) -> CorsLayer {
    let is_allowed = move |origin: &HeaderValue, _: &Parts| {
        origin
            .to_str()
            .is_ok_and(|origin| app.config().allows_origin(origin))
    };
    let methods = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_allowed))
        .allow_credentials(true)
        .allow_methods(methods)
        // Tracing tools add headers of their own to every request of a page. A page of an allowed origin may send any:
        // the origin is the permission, and no header is one.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(PREFLIGHT_TTL)
}
