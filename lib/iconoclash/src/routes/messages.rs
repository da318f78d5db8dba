//! Messages: what was said in a discussion, and sending a new message.
//!
//! A message flows downwards through these modules: `send` (the handler) → `producer` (registered background work) →
//! `preflight` (may it be answered?) → `reply` (call Claude, relay, end) → `follow_ups` (title, summary). `request` and
//! `events` are what they share; `sse` turns events into a stream, and `resume` does so for a client that comes back.

mod events;
mod follow_ups;
mod preflight;
mod producer;
mod reply;
mod reply_rows;
mod request;
mod resume;
mod send;
mod sse;
mod stop;

use axum::extract::State;
use pooled_postgres::{row, sql};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    app::App,
    conversation::{
        history::{MessageRole, MessageStatus},
        speakers::{Part, Speaker, parts},
    },
    http::{
        error::{Error, Problem, Result},
        extract::{Page, Path, Query},
    },
    identity::auth::User,
};

/// `/api/discussions/{id}/messages`, `/api/messages/{id}/events`, `/api/messages/{id}/stop`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, send::send))
        .routes(routes!(resume::events))
        .routes(routes!(stop::stop))
}

/// A message of the user, or a reply of the icons.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Message {
    id: Uuid,
    role: MessageRole,
    content: String,
    /// Where several icons speak: who says what, in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<Part>>,
    /// `complete` only if the provider said that the reply ended.
    status: MessageStatus,
    /// The model that wrote the reply.
    model: Option<String>,
    /// Why Claude ended the reply: `end_turn`, `max_tokens`, `refusal`; others will be added.
    stop_reason: Option<String>,
    /// What an ended reply used.
    usage: Option<Usage>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// Tokens by price class, and their cost.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Usage {
    input_tokens: i64,
    cache_write_tokens: i64,
    cache_read_tokens: i64,
    output_tokens: i64,
    cost_microusd: i64,
}

/// A page of messages, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct Messages {
    data: Vec<Message>,
    next_cursor: Option<Uuid>,
}

impl Message {
    /// Adds the parts, if several icons may have spoken.
    fn with_speakers(self, speakers: &[Speaker]) -> Self {
        let has_parts = speakers.len() > 1 && self.role == MessageRole::Assistant;
        let parts = has_parts.then(|| parts(&self.content, speakers));
        Self { parts, ..self }
    }
}

/// List the messages of a discussion, newest first.
#[utoipa::path(
    get,
    path = "/api/discussions/{id}/messages",
    tag = "messages",
    security(("bearer" = [])),
    params(("id" = Uuid, Path), Page),
    responses(
        (status = 200, body = Messages),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
        (status = 404, body = Problem),
    )
)]
async fn list(
    State(app): State<App>,
    user: User,
    Path(discussion): Path<Uuid>,
    Query(page): Query<Page>,
) -> Result<axum::Json<Messages>> {
    let db = app.db()?;
    let speakers = db.optional(SpeakersOf {
        discussion,
        user: user.id,
    });
    let rows = db.all(PageOfMessages {
        discussion,
        user: user.id,
        cursor: page.cursor,
        rows: page.limit.rows(),
    });
    let (speakers, rows) = tokio::try_join!(speakers, rows)?;

    let speakers = speakers.ok_or(Error::NotFound)?;
    let speakers: Vec<Speaker> = serde_json::from_value(speakers).map_err(Error::internal)?;
    let (rows, next_cursor) = page.limit.cut(rows, |row| row.id);
    let data = rows
        .into_iter()
        .map(|row| Message::from(row).with_speakers(&speakers))
        .collect();
    Ok(axum::Json(Messages { data, next_cursor }))
}

/// 409: the discussion has a running reply.
const REPLY_IN_PROGRESS: Error = Error::Conflict {
    code: "reply_in_progress",
    detail: "The last message is still being answered. Wait until the reply ends.",
};

/// 502: the reply ended, but Claude did not end it.
const INTERRUPTED: Error = Error::Interrupted;

/// The message and the reply to it.
async fn message_and_reply(app: &App, reply: Uuid) -> Result<(Message, Message)> {
    let rows = app.db()?.all(MessageAndReply { reply }).await?;
    let pair: Vec<Message> = rows.into_iter().map(Message::from).collect();

    <[Message; 2]>::try_from(pair)
        .map(<(Message, Message)>::from)
        .map_err(|_| Error::NotFound)
}

row! {
    struct MessageRow {
        id: Uuid,
        role: MessageRole,
        content: String,
        status: MessageStatus,
        model: Option<String>,
        input_tokens: Option<i64>,
        cache_write_tokens: Option<i64>,
        cache_read_tokens: Option<i64>,
        output_tokens: Option<i64>,
        cost_microusd: Option<i64>,
        stop_reason: Option<String>,
        created_at: OffsetDateTime,
    }
}

impl From<MessageRow> for Message {
    fn from(row: MessageRow) -> Self {
        let usage = row.cost_microusd.map(|cost_microusd| Usage {
            input_tokens: row.input_tokens.unwrap_or_default(),
            cache_write_tokens: row.cache_write_tokens.unwrap_or_default(),
            cache_read_tokens: row.cache_read_tokens.unwrap_or_default(),
            output_tokens: row.output_tokens.unwrap_or_default(),
            cost_microusd,
        });

        Self {
            id: row.id,
            role: row.role,
            content: row.content,
            parts: None,
            status: row.status,
            model: row.model,
            stop_reason: row.stop_reason,
            usage,
            created_at: row.created_at,
        }
    }
}

sql! {
    /// The icons of a user's own discussion, in the order of their turns.
    read SpeakersOf { discussion: Uuid, user: Uuid } -> Value = "
        select (
          select coalesce(jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name) order by chosen.position), '[]')
          from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
        ) as speakers
        from discussions d where d.id = :discussion and d.user_id = :user";

    read PageOfMessages { discussion: Uuid, user: Uuid, cursor: Option<Uuid>, rows: i64 } -> MessageRow = "
        select id, role, content, status, model, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens,
          cost_microusd, stop_reason, created_at
        from messages
        where discussion_id = (select id from discussions where id = :discussion and user_id = :user)
          and (:cursor::uuid is null or id < :cursor)
        order by id desc limit :rows";

    /// A reply and, before it, the message that it answers.
    read MessageAndReply { reply: Uuid } -> MessageRow = "
        select m.id, m.role, m.content, m.status, m.model, m.input_tokens, m.cache_write_tokens, m.cache_read_tokens,
          m.output_tokens, m.cost_microusd, m.stop_reason, m.created_at
        from messages reply join messages m on m.id in (reply.id, reply.reply_to)
        where reply.id = :reply order by m.id";
}
