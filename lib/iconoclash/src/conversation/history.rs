//! Earlier messages of a discussion, as prompts need them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use pooled_postgres::text_enum;

text_enum! {
    /// Who wrote a message.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum MessageRole {
        /// The person.
        User = "user",
        /// The icons.
        Assistant = "assistant",
    }
}

text_enum! {
    /// How far a message is. Messages of a user are always complete.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum MessageStatus {
        /// The provider said that the message ended.
        Complete = "complete",
        /// The reply is being written.
        Streaming = "streaming",
        /// The reply broke off.
        Partial = "partial",
        /// The user stopped the reply.
        Stopped = "stopped",
        /// The reply broke off before any text.
        Failed = "failed",
    }
}

/// An earlier message.
#[derive(Clone, Debug, Deserialize)]
pub struct HistoryMessage {
    /// Its id.
    pub id: Uuid,
    /// Who wrote it.
    pub role: MessageRole,
    /// How far it is.
    pub status: MessageStatus,
    /// Its text.
    pub content: String,
}

impl HistoryMessage {
    /// A complete message.
    pub fn complete(id: Uuid, role: MessageRole, content: impl Into<String>) -> Self {
        Self {
            id,
            role,
            status: MessageStatus::Complete,
            content: content.into(),
        }
    }

    /// The author's name in a transcript for the small model.
    pub(crate) fn speaker(&self) -> &'static str {
        match self.role {
            MessageRole::User => "User",
            MessageRole::Assistant => "Reply",
        }
    }
}

/// How many of the newest messages fit into `room` bytes.
pub(crate) fn newest_that_fit<'a>(
    lengths: impl DoubleEndedIterator<Item = &'a str>,
    room: usize,
) -> usize {
    let mut left = room;
    lengths
        .rev()
        .take_while(|text| {
            let fits = text.len() <= left;
            left = left.saturating_sub(text.len());
            fits
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_statuses_are_stored_as_they_are_shown() {
        for role in MessageRole::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        for status in MessageStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }

    #[test]
    fn the_newest_messages_fit_first() {
        let fit = |room| newest_that_fit(["aaaa", "bb", "c"].into_iter(), room);
        assert_eq!([fit(0), fit(1), fit(3), fit(6), fit(7)], [0, 1, 2, 2, 3]);
    }
}
