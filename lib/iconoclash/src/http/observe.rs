//! One JSON line per request, and the only place that turns a failure into a body: it knows the request's id, and it
//! logs the cause once.

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use std::{convert::Infallible, time::Instant};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use uuid::Uuid;

use crate::{
    app::App,
    http::{
        error::{Error, Failure},
        request_log,
    },
    identity::auth,
};

/// Names a request in its answer, in the log and in the ledger.
#[derive(Clone, Copy, Debug)]
pub struct RequestId(pub Uuid);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(*parts
            .extensions
            .get::<Self>()
            .expect("`observe` names every request"))
    }
}

/// Sends log lines to standard output; the first call of a process counts.
pub fn init() {
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false);
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(lines);
    // A second function in one process, as in the development server, finds it installed.
    let _ = subscriber.try_init();
}

/// Names the request, completes its answer and logs its line.
pub async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = app.new_id();
    request.extensions_mut().insert(RequestId(id));
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("-", MatchedPath::as_str)
        .to_owned();
    let with_cookie = auth::is_cookie_authenticated(request.headers());
    let platform_id = request
        .headers()
        .get("x-vercel-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);

    let (mut response, notes) =
        request_log::with_request_log(async { (next.run(request).await, request_log::snapshot()) })
            .await;
    let failure = describe(&mut response);
    if let Some(failure) = &failure {
        write_problem(&mut response, failure, id);
    }
    let invalid_token = failure
        .as_ref()
        .is_some_and(|failure| failure.problem.code == auth::INVALID_TOKEN.code());
    let headers = response.headers_mut();
    if with_cookie && invalid_token {
        // No page can take this cookie away, and with it the browser could not even sign in.
        headers.append(header::SET_COOKIE, auth::session_cookie("", 0));
    }
    if let Some(allowance) = notes
        .rate_limit
        .filter(|_| !headers.contains_key("ratelimit"))
    {
        headers.extend(allowance.headers());
    }
    let name = HeaderValue::try_from(id.to_string()).expect("a UUID is visible ASCII");
    headers.insert("x-request-id", name);
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("private, no-store"));

    let status = response.status().as_u16();
    let duration_ms = started.elapsed().as_secs_f64() * 1e3;
    let code = failure.as_ref().map(|failure| failure.problem.code);
    let request_log::RequestLog {
        redis_requests,
        redis_failures,
        cache_hits,
        cache_misses,
        cache_age_ms,
        degraded,
        ..
    } = notes;
    match failure.and_then(|failure| failure.cause) {
        Some(cause) => {
            let cause = request_log::error_chain(cause.as_ref().as_ref());
            tracing::error!(request.id = %id, %method, route, status, duration_ms, code, platform_id, redis_requests, redis_failures, cache_hits, cache_misses, cache_age_ms, degraded, cause, "request");
        }
        None => {
            tracing::info!(request.id = %id, %method, route, status, duration_ms, code, platform_id, redis_requests, redis_failures, cache_hits, cache_misses, cache_age_ms, degraded, "request")
        }
    }
    response
}

/// The failure that a response carries. A refusal that the framework made itself, such as an unknown method, gets our
/// shape here.
fn describe(response: &mut Response) -> Option<Failure> {
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        return Some(failure);
    }
    let error = match response.status() {
        StatusCode::NOT_FOUND => Error::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Error::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge,
        _ => return None,
    };
    Some(Failure {
        problem: error.problem(),
        cause: None,
    })
}

fn write_problem(response: &mut Response, failure: &Failure, id: Uuid) {
    let problem = crate::http::error::Problem {
        request_id: Some(id),
        ..failure.problem.clone()
    };
    let headers = std::mem::take(response.headers_mut());
    let status = response.status();
    *response = (status, axum::Json(problem)).into_response();
    let json = HeaderValue::from_static("application/problem+json");
    let written = response.headers_mut();
    written.extend(headers);
    written.insert(header::CONTENT_TYPE, json);
    written.remove(header::CONTENT_LENGTH);
}
