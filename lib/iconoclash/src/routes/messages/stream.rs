//! A reply as a stream of events, told by whoever produces it or watches it.
//!
//! An event's id says how far the text is: 1 for `start`, then 1 more for each character sent, and 1 more for the end.
//! So any instance that knows the text knows what comes after an id, however the text was cut into events.

use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use std::{convert::Infallible, time::Duration};
use tokio::sync::mpsc::UnboundedReceiver;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Message,
    producer::{End, Event},
};
use crate::{
    http::error::{Error, Problem},
    spending::quota::Quota,
};

/// How long a stream may be silent before a comment shows that it lives.
const PING: Duration = Duration::from_secs(15);

/// The first event of a stream: the message is kept and the reply has begun.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Start {
    pub(super) message: Message,
    pub(super) reply_id: Uuid,
    pub(super) model: String,
    pub(super) quota: Quota,
    /// Whether this tells again what an earlier request began.
    #[serde(skip)]
    pub(super) replayed: bool,
}

/// A piece of text.
#[derive(Debug, Serialize)]
struct Delta<'a> {
    text: &'a str,
}

/// The last event of a stream that ended well, or because it was to stop.
#[derive(Debug, Serialize)]
struct Done<'a> {
    reply: &'a Message,
    quota: Quota,
}

/// The id of `start`, and so the distance between a text's length and an event's id.
pub(super) const START: u64 = 1;

/// The answer that begins with `start` and goes on with what is told.
pub(super) fn answer(
    start: &Start,
    told: UnboundedReceiver<Event>,
    request: Uuid,
    headers: HeaderMap,
) -> Response {
    let first = numbered(START, "start", start);
    respond(
        StreamExt::chain(
            stream::once(async { Ok(first) }),
            events(START, told, request),
        ),
        headers,
    )
}

/// The answer that goes on after the event of an id.
pub(super) fn rest(after: u64, told: UnboundedReceiver<Event>, request: Uuid) -> Response {
    respond(events(after, told, request), HeaderMap::new())
}

fn respond(
    events: impl Stream<Item = Result<sse::Event, Infallible>> + Send + 'static,
    headers: HeaderMap,
) -> Response {
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(PING).text("ping"));
    let mut response = events.into_response();
    response.headers_mut().extend(headers);
    // Tells proxies such as nginx not to collect the stream.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-store"),
    );
    response
}

fn events(
    after: u64,
    told: UnboundedReceiver<Event>,
    request: Uuid,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    stream::unfold((told, after), move |(mut told, mut id)| async move {
        let event = match told.recv().await? {
            Event::Start(start) => {
                id = START;
                numbered(id, "start", &start)
            }
            Event::Delta(text) => {
                id += text.chars().count() as u64;
                numbered(id, "delta", &Delta { text: &text })
            }
            Event::End(end) => {
                id += 1;
                match *end {
                    End {
                        reply,
                        quota,
                        failure: None,
                    } => numbered(
                        id,
                        "done",
                        &Done {
                            reply: &reply,
                            quota,
                        },
                    ),
                    End {
                        failure: Some(error),
                        ..
                    } => failed(id, &error, request),
                }
            }
            Event::Refused(error) => {
                id += 1;
                failed(id, &error, request)
            }
        };
        Some((Ok(event), (told, id)))
    })
}

fn failed(id: u64, error: &Error, request: Uuid) -> sse::Event {
    numbered(
        id,
        "error",
        &Problem {
            request_id: Some(request),
            ..error.problem()
        },
    )
}

fn numbered(id: u64, name: &str, data: &impl Serialize) -> sse::Event {
    let event = sse::Event::default().id(id.to_string()).event(name);
    event
        .json_data(data)
        .expect("our own types are valid JSON on one line")
}
