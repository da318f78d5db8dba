//! The outermost layer: gives each request an id, writes the body of a failure, and logs one JSON line.
//!
//! Failures become bodies only here, because the body names the request's id and the cause is logged once.

use std::{convert::Infallible, time::Instant};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tracing::Level;
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};
use uuid::Uuid;

use crate::{
    app::App,
    http::{
        error::{Error, Failure, Problem},
        request_log::{self, RequestLog},
    },
    identity::auth,
};

/// Names a request in its response, in the log and in the ledger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId(pub Uuid);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let id = parts.extensions.get::<Self>();
        Ok(*id.expect("`observe` gives every request an id"))
    }
}

/// Sends log lines to standard output. Only the first call of a process has an effect.
pub fn init() {
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false);
    let subscriber = tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(lines);

    // The development server runs several functions in one process; each calls this.
    let _ = subscriber.try_init();
}

/// Handles a request with an id and a log, completes its response and logs its line.
pub(super) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started_at = Instant::now();
    let id = app.new_id();
    request.extensions_mut().insert(RequestId(id));
    let line = RequestLine::new(id, &request);
    let is_cookie_authenticated = auth::is_cookie_authenticated(request.headers());

    let handled = async { (next.run(request).await, request_log::snapshot()) };
    let (mut response, log) = request_log::with_request_log(handled).await;

    let failure = failure_of(&mut response);
    if let Some(failure) = &failure {
        write_problem(&mut response, failure, id);
    }
    if is_cookie_authenticated && failure.as_ref().is_some_and(is_invalid_token) {
        // A page cannot remove this cookie itself, and while it is sent not even public pages can be read.
        let removed = auth::session_cookie("", 0);
        response.headers_mut().append(header::SET_COOKIE, removed);
    }
    complete_headers(response.headers_mut(), id, &log);

    line.write(response.status(), started_at, failure, log);
    response
}

/// The failure that a response carries. A rejection that axum itself made, such as an unknown method, gets our form here.
fn failure_of(response: &mut Response) -> Option<Failure> {
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

fn is_invalid_token(failure: &Failure) -> bool {
    failure.problem.code == auth::INVALID_TOKEN.code()
}

fn write_problem(response: &mut Response, failure: &Failure, id: Uuid) {
    let problem = Problem {
        request_id: Some(id),
        ..failure.problem.clone()
    };
    let headers = std::mem::take(response.headers_mut());
    *response = (response.status(), axum::Json(problem)).into_response();

    let json = HeaderValue::from_static("application/problem+json");
    let written = response.headers_mut();
    written.extend(headers);
    written.insert(header::CONTENT_TYPE, json);
    written.remove(header::CONTENT_LENGTH);
}

/// Adds the headers that every response has, and those of the limit that was checked.
fn complete_headers(headers: &mut HeaderMap, id: Uuid, log: &RequestLog) {
    if let Some(limit) = log.rate_limit
        && !headers.contains_key("ratelimit")
    {
        headers.extend(limit.headers());
    }

    let id = HeaderValue::try_from(id.to_string()).expect("a UUID is visible ASCII");
    headers.insert("x-request-id", id);
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("private, no-store"));
}

/// The part of a log line that is known before the request is handled.
struct RequestLine {
    id: Uuid,
    method: Method,
    route: String,
    platform_id: Option<String>,
}

impl RequestLine {
    fn new(id: Uuid, request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>();
        let platform_id = request.headers().get("x-vercel-id");

        Self {
            id,
            method: request.method().clone(),
            route: route.map_or("-", MatchedPath::as_str).to_owned(),
            platform_id: platform_id
                .and_then(|id| id.to_str().ok())
                .map(str::to_owned),
        }
    }

    /// Logs the line: as an error if the failure has a cause, else for information. Absent values are left out.
    fn write(
        self,
        status: StatusCode,
        started_at: Instant,
        failure: Option<Failure>,
        log: RequestLog,
    ) {
        let duration_ms = started_at.elapsed().as_secs_f64() * 1e3;
        let code = failure.as_ref().map(|failure| failure.problem.code);
        let cause = failure
            .and_then(|failure| failure.cause)
            .map(|cause| request_log::error_chain(cause.as_ref().as_ref()));

        // A macro, because the level of an event must be a constant.
        macro_rules! log_at {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    request.id = %self.id,
                    method = %self.method,
                    route = self.route,
                    status = status.as_u16(),
                    duration_ms,
                    code,
                    platform_id = self.platform_id,
                    redis_requests = log.redis_requests,
                    redis_failures = log.redis_failures,
                    cache_hits = log.cache_hits,
                    cache_misses = log.cache_misses,
                    cache_age_ms = log.cache_age_ms,
                    degraded = log.degraded,
                    cause,
                    "request"
                )
            };
        }
        match &cause {
            Some(_) => log_at!(Level::ERROR),
            None => log_at!(Level::INFO),
        }
    }
}
