//! Messages: what was said in a discussion, and saying something new.

mod afterwards;
mod opening;
mod producer;
mod record;
mod reply;
mod resume;
mod send;
mod stop;
mod stream;

use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    app::App,
    conversation::speakers::{Part, Voice, parts},
    http::{
        error::{Error, Problem, Result},
        extract::{Page, Path, Query},
    },
    identity::auth::User,
};
use pooled_postgres::{row, sql_positional};

/// `/api/discussions/{id}/messages`, `/api/messages/{id}/events`, `/api/messages/{id}/stop`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, send::send))
        .routes(routes!(resume::events))
        .routes(routes!(stop::stop))
}

/// Something said by the user or by the icons.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Message {
    id: Uuid,
    #[schema(pattern = "^(user|assistant)$")]
    role: String,
    content: String,
    /// Of a reply where several icons speak: who says what, in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<Part>>,
    /// `complete` only where the provider said that the reply ended.
    #[schema(pattern = "^(complete|streaming|partial|stopped|failed)$")]
    status: String,
    /// Of a reply: who wrote it.
    model: Option<String>,
    /// Of a reply that Claude ended: why, such as `end_turn`, `max_tokens` or `refusal`; others will be added.
    stop_reason: Option<String>,
    /// Of a reply that has ended: what it took.
    usage: Option<Usage>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// Tokens by price class, and what they cost.
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

/// What was said, newest first.
#[utoipa::path(get, path = "/api/discussions/{id}/messages", tag = "messages", security(("bearer" = [])),
    params(("id" = Uuid, Path), Page),
    responses((status = 200, body = Messages), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem)))]
async fn list(
    State(app): State<App>,
    user: User,
    Path(discussion): Path<Uuid>,
    Query(page): Query<Page>,
) -> Result<axum::Json<Messages>> {
    let (db, rows) = (app.db()?, page.limit.rows());
    let (voices, rows) = tokio::try_join!(
        async { db.old_optional(&VOICES, &[&discussion, &user.id]).await },
        async {
            db.old_all(&PAGE, &[&discussion, &user.id, &page.cursor, &rows])
                .await
        },
    )?;
    let voices: Vec<Voice> = serde_json::from_value(voices.ok_or(Error::NotFound)?)
        .map_err(|error| Error::Internal(error.into()))?;
    let (rows, next_cursor) = page.limit.cut(rows, |row| row.id);
    let data = rows
        .into_iter()
        .map(|row| Message::from(row).spoken_by(&voices))
        .collect();
    Ok(axum::Json(Messages { data, next_cursor }))
}

impl Message {
    /// With its parts, where several icons may have spoken.
    fn spoken_by(self, voices: &[Voice]) -> Self {
        let several = voices.len() > 1 && self.role == "assistant";
        Self {
            parts: several.then(|| parts(&self.content, voices)),
            ..self
        }
    }
}

sql_positional! {
    /// Who speaks in a discussion of one's own, in the order of their turns.
    read VOICES(UUID, UUID) -> Value = "
        select (
          select coalesce(jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name) order by chosen.position), '[]')
          from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
        ) as voices
        from discussions d where d.id = $1 and d.user_id = $2";
}

sql_positional! {
    read PAGE(UUID, UUID, UUID, INT8) -> MessageRow = "
        select id, role, content, status, model, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens,
          cost_microusd, stop_reason, created_at
        from messages
        where discussion_id = (select id from discussions where id = $1 and user_id = $2)
          and ($3::uuid is null or id < $3)
        order by id desc limit $4";
}

row! {
    struct MessageRow {
        id: Uuid,
        role: String,
        content: String,
        status: String,
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
        let MessageRow {
            id,
            role,
            content,
            status,
            model,
            stop_reason,
            created_at,
            ..
        } = row;
        Self {
            id,
            role,
            content,
            parts: None,
            status,
            model,
            stop_reason,
            usage,
            created_at,
        }
    }
}
