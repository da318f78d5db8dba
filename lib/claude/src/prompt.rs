//! The input of a call.

use serde::{Deserialize, Serialize};

/// The input of a call: model, system text and conversation.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The model's id, for example `claude-sonnet-5-5`.
    pub model: String,
    /// Upper bound of the reply's tokens, thinking included.
    pub max_tokens: u32,
    /// The stable prefix. A date or a name in it would make every prompt a cache miss.
    pub system: String,
    /// Summary of the conversation before the first turn; empty for none. A block of its own, so that it is cached
    /// apart from the turns.
    pub summary_block: String,
    /// The conversation, oldest turn first. The last turn is the user's.
    pub turns: Vec<Turn>,
    /// Opaque id of the end user for the provider's abuse checks. Holds nothing personal.
    pub user_id: String,
}

impl Prompt {
    /// A prompt of one user turn, without a system text or a summary.
    pub fn of_one_turn(model: &str, max_tokens: u32, text: String, user_id: &str) -> Self {
        let turn = Turn {
            role: Role::User,
            text,
        };

        Self {
            model: model.to_owned(),
            max_tokens,
            system: String::new(),
            summary_block: String::new(),
            turns: vec![turn],
            user_id: user_id.to_owned(),
        }
    }
}

/// One contribution to a conversation.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// The text. The provider rejects an empty one.
    pub text: String,
}

/// Who speaks in a [`Turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}
