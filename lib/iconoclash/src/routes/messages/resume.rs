//! The rest of a reply's stream, for a client whose connection broke.
//!
//! Any instance can serve it: what follows the client's last event is read from the reply's row as it grows.

use std::time::Duration;

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use pooled_postgres::{row, sql};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::{
    sync::mpsc::unbounded_channel,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    events::{End, Event, EventSender, Start},
    message::{INTERRUPTED, message_and_reply},
    sse::{self, START_ID},
};
use crate::{
    app::App,
    conversation::{history::MessageStatus, speakers::Speaker},
    http::{
        error::{Error, Problem, Result},
        extract::Path,
        observe::RequestId,
        serve::Background,
    },
    identity::auth::User,
    spending::{ledger, plan::Plan, quota::Quota, reconcile, subject::Subject},
};

/// A running reply is saved about once a second, so polling more often shows nothing sooner.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// No text has more characters, so a larger `Last-Event-ID` means the end.
const MAX_CHARS: u64 = 1 << 30;

/// Resume the stream of a running or ended reply after `Last-Event-ID`, or from its start.
///
/// The stream ends with `done` or `failed`. A stream that ends with neither can be resumed again. 204 means that the
/// client has the end already.
#[utoipa::path(
    get,
    path = "/api/messages/{id}/events",
    tag = "messages",
    security(("bearer" = [])),
    params(
        ("id" = Uuid, Path, description = "The reply's id"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event received"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = Start),
        (status = 204, description = "The reply has ended, and the client has all of it"),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
        (status = 404, body = Problem),
    )
)]
pub(super) async fn events(
    State(app): State<App>,
    user: User,
    Path(reply): Path<Uuid>,
    LastEventId(after): LastEventId,
    RequestId(request): RequestId,
    background: Background,
) -> Result<Response> {
    let subject = Subject::from_session(&user.session, &app)?;
    let statement = ReplyContext {
        reply,
        user: user.id,
    };
    let context = app
        .db()?
        .optional(statement)
        .await?
        .ok_or(Error::NotFound)?;

    let end_id = START_ID + u64::try_from(context.characters).unwrap_or_default() + 1;
    if context.status != MessageStatus::Streaming && after >= end_id {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }

    let follower = ReplyFollower {
        app,
        subject,
        plan: user.profile.plan,
        reply,
        discussion: context.discussion_id,
        speakers: serde_json::from_value(context.speakers).map_err(Error::internal)?,
        position: position_of(after),
    };
    let start = match after < START_ID {
        true => Some(follower.start().await?),
        false => None,
    };

    let (tx, rx) = unbounded_channel();
    // Registered, because the platform may freeze a stream that nothing else keeps alive.
    background.spawn(async move { follower.run(&EventSender(tx)).await });
    Ok(match start {
        Some(start) => sse::from_start(&start, rx, request, HeaderMap::new()),
        None => sse::resume_from(after, rx, request, HeaderMap::new()),
    })
}

/// The characters that a client has whose last event has this id.
pub(super) fn position_of(last_event_id: u64) -> i32 {
    i32::try_from(last_event_id.saturating_sub(START_ID)).expect("the id is capped")
}

/// The id of the last event that the client has, or 0.
pub(super) struct LastEventId(pub(super) u64);

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let header = parts.headers.get("last-event-id");
        let Some(value) = header.filter(|value| !value.is_empty()) else {
            return Ok(Self(0));
        };

        // A guess could repeat text that the client already has.
        let id: Option<u64> = value.to_str().ok().and_then(|id| id.trim().parse().ok());
        let id = id.ok_or_else(|| {
            Error::BadRequest("Last-Event-ID is not the id of an event of this stream.".to_owned())
        })?;
        Ok(Self(id.min(MAX_CHARS)))
    }
}

/// A client that follows a reply.
pub(super) struct ReplyFollower {
    pub(super) app: App,
    pub(super) subject: Subject,
    pub(super) plan: Plan,
    pub(super) reply: Uuid,
    pub(super) discussion: Uuid,
    pub(super) speakers: Vec<Speaker>,
    /// Characters that the client has.
    pub(super) position: i32,
}

impl ReplyFollower {
    pub(super) async fn start(&self) -> Result<Start> {
        let (message, reply) = message_and_reply(&self.app, self.reply).await?;
        Ok(Start {
            message,
            reply_id: reply.id,
            model: reply.model.unwrap_or_default(),
            quota: self.quota().await?,
            replayed: false,
            resumed: false,
        })
    }

    /// Sends new text as it is saved. If it cannot go on, the stream ends without an end and the client resumes.
    pub(super) async fn run(mut self, tx: &EventSender) {
        let started_at = Instant::now();
        let limit = self.app.config().timeouts.follow;

        while started_at.elapsed() < limit {
            match self.poll(tx).await {
                Ok(false) => {}
                Ok(true) => return,
                Err(Error::NotFound) => {
                    tx.send(Event::refused(Error::NotFound));
                    return;
                }
                Err(error) => {
                    let cause = error.cause();
                    tracing::warn!(reply.id = %self.reply, cause, "a reply cannot be followed");
                    return;
                }
            }
            tokio::select! {
                () = tx.0.closed() => return,
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Sends what is new. Returns true if that was the end.
    async fn poll(&mut self, tx: &EventSender) -> Result<bool> {
        let statement = NewText {
            reply: self.reply,
            position: self.position,
        };
        let new = self
            .app
            .db()?
            .optional(statement)
            .await?
            .ok_or(Error::NotFound)?;

        if !new.text.is_empty() {
            self.position += i32::try_from(new.text.chars().count()).unwrap_or_default();
            tx.send(Event::Delta(new.text));
        }
        if new.status != MessageStatus::Streaming {
            tx.send(self.end().await?);
            return Ok(true);
        }
        let now = self.app.now();
        if new.lease_expires_at.is_some_and(|lease| lease <= now) {
            reconcile::end_expired(&self.app, Some(self.discussion)).await?;
        }
        Ok(false)
    }

    async fn end(&self) -> Result<Event> {
        let (_, reply) = message_and_reply(&self.app, self.reply).await?;
        let failure = match reply.status {
            MessageStatus::Complete | MessageStatus::Stopped => None,
            MessageStatus::Failed => Some(Error::unavailable("the reply had failed")),
            MessageStatus::Partial | MessageStatus::Streaming => Some(INTERRUPTED),
        };
        Ok(Event::end(End {
            reply: reply.with_speakers(&self.speakers),
            quota: self.quota().await?,
            failure,
        }))
    }

    async fn quota(&self) -> Result<Quota> {
        let now = self.app.now();
        let quotas = self.app.config().quotas()?;
        let used = ledger::messages_today(self.app.db()?, self.subject.as_str(), now).await?;

        let limit = self.plan.messages_per_day(quotas);
        Ok(Quota::new(
            limit,
            u32::try_from(used).unwrap_or_default(),
            now,
        ))
    }
}

row! {
    struct ContextRow { discussion_id: Uuid, status: MessageStatus, characters: i32, speakers: Value }
}

row! {
    struct NewTextRow { status: MessageStatus, text: String, lease_expires_at: Option<OffsetDateTime> }
}

sql! {
    /// The discussion of a user's own reply, and its icons.
    read ReplyContext { reply: Uuid, user: Uuid } -> ContextRow = "
        select d.id as discussion_id, m.status, char_length(m.content) as characters,
          (select coalesce(jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name) order by chosen.position), '[]')
            from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
          ) as speakers
        from messages m join discussions d on d.id = m.discussion_id and d.user_id = :user
        where m.id = :reply and m.role = 'assistant'";

    /// The text after a position in characters.
    read NewText { reply: Uuid, position: i32 } -> NewTextRow = "
        select status, substr(content, :position + 1) as text, lease_expires_at from messages where id = :reply";
}
