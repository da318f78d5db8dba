//! Saying something: who may, and the answer as a stream or in one piece.
//!
//! All work runs in a registered producer (`producer`); the handler only relays what the producer tells, so that a client
//! who leaves stops nothing.

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Message,
    producer::{Asked, End, Event},
    stream::{self, Start},
};
use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::{Json, Path, Text},
        idempotency::{self, IdempotencyKey},
        observe::RequestId,
        serve::Background,
    },
    identity::auth::Session,
    spending::{admission::Subject, quota::Quota},
};

/// Something to say.
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

/// Say something; the icons answer. With `Accept: text/event-stream` the reply is streamed as the events `start`,
/// `delta` and `done`, or `error` with a problem document;
/// where the connection breaks, `GET /api/messages/{reply_id}/events` goes on after the last event's id.
#[utoipa::path(post, path = "/api/discussions/{id}/messages", tag = "messages", security(("bearer" = [])),
    params(("id" = Uuid, Path), ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, content_type = "text/event-stream", body = Start),
        (status = 201, body = Answer), (status = 401, body = Problem), (status = 402, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 502, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn send(
    State(app): State<App>,
    session: Session,
    Path(discussion): Path<Uuid>,
    call: Call,
    background: Background,
    Json(new): Json<NewMessage>,
) -> Result<Response> {
    let subject = Subject::of(&session, &app)?;
    let Call {
        request,
        key,
        streams,
    } = call;
    let (content, now) = (new.content.as_str().to_owned(), app.now());
    let asked = Asked {
        app,
        session,
        subject,
        discussion,
        key,
        request,
        content,
        now,
        begun: Instant::now(),
    };
    let (tell, mut told) = unbounded_channel();
    background.spawn(asked.produce(tell));
    match told.recv().await {
        Some(Event::Start(start)) if streams => {
            let headers = answer_headers(&start);
            Ok(stream::answer(&start, told, request, headers))
        }
        Some(Event::Start(start)) => whole_answer(*start, told).await,
        Some(Event::Refused(error)) => Err(*error),
        Some(Event::Delta(_) | Event::End(_)) | None => {
            Err(Error::Internal("the producer did not begin".into()))
        }
    }
}

/// How the request is named and how it wants its answer.
pub(super) struct Call {
    request: Uuid,
    key: Option<String>,
    streams: bool,
}

impl FromRequestParts<App> for Call {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let RequestId(request) = RequestId::from_request_parts(parts, app)
            .await
            .unwrap_or_else(|never| match never {});
        let IdempotencyKey(key) = IdempotencyKey::from_request_parts(parts, app).await?;
        let accepted = parts
            .headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let mut media = accepted
            .flat_map(|value| value.split(','))
            .filter_map(|range| range.split(';').next());
        let streams = media.any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"));
        Ok(Self {
            request,
            key,
            streams,
        })
    }
}

fn answer_headers(start: &Start) -> HeaderMap {
    let mut headers = start.quota.headers();
    if start.replayed {
        headers.extend([(
            http::HeaderName::from_static(idempotency::REPLAYED.0),
            http::HeaderValue::from_static("true"),
        )]);
    }
    headers
}

async fn whole_answer(start: Start, mut told: UnboundedReceiver<Event>) -> Result<Response> {
    let headers = answer_headers(&start);
    while let Some(event) = told.recv().await {
        let end = match event {
            Event::End(end) => end,
            // The end could not be written.
            Event::Refused(error) => return Err(*error),
            Event::Start(_) | Event::Delta(_) => continue,
        };
        let End {
            reply,
            quota,
            failure,
        } = *end;
        return match failure {
            Some(failure) if reply.content.is_empty() => Err(failure),
            _ => {
                let answer = Answer {
                    message: start.message,
                    reply,
                    quota,
                };
                Ok((StatusCode::CREATED, headers, axum::Json(answer)).into_response())
            }
        };
    }
    Err(Error::Internal("the producer ended without an end".into()))
}
