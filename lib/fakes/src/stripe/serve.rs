//! From a request to its answer: pages, authentication, idempotency and faults.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::Value;

use super::account::KeyedAnswer;
use super::params::{Params, Problem};
use super::{API_VERSION, Fault, RecordedRequest, Shared, api, control, pages};
use crate::faulty_http::{self, Body, HangUp};
use crate::sync::lock;

/// Status and body of an answer.
type Answer = (u16, Value);

pub(super) async fn handle(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<Body>, HangUp> {
    let (parts, body) = request.into_parts();
    if let Some(path) = parts.uri.path().strip_prefix("/local/stripe") {
        return Ok(local(&shared, &parts, path.trim_matches('/'), &body));
    }

    let request = read(&parts, &body);
    let fault = lock(&shared.faults).take();
    let replayed = is_replayed(&shared, &request);
    let (status, body) = match authorize(&shared, &parts.headers) {
        Ok(()) => answer_once(&shared, &request, fault),
        Err(problem) => (problem.status.as_u16(), problem.body()),
    };
    shared
        .requests
        .send_modify(|requests| requests.push(request));

    delay(&shared, fault).await?;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match fault {
        Some(Fault::Malformed) => faulty_http::half_json(status, &body),
        _ => faulty_http::json(status, &body),
    };

    let headers = response.headers_mut();
    let id = shared.with_account(|account| account.new_id("req"));
    let id = HeaderValue::from_str(&id).map_err(|_| HangUp::Close)?;
    headers.insert("request-id", id);
    headers.insert("stripe-version", HeaderValue::from_static(API_VERSION));
    if replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }

    Ok(response)
}

/// Answers a page's request with a page and a program's request with JSON.
fn local(shared: &Shared, parts: &Parts, path: &str, body: &Bytes) -> Response<Body> {
    let is_json = parts
        .headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));

    if is_json || parts.method == Method::DELETE || path == "release" {
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        return control::answer(shared, &parts.method, path, &body);
    }

    let form = Params::parse(&String::from_utf8_lossy(body));
    pages::answer(shared, &parts.method, path, &form)
}

fn read(parts: &Parts, body: &Bytes) -> RecordedRequest {
    let params = match parts.method {
        Method::POST => Params::parse(&String::from_utf8_lossy(body)),
        _ => Params::parse(parts.uri.query().unwrap_or_default()),
    };
    let idempotency_key = parts.headers.get("idempotency-key");
    let idempotency_key = idempotency_key.and_then(|value| value.to_str().ok());

    RecordedRequest {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        params: params.0,
        idempotency_key: idempotency_key.map(str::to_owned),
    }
}

/// Checks the key and the version.
fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<(), Problem> {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    };

    let key = header("authorization").strip_prefix("Bearer ");
    let key = key.unwrap_or_default();
    if key != shared.key {
        let hidden = key.chars().count().saturating_sub(4);
        let last: String = key.chars().skip(hidden).collect();
        let message = format!("Invalid API Key provided: ****{last}");
        return Err(Problem::new(401, "invalid_request_error", message));
    }

    let version = header("stripe-version");
    if version != API_VERSION {
        let message = format!(
            "This fake speaks {API_VERSION} only, not {version:?}: pin it in Stripe-Version."
        );
        return Err(Problem::new(400, "invalid_request_error", message));
    }
    Ok(())
}

/// Only a POST has an idempotency key.
fn idempotency_key(request: &RecordedRequest) -> Option<&str> {
    let key = request.idempotency_key.as_deref();

    key.filter(|_| request.method == Method::POST)
}

fn is_replayed(shared: &Shared, request: &RecordedRequest) -> bool {
    idempotency_key(request)
        .is_some_and(|key| shared.with_account(|account| account.answers.contains_key(key)))
}

/// The stored answer of the request's key, else a new one. A 4xx is not stored.
fn answer_once(shared: &Shared, request: &RecordedRequest, fault: Option<Fault>) -> Answer {
    let fingerprint = format!("{} {} {:?}", request.method, request.path, request.params);
    let key = idempotency_key(request);

    let stored =
        key.and_then(|key| shared.with_account(|account| account.answers.get(key).cloned()));
    if let Some(stored) = stored {
        if stored.request == fingerprint {
            return (stored.status, stored.body);
        }
        let message = "Keys for idempotent requests can only be used with the same parameters \
                       they were first used with.";
        return (400, Problem::new(400, "idempotency_error", message).body());
    }

    let (status, body) = answer(shared, request, fault);
    if let Some(key) = key.filter(|_| status == 200 || status >= 500) {
        let stored = KeyedAnswer {
            request: fingerprint,
            status,
            body: body.clone(),
        };
        shared.with_account(|account| account.answers.insert(key.to_owned(), stored));
    }

    (status, body)
}

fn answer(shared: &Shared, request: &RecordedRequest, fault: Option<Fault>) -> Answer {
    if let Some(Fault::Status(status)) = fault {
        let kind = match status {
            ..500 => "invalid_request_error",
            _ => "api_error",
        };
        let problem = Problem::new(status, kind, "This fake failed as requested.");
        return (status, problem.body());
    }

    if fault == Some(Fault::NoSuchCustomer) {
        let problem = Problem::missing("customer", "customer", "cus_missing");
        return (problem.status.as_u16(), problem.body());
    }

    let page_url = |path: &str| shared.page_url(path);
    match shared.with_account(|account| api::answer(account, request, &page_url)) {
        Ok(body) => (200, body),
        Err(problem) => (problem.status.as_u16(), problem.body()),
    }
}

/// Delays the answer, or drops it, as the fault demands.
async fn delay(shared: &Shared, fault: Option<Fault>) -> Result<(), HangUp> {
    match fault {
        Some(Fault::Drop) => return Err(HangUp::Close),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Slow(ms)) => {
            let pause = rand::random_range(0..=ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Some(Fault::Hold) => {
            if let Ok(permit) = shared.releases.acquire().await {
                permit.forget();
            }
        }
        _ => {}
    }

    Ok(())
}
