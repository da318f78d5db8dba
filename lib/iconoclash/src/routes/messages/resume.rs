//! The rest of a reply's stream, for a client whose connection broke, from whichever instance it now reaches: what comes
//! after the last event that it has is told from the reply's row as it grows.

use axum::{
    extract::{FromRequestParts, State},
    http::request::Parts,
    response::Response,
};
use http::HeaderMap;
use serde_json::Value;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    Message, MessageRow,
    producer::{End, Event},
    reply::INTERRUPTED,
    stream::{self, START, Start},
};
use pooled_postgres::{row, sql_positional};

use crate::conversation::speakers::Voice;
use crate::{
    app::App,
    clock::utc_day,
    http::{
        error::{Error, Problem, Result},
        extract::Path,
        observe::RequestId,
        serve::Background,
    },
    identity::auth::User,
    spending::{
        admission::{MESSAGES, Subject},
        plan::Plan,
        quota::Quota,
        reconcile,
    },
};

/// A running reply is saved about once a second, so looking more often shows it no sooner.
const LOOK_EVERY: Duration = Duration::from_millis(300);

const MOST_CHARS: u64 = 1 << 30;

/// The events of a reply, running or ended, after the one that `Last-Event-ID` names; from the start where it names
/// none. Ends with `done`, or `error`; a stream that ends with neither is to be resumed once more.
#[utoipa::path(get, path = "/api/messages/{id}/events", tag = "messages", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The reply's id"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event received")),
    responses((status = 200, content_type = "text/event-stream", body = Start), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn events(
    State(app): State<App>,
    user: User,
    Path(reply): Path<Uuid>,
    LastEvent(after): LastEvent,
    RequestId(request): RequestId,
    background: Background,
) -> Result<Response> {
    let subject = Subject::of(&user.session, &app)?;
    let around = app
        .db()?
        .old_optional(&AROUND, &[&reply, &user.id])
        .await?
        .ok_or(Error::NotFound)?;
    let voices =
        serde_json::from_value(around.voices).map_err(|error| Error::Internal(error.into()))?;
    let position = i32::try_from(after.saturating_sub(START)).expect("ids are cut to what fits");
    let plan = user.profile.plan;
    let watch = Watch {
        app,
        subject,
        plan,
        reply,
        discussion: around.discussion_id,
        voices,
        position,
    };
    let start = if after < START {
        Some(watch.start().await?)
    } else {
        None
    };
    let (tell, told) = unbounded_channel();
    // Registered, because the platform may freeze a stream that nothing else keeps going.
    background.spawn(watch.until_the_end(tell));
    Ok(match start {
        Some(start) => stream::answer(&start, told, request, HeaderMap::new()),
        None => stream::rest(after, told, request),
    })
}

/// The last event that the client has; 0 for none.
pub(super) struct LastEvent(u64);

impl<S: Sync> FromRequestParts<S> for LastEvent {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(id) = parts
            .headers
            .get("last-event-id")
            .filter(|id| !id.is_empty())
        else {
            return Ok(Self(0));
        };
        // To begin again in the middle of a text that the client has would double it.
        let id: Option<u64> = id.to_str().ok().and_then(|id| id.trim().parse().ok());
        // No text is longer than this.
        id.map(|id| Self(id.min(MOST_CHARS))).ok_or_else(|| {
            Error::BadRequest("Last-Event-ID is not the id of one of our events.".to_owned())
        })
    }
}

/// Somebody who follows a reply.
struct Watch {
    app: App,
    subject: Subject,
    plan: Plan,
    reply: Uuid,
    discussion: Uuid,
    voices: Vec<Voice>,
    /// Characters that the client has.
    position: i32,
}

impl Watch {
    async fn start(&self) -> Result<Start> {
        let (message, reply) = pair(&self.app, self.reply).await?;
        let (model, quota) = (reply.model.unwrap_or_default(), self.quota().await?);
        Ok(Start {
            message,
            reply_id: reply.id,
            model,
            quota,
            replayed: false,
        })
    }

    /// Tells what there is as it comes. Where it cannot go on it ends without an end, and the client resumes.
    async fn until_the_end(mut self, tell: UnboundedSender<Event>) {
        let begun = Instant::now();
        while begun.elapsed() < self.app.config().timeouts.follow {
            match self.look(&tell).await {
                Ok(false) => {}
                Ok(true) => return,
                Err(Error::NotFound) => {
                    let _gone = tell.send(Event::Refused(Box::new(Error::NotFound)));
                    return;
                }
                Err(cause) => {
                    tracing::warn!(reply.id = %self.reply, ?cause, "a reply could not be followed");
                    return;
                }
            }
            tokio::select! {
                () = tell.closed() => return,
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Tells what is new; whether that was the end.
    async fn look(&mut self, tell: &UnboundedSender<Event>) -> Result<bool> {
        let news = self
            .app
            .db()?
            .old_optional(&NEWS, &[&self.reply, &self.position])
            .await?
            .ok_or(Error::NotFound)?;
        if !news.more.is_empty() {
            self.position += i32::try_from(news.more.chars().count()).unwrap_or_default();
            let _gone = tell.send(Event::Delta(news.more));
        }
        if news.status != "streaming" {
            let _gone = tell.send(self.end().await?);
            return Ok(true);
        }
        if news
            .lease_expires_at
            .is_some_and(|lease| lease <= self.app.now())
        {
            reconcile::end_expired(&self.app, Some(self.discussion)).await?;
        }
        Ok(false)
    }

    async fn end(&self) -> Result<Event> {
        let (_, reply) = pair(&self.app, self.reply).await?;
        let failure = match reply.status.as_str() {
            "complete" | "stopped" => None,
            "failed" => Some(Error::unavailable("the reply had failed")),
            _ => Some(INTERRUPTED),
        };
        Ok(Event::End(Box::new(End {
            reply: reply.spoken_by(&self.voices),
            quota: self.quota().await?,
            failure,
        })))
    }

    async fn quota(&self) -> Result<Quota> {
        let (now, quotas) = (self.app.now(), self.app.config().quotas.clone()?);
        let taken = self
            .app
            .db()?
            .old_optional(&MESSAGES, &[&self.subject.as_str(), &utc_day(now)])
            .await?;
        let taken = u32::try_from(taken.unwrap_or_default()).unwrap_or_default();
        Ok(Quota::new(self.plan.messages_per_day(&quotas), taken, now))
    }
}

/// A message and the reply to it.
pub(super) async fn pair(app: &App, reply: Uuid) -> Result<(Message, Message)> {
    let rows = app.db()?.old_all(&PAIR, &[&reply]).await?;
    let pair: Vec<Message> = rows.into_iter().map(Message::from).collect();
    <[Message; 2]>::try_from(pair)
        .map(<(Message, Message)>::from)
        .map_err(|_| Error::NotFound)
}

row! {
    struct AroundRow { discussion_id: Uuid, voices: Value }
}

row! {
    struct NewsRow { status: String, more: String, lease_expires_at: Option<OffsetDateTime> }
}

sql_positional! {
    /// A reply of one's own: where it is, and who may speak in it.
    read AROUND(UUID, UUID) -> AroundRow = "
        select d.id as discussion_id,
          (select coalesce(jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name) order by chosen.position), '[]')
            from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
          ) as voices
        from messages m join discussions d on d.id = m.discussion_id and d.user_id = $2
        where m.id = $1 and m.role = 'assistant'";

    read NEWS(UUID, INT4) -> NewsRow = "
        select status, substr(content, $2 + 1) as more, lease_expires_at from messages where id = $1";

    /// A reply and, before it, the message that it answers.
    read PAIR(UUID) -> MessageRow = "
        select m.id, m.role, m.content, m.status, m.model, m.input_tokens, m.cache_write_tokens, m.cache_read_tokens,
          m.output_tokens, m.cost_microusd, m.stop_reason, m.created_at
        from messages reply join messages m on m.id in (reply.id, reply.reply_to)
        where reply.id = $1 order by m.id";
}
