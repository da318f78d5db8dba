//! From a request to its answer: who asks, for what, and what its script makes of it.

#![expect(
    clippy::disallowed_methods,
    reason = "a stand-in keeps the time of the wall, as the provider does"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::behaviour::{self, Behaviour, Failure};
use super::reply::Reply;
use super::request::{self, MODELS, Model, Problem};
use super::{Cancelled, Recorded, Shared, control, key, lock};
use crate::wire::{self, Body, HangUp};

/// What an organisation may ask for a minute: requests, prompt tokens, output tokens.
const LIMITS: [(&str, u64); 4] = [
    ("requests", 1_000),
    ("input-tokens", 500_000),
    ("output-tokens", 100_000),
    ("tokens", 600_000),
];

pub(super) async fn handle(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<Body>, HangUp> {
    let (parts, bytes) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    if let Some(action) = path.strip_prefix("/local/claude/") {
        return Ok(control::answer(&shared, &parts.method, action, &body));
    }
    let recorded = Recorded {
        at: Instant::now(),
        method: parts.method.clone(),
        path: path.clone(),
        headers: parts.headers.clone(),
        body: body.clone(),
    };
    shared
        .requests
        .send_modify(|requests| requests.push(recorded));

    let request_id = shared.id("req");
    let key = key(&parts.headers).unwrap_or_default();
    let answered = answer(&shared, &parts.method, &path, &parts.headers, key, &body).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(Refused::HungUp) => return Err(HangUp),
        Err(Refused::Problem(problem)) => error(problem, &request_id),
    };
    let headers = response.headers_mut();
    put(headers, "request-id", &request_id);
    let organisation = shared.organisation(key);
    put(
        headers,
        "anthropic-organization-id",
        &organisation_id(&organisation),
    );
    limits(&shared, organisation, headers);
    Ok(response)
}

/// Why there is no reply.
enum Refused {
    Problem(Problem),
    HungUp,
}

impl<P: Into<Problem>> From<P> for Refused {
    fn from(problem: P) -> Self {
        Self::Problem(problem.into())
    }
}

async fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    key: &str,
    body: &Value,
) -> Result<Response<Body>, Refused> {
    if !lock(&shared.keys).iter().any(|accepted| accepted == key) {
        return Err(Failure::Auth.into());
    }
    request::version(headers)?;
    match (method.as_str(), path) {
        ("POST", "/v1/messages") => message(shared, key, body).await,
        ("POST", "/v1/messages/count_tokens") => {
            let tokens: u32 = request::read(body, true)?
                .blocks
                .iter()
                .map(|block| block.tokens)
                .sum();
            Ok(wire::json(StatusCode::OK, &json!({"input_tokens": tokens})))
        }
        ("GET", "/v1/models") => Ok(wire::json(StatusCode::OK, &models())),
        _ => Err(Problem::not_found("Not found").into()),
    }
}

async fn message(shared: &Arc<Shared>, key: &str, body: &Value) -> Result<Response<Body>, Refused> {
    let asked = request::read(body, false)?;
    let script = match behaviour::marker(&asked.last) {
        Some(Ok(behaviour)) => behaviour.into(),
        Some(Err(unknown)) => return Err(Problem::invalid(unknown.to_string()).into()),
        None => lock(&shared.scripts).take(key, &asked.model, &shared.organisation(key)),
    };
    match script.behaviour {
        Behaviour::Status(failure) => {
            let mut problem = Problem::from(failure);
            for (name, value) in script.headers {
                problem.headers.retain(|(known, _)| *known != name);
                problem.headers.push((name, value));
            }
            return Err(problem.into());
        }
        Behaviour::Drop => return Err(Refused::HungUp),
        Behaviour::Hang => {
            let _watch = Cancelled::watch(shared);
            return std::future::pending().await;
        }
        _ => {}
    }
    let prompt = lock(&shared.cache).charge(key, &asked.model, &asked.blocks, Instant::now());
    let behaviour = script.behaviour.clone();
    shared.begun.fetch_add(1, Ordering::Relaxed);
    let reply = Reply::plan(shared.id("msg"), &asked, script, prompt);
    if asked.stream {
        let events = wire::streamed(reply.stream(Arc::clone(shared), shared.pace));
        return Ok(wire::answer(
            StatusCode::OK,
            "text/event-stream; charset=utf-8",
            events,
        ));
    }
    match behaviour {
        Behaviour::Hold { .. } => shared.held().await,
        Behaviour::Stall { .. } => {
            let _watch = Cancelled::watch(shared);
            return std::future::pending().await;
        }
        Behaviour::Cut { .. } => return Err(Refused::HungUp),
        Behaviour::Error { .. } => return Err(Failure::Overloaded.into()),
        Behaviour::Malformed { .. } => {
            let half = reply.whole().to_string();
            let half = wire::full(half[..half.len() / 2].to_owned());
            return Ok(wire::answer(StatusCode::OK, "application/json", half));
        }
        _ => {}
    }
    Ok(wire::json(StatusCode::OK, &reply.whole()))
}

fn error(problem: Problem, request_id: &str) -> Response<Body> {
    let details = problem.code.map(|code| json!({"error_code": code}));
    let body = json!({
        "type": "error",
        "error": {"type": problem.kind, "message": problem.message, "details": details},
        "request_id": request_id,
    });
    let mut response = wire::json(problem.status, &body);
    for (name, value) in &problem.headers {
        put(response.headers_mut(), name, value);
    }
    response
}

fn models() -> Value {
    let model = |&Model {
                     id,
                     name,
                     most_tokens,
                     ..
                 }: &Model| {
        json!({
            "type": "model", "id": id, "display_name": name, "created_at": "2026-10-07T00:00:00Z",
            "lifecycle": "active", "deprecated_at": null, "retires_at": null, "line": id.split('-').nth(1),
            "max_input_tokens": 1_000_000, "max_tokens": most_tokens, "capabilities": null,
        })
    };
    json!({
        "data": MODELS.iter().map(model).collect::<Vec<_>>(),
        "has_more": false, "first_id": MODELS[0].id, "last_id": MODELS[MODELS.len() - 1].id,
    })
}

/// A UUID that is the same for the same name.
fn organisation_id(name: &str) -> String {
    let hash = name.bytes().fold(0_u64, |hash, byte| {
        hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte)
    });
    format!("00000000-0000-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}

fn limits(shared: &Shared, organisation: String, headers: &mut HeaderMap) {
    let mut remaining = lock(&shared.remaining);
    let left = remaining.entry(organisation).or_insert(LIMITS[0].1);
    *left = left.saturating_sub(1);
    let reset = (OffsetDateTime::now_utc() + Duration::from_secs(60)).replace_nanosecond(0);
    let reset = reset
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default();
    for (of, limit) in LIMITS {
        // All limits of an organisation shrink together, as if every request were of the same size.
        let left = limit * *left / LIMITS[0].1;
        for (which, value) in [
            ("limit", limit.to_string()),
            ("remaining", left.to_string()),
            ("reset", reset.clone()),
        ] {
            put(
                headers,
                &format!("anthropic-ratelimit-{of}-{which}"),
                &value,
            );
        }
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}
