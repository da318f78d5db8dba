//! Messages: what was said in a discussion, and sending a new message.
//!
//! A message flows downwards through these modules: `send` (the handler) → `producer` (registered background work) →
//! `preflight` (may it be answered?) → `reply` (call Claude, relay, end) → `follow_ups` (title, summary). `request` and
//! `events` are what they share; `sse` turns events into a stream, and `resume` does so for a client that comes back.

mod events;
mod follow_ups;
mod message;
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
use pooled_postgres::sql;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::message::{Message, MessageRow};
use crate::{
    app::App,
    conversation::speakers::Speaker,
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

/// A page of messages, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct Messages {
    data: Vec<Message>,
    next_cursor: Option<Uuid>,
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
}
