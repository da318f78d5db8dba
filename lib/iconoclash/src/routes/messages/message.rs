//! A message, as Postgres stores it and as responses show it.

use pooled_postgres::{row, sql};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    app::App,
    conversation::{
        history::{MessageRole, MessageStatus},
        speakers::{Part, Speaker, parts},
    },
    http::error::{Error, Result},
};

/// A message of the user, or a reply of the icons.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Message {
    pub(super) id: Uuid,
    pub(super) role: MessageRole,
    pub(super) content: String,
    /// Where several icons speak: who says what, in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parts: Option<Vec<Part>>,
    /// `complete` only if the provider said that the reply ended.
    pub(super) status: MessageStatus,
    /// The model that wrote the reply.
    pub(super) model: Option<String>,
    /// Why Claude ended the reply: `end_turn`, `max_tokens`, `refusal`; others will be added.
    pub(super) stop_reason: Option<String>,
    /// What an ended reply used.
    pub(super) usage: Option<Usage>,
    #[serde(with = "crate::clock::rfc3339")]
    pub(super) created_at: OffsetDateTime,
}

/// Tokens by price class, and their cost.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    pub(super) input_tokens: i64,
    pub(super) cache_write_tokens: i64,
    pub(super) cache_read_tokens: i64,
    pub(super) output_tokens: i64,
    pub(super) cost_microusd: i64,
}

impl Message {
    /// Adds the parts, if several icons may have spoken.
    pub(super) fn with_speakers(self, speakers: &[Speaker]) -> Self {
        let has_parts = speakers.len() > 1 && self.role == MessageRole::Assistant;
        let parts = has_parts.then(|| parts(&self.content, speakers));
        Self { parts, ..self }
    }
}

/// 409: the discussion has a running reply.
pub(super) const REPLY_IN_PROGRESS: Error = Error::InProgress {
    code: "reply_in_progress",
    detail: "The last message is still being answered. Wait until the reply ends.",
};

/// 502: the reply ended, but Claude did not end it.
pub(super) const INTERRUPTED: Error = Error::Interrupted;

/// The message and the reply to it.
pub(super) async fn message_and_reply(app: &App, reply: Uuid) -> Result<(Message, Message)> {
    let rows = app.db()?.all(MessageAndReply { reply }).await?;
    let pair: Vec<Message> = rows.into_iter().map(Message::from).collect();

    <[Message; 2]>::try_from(pair)
        .map(<(Message, Message)>::from)
        .map_err(|_| Error::NotFound)
}

row! {
    pub(super) struct MessageRow {
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
    /// A reply and, before it, the message that it answers.
    read MessageAndReply { reply: Uuid } -> MessageRow = "
        select m.id, m.role, m.content, m.status, m.model, m.input_tokens, m.cache_write_tokens, m.cache_read_tokens,
          m.output_tokens, m.cost_microusd, m.stop_reason, m.created_at
        from messages reply join messages m on m.id in (reply.id, reply.reply_to)
        where reply.id = :reply order by m.id";
}
