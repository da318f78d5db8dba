//! From a request to its answer: authentication, the script, and the reply.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::Stream;
use http::{Method, Request, Response, StatusCode, request::Parts};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::behaviour::{self, Behaviour, Failure};
use super::reply::Reply;
use super::request::{self, ParsedRequest, Problem};
use super::script::Script;
use super::{CancelGuard, RecordedRequest, Shared, api_key, control, limits, models, stream};
use crate::faulty_http::{self, Body, HangUp};
use crate::sync::lock;

/// A request without a reply.
enum Refused {
    Problem(Problem),
    HungUp(HangUp),
}

impl<P: Into<Problem>> From<P> for Refused {
    fn from(problem: P) -> Self {
        Self::Problem(problem.into())
    }
}

pub(super) async fn handle(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<Body>, HangUp> {
    let (parts, bytes) = request.into_parts();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);

    if let Some(action) = parts.uri.path().strip_prefix("/local/claude/") {
        return Ok(control::answer(&shared, &parts.method, action, &body));
    }
    record(&shared, &parts, &body);

    let request_id = shared.new_id("req");
    let key = api_key(&parts.headers).unwrap_or_default();
    let mut response = match answer(&shared, &parts, key, &body).await {
        Ok(response) => response,
        Err(Refused::HungUp(hang_up)) => return Err(hang_up),
        Err(Refused::Problem(problem)) => error(&problem, &request_id),
    };

    let headers = response.headers_mut();
    let organisation = shared.organisation(key);
    let organisation_id = organisation_id(&organisation);
    limits::set(headers, "request-id", &request_id);
    limits::set(headers, "anthropic-organization-id", &organisation_id);
    limits::add_headers(&shared, &organisation, headers);

    Ok(response)
}

fn record(shared: &Shared, parts: &Parts, body: &Value) {
    let recorded = RecordedRequest {
        at: Instant::now(),
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        headers: parts.headers.clone(),
        body: body.clone(),
    };

    shared
        .requests
        .send_modify(|requests| requests.push(recorded));
}

async fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    key: &str,
    body: &Value,
) -> Result<Response<Body>, Refused> {
    if !lock(&shared.keys).iter().any(|accepted| accepted == key) {
        return Err(Failure::Auth.into());
    }
    request::check_version(&parts.headers)?;

    match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/v1/messages") => create_message(shared, key, body).await,
        (&Method::POST, "/v1/messages/count_tokens") => {
            let tokens = request::count_tokens(body)?;
            let body = json!({ "input_tokens": tokens });
            Ok(faulty_http::json(StatusCode::OK, &body))
        }
        (&Method::GET, "/v1/models") => Ok(faulty_http::json(StatusCode::OK, &models::list())),
        _ => Err(Problem::not_found("Not found").into()),
    }
}

async fn create_message(
    shared: &Arc<Shared>,
    key: &str,
    body: &Value,
) -> Result<Response<Body>, Refused> {
    let request = request::parse(body)?;
    let script = script_of(shared, key, &request)?;

    match script.behaviour {
        Behaviour::Status(failure) => return Err(problem(failure, script.headers).into()),
        Behaviour::Drop => return Err(Refused::HungUp(HangUp::Close)),
        Behaviour::Refuse => return Err(Refused::HungUp(HangUp::refuse())),
        Behaviour::Hang => return Ok(hang(shared).await),
        Behaviour::CutHead => return Ok(event_stream(stream::cut())),
        _ => {}
    }

    let prompt = lock(&shared.cache).charge(key, &request.model, &request.blocks, Instant::now());
    shared.replies_started.fetch_add(1, Ordering::Relaxed);
    let reply = Reply::plan(shared.new_id("msg"), &request, shared.style, script, prompt);

    if request.stream {
        let events = stream::events(reply, Arc::clone(shared));
        return Ok(event_stream(events));
    }
    whole_reply(shared, &reply).await
}

fn event_stream(events: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response<Body> {
    let body = faulty_http::streamed(events);

    faulty_http::answer(StatusCode::OK, "text/event-stream; charset=utf-8", body)
}

/// The script of a request: a marker in its last message, else the one that a test queued.
fn script_of(shared: &Shared, key: &str, request: &ParsedRequest) -> Result<Script, Problem> {
    match behaviour::find_marker(&request.last_text) {
        Some(Ok(behaviour)) => Ok(behaviour.into()),
        Some(Err(unknown)) => Err(Problem::invalid(unknown.to_string())),
        None => {
            let organisation = shared.organisation(key);
            Ok(lock(&shared.scripts).take(key, &request.model, &organisation))
        }
    }
}

/// The error of a failure; a header of the script replaces one of the same name.
fn problem(failure: Failure, headers: Vec<(String, String)>) -> Problem {
    let mut problem = Problem::from(failure);
    for (name, value) in headers {
        problem.headers.retain(|(known, _)| *known != name);
        problem.headers.push((name, value));
    }

    problem
}

/// Never answers; counts the client as cancelled when it leaves.
async fn hang(shared: &Arc<Shared>) -> Response<Body> {
    let _guard = CancelGuard::new(shared);

    std::future::pending().await
}

/// The reply to a request without streaming.
async fn whole_reply(shared: &Arc<Shared>, reply: &Reply) -> Result<Response<Body>, Refused> {
    match reply.behaviour {
        Behaviour::Stall { .. } => return Ok(hang(shared).await),
        Behaviour::Cut { .. } => return Err(Refused::HungUp(HangUp::Close)),
        Behaviour::Error { .. } => return Err(Failure::Overloaded.into()),
        Behaviour::Malformed { .. } => {
            return Ok(faulty_http::half_json(StatusCode::OK, &reply.whole()));
        }
        Behaviour::Hold { .. } => shared.wait_for_release().await,
        _ => {}
    }

    Ok(faulty_http::json(StatusCode::OK, &reply.whole()))
}

fn error(problem: &Problem, request_id: &str) -> Response<Body> {
    let details = problem.code.map(|code| json!({ "error_code": code }));
    let body = json!({
        "type": "error",
        "error": {"type": problem.kind, "message": problem.message, "details": details},
        "request_id": request_id,
    });

    let mut response = faulty_http::json(problem.status, &body);
    for (name, value) in &problem.headers {
        limits::set(response.headers_mut(), name, value);
    }

    response
}

/// A UUID derived from the name, so that keys of one organisation share it.
fn organisation_id(name: &str) -> String {
    let hash = name.bytes().fold(0_u64, |hash, byte| {
        hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte)
    });

    format!("00000000-0000-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}
