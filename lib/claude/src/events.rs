//! The events of a streamed reply on the wire. Unknown fields and variants are ignored.

use serde::Deserialize;

use crate::usage::WireUsage;

/// `message_start`.
#[derive(Deserialize)]
pub(crate) struct MessageStart {
    pub(crate) message: StartedMessage,
}

#[derive(Deserialize)]
pub(crate) struct StartedMessage {
    pub(crate) model: String,
    pub(crate) usage: WireUsage,
}

/// `content_block_start`.
#[derive(Deserialize)]
pub(crate) struct ContentBlockStart {
    pub(crate) content_block: ContentBlock,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ContentBlock {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking,
    #[serde(other)]
    Unknown,
}

/// `content_block_delta`.
#[derive(Deserialize)]
pub(crate) struct ContentBlockDelta {
    pub(crate) delta: Delta,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Delta {
    TextDelta {
        text: String,
    },
    #[serde(other)]
    Unknown,
}

/// `message_delta`.
#[derive(Deserialize)]
pub(crate) struct MessageDelta {
    #[serde(default)]
    pub(crate) delta: Stopped,
    #[serde(default)]
    pub(crate) usage: WireUsage,
}

#[derive(Default, Deserialize)]
pub(crate) struct Stopped {
    pub(crate) stop_reason: Option<String>,
}
