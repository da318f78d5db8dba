//! Sending a message: who may, and the answer as a stream or in one piece.
//!
//! All work runs in a registered [`producer`]; the handler only relays its events, so a client that leaves stops nothing.

use std::time::Instant;

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    events::{End, Event, EventSender, Start},
    message::Message,
    producer,
    request::SendRequest,
    resume::LastEventId,
    sse::{self, START_ID},
};
use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::{Json, Path, Text, accept},
        idempotency::{self, IdempotencyKey},
        observe::RequestId,
        serve::Background,
    },
    identity::auth::Session,
    spending::{quota::Quota, subject::Subject},
};

/// A message to send.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewMessage {
    #[schema(value_type = String, min_length = 1, max_length = 8000)]
    content: Text<8000>,
}

/// The answer in one piece.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer {
    message: Message,
    reply: Message,
    quota: Quota,
}

/// Send a message; the icons reply.
///
/// With `Accept: text/event-stream` the reply is streamed as the events `start`, `delta` and `done`, or `failed` with
/// a problem document. If the connection breaks, `GET /api/messages/{reply_id}/events` resumes after the last event's id.
#[utoipa::path(
    post,
    path = "/api/discussions/{id}/messages",
    tag = "messages",
    security(("bearer" = [])),
    params(
        ("id" = Uuid, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
        ("Last-Event-ID" = Option<u64>, Header, description = "With a key whose reply still streams: where to resume"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = Start),
        (status = 201, body = Answer),
        (status = 401, body = Problem),
        (status = 402, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem),
        (status = 502, body = Problem),
        (status = 503, body = Problem),
    )
)]
pub(super) async fn send(
    State(app): State<App>,
    session: Session,
    Path(discussion): Path<Uuid>,
    options: SendOptions,
    background: Background,
    Json(new): Json<NewMessage>,
) -> Result<Response> {
    let request = SendRequest {
        subject: Subject::from_session(&session, &app)?,
        now: app.now(),
        app,
        session,
        discussion,
        content: new.content.as_str().to_owned(),
        streams: options.streams,
        key: options.key,
        last_event_id: options.last_event_id,
        id: options.request,
        started_at: Instant::now(),
    };

    let (tx, mut rx) = unbounded_channel();
    background.spawn(producer::run(request, EventSender(tx)));
    match rx.recv().await {
        Some(Event::Start(start)) if options.streams => {
            let headers = answer_headers(&start);
            let after = options.last_event_id;
            Ok(match start.resumed && after >= START_ID {
                true => sse::resume_from(after, rx, options.request, headers),
                false => sse::from_start(&start, rx, options.request, headers),
            })
        }
        Some(Event::Start(start)) => whole_answer(*start, rx).await,
        Some(Event::Refused(error)) => Err(*error),
        Some(Event::Delta(_) | Event::End(_)) | None => {
            Err(Error::internal("the producer sent no start"))
        }
    }
}

/// The headers that shape the answer.
pub(super) struct SendOptions {
    request: Uuid,
    key: Option<String>,
    /// Whether the client accepts a stream.
    streams: bool,
    /// The last event of the stream that the client has, or 0.
    last_event_id: u64,
}

impl FromRequestParts<App> for SendOptions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let RequestId(request) = RequestId::from_request_parts(parts, app)
            .await
            .unwrap_or_else(|never| match never {});
        let IdempotencyKey(key) = IdempotencyKey::from_request_parts(parts, app).await?;

        let LastEventId(last_event_id) = LastEventId::from_request_parts(parts, app).await?;

        Ok(Self {
            request,
            key,
            streams: accepts_stream(&parts.headers),
            last_event_id,
        })
    }
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    accept::prefers(headers, "text/event-stream", "application/json")
}

fn answer_headers(start: &Start) -> HeaderMap {
    let mut headers = start.quota.headers();
    if start.replayed {
        let (name, value) = idempotency::REPLAYED;
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

async fn whole_answer(start: Start, mut rx: UnboundedReceiver<Event>) -> Result<Response> {
    let headers = answer_headers(&start);
    let end = loop {
        match rx.recv().await {
            Some(Event::Start(_) | Event::Delta(_)) => {}
            Some(Event::End(end)) => break end,
            // The end could not be written.
            Some(Event::Refused(error)) => return Err(*error),
            None => return Err(Error::internal("the producer sent no end")),
        }
    };

    let End {
        reply,
        quota,
        failure,
    } = *end;
    if let Some(failure) = failure
        && reply.content.is_empty()
    {
        return Err(failure);
    }
    let answer = Answer {
        message: start.message,
        reply,
        quota,
    };
    Ok((StatusCode::CREATED, headers, axum::Json(answer)).into_response())
}
