//! A reply as server-sent events.
//!
//! An event's id says how far the text is: 1 for `start`, plus 1 for each character sent, plus 1 for the end. Any
//! instance that has the text knows what follows an id, however the text was cut into events.

use std::{convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::{
    events::{End, Event, Start},
    message::Message,
};
use crate::{
    http::error::{Error, Problem},
    spending::quota::Quota,
};

/// After this much silence a comment shows that the stream is alive.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// The id of `start`, and so the offset between a text's length and an event's id.
pub(super) const START_ID: u64 = 1;

/// A piece of text.
#[derive(Debug, Serialize)]
struct Delta<'a> {
    text: &'a str,
}

/// The last event of a reply that is complete or was stopped.
#[derive(Debug, Serialize)]
struct Done<'a> {
    reply: &'a Message,
    quota: Quota,
}

/// The response that begins with `start` and goes on with the channel's events.
pub(super) fn from_start(
    start: &Start,
    rx: UnboundedReceiver<Event>,
    request: Uuid,
    headers: HeaderMap,
) -> Response {
    let first = numbered(START_ID, "start", start);
    let first = stream::once(async { Ok(first) });
    respond(first.chain(events(START_ID, rx, request)), headers)
}

/// The response that goes on after the event with the id `after`.
pub(super) fn resume_from(
    after: u64,
    rx: UnboundedReceiver<Event>,
    request: Uuid,
    headers: HeaderMap,
) -> Response {
    respond(events(after, rx, request), headers)
}

fn respond(
    events: impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static,
    headers: HeaderMap,
) -> Response {
    let keep_alive = KeepAlive::new().interval(PING_INTERVAL).text("ping");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();

    let response_headers = response.headers_mut();
    response_headers.extend(headers);
    // Keeps proxies such as nginx from buffering the stream; `no-transform` keeps others from compressing it.
    response_headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response_headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-store, no-transform"),
    );
    response
}

fn events(
    after: u64,
    rx: UnboundedReceiver<Event>,
    request: Uuid,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    stream::unfold((rx, after), move |(mut rx, mut id)| async move {
        let event = rx.recv().await?;
        id = next_id(id, &event);
        let event = encode(id, event, request);
        Some((Ok(event), (rx, id)))
    })
}

fn next_id(id: u64, event: &Event) -> u64 {
    match event {
        Event::Start(_) => START_ID,
        Event::Delta(text) => id + text.chars().count() as u64,
        Event::End(_) | Event::Refused(_) => id + 1,
    }
}

fn encode(id: u64, event: Event, request: Uuid) -> sse::Event {
    match event {
        Event::Start(start) => numbered(id, "start", &start),
        Event::Delta(text) => numbered(id, "delta", &Delta { text: &text }),
        Event::Refused(error) => failed(id, &error, request),
        Event::End(end) => {
            let End {
                reply,
                quota,
                failure,
            } = *end;
            match failure {
                Some(error) => failed(id, &error, request),
                None => {
                    let reply = &reply;
                    numbered(id, "done", &Done { reply, quota })
                }
            }
        }
    }
}

fn failed(id: u64, error: &Error, request: Uuid) -> sse::Event {
    let problem = Problem {
        request_id: Some(request),
        ..error.problem()
    };
    numbered(id, "failed", &problem)
}

fn numbered(id: u64, name: &str, data: &impl Serialize) -> sse::Event {
    let event = sse::Event::default().id(id.to_string()).event(name);
    event
        .json_data(data)
        .expect("our own types serialise to one line of JSON")
}
