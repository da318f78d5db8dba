//! A reply: its text, its usage, and its form as one JSON answer.

use claude::Usage;
use serde_json::{Value, json};

use super::behaviour::Behaviour;
use super::cache::count;
use super::request::ParsedRequest;
use super::script::Script;
use super::{Style, conversation, prose};

/// The tokens that a model spends on thinking. They are billed and their text is not sent.
const THINKING_TOKENS: u32 = 40;

/// A reply with everything that is decided before its first byte.
pub(super) struct Reply {
    id: String,
    model: String,
    /// The words of the text, each with the space after it.
    pub(super) pieces: Vec<String>,
    pub(super) thinking_tokens: u32,
    pub(super) usage: Usage,
    pub(super) behaviour: Behaviour,
    pub(super) stop_reason: &'static str,
}

impl Reply {
    pub(super) fn plan(
        id: String,
        request: &ParsedRequest,
        style: Style,
        script: Script,
        prompt: Usage,
    ) -> Self {
        let text = script.text.unwrap_or_else(|| match style {
            Style::Terse => prose::argue(&request.system, &request.last_text, request.turns),
            Style::Conversation => conversation::reply(request),
        });
        let mut pieces: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
        let mut stop_reason = shorten(&mut pieces, &script.behaviour);

        let thinks = request.thinks || script.behaviour == Behaviour::OnlyThinking;
        let thinking_tokens = if thinks { THINKING_TOKENS } else { 0 };
        let mut output = thinking_tokens;
        let over_limit = pieces.iter().position(|piece| {
            output += count(piece);
            output > request.max_tokens
        });
        if let Some(at) = over_limit {
            pieces.truncate(at);
            output = request.max_tokens;
            stop_reason = "max_tokens";
        }

        Self {
            id,
            model: request.model.clone(),
            pieces,
            thinking_tokens,
            usage: script.usage.unwrap_or(Usage { output, ..prompt }),
            behaviour: script.behaviour,
            stop_reason,
        }
    }

    /// The whole reply as one JSON answer.
    pub(super) fn whole(&self) -> Value {
        let thinking = json!({"type": "thinking", "thinking": "", "signature": "c2lnbmVk"});
        let text = json!({"type": "text", "text": self.pieces.concat(), "citations": null});
        let content: Vec<Value> = match (self.thinking_tokens, &self.behaviour) {
            (_, Behaviour::OnlyThinking) => vec![thinking],
            (0, _) => vec![text],
            _ => vec![thinking, text],
        };

        let mut message = self.message(self.usage.output);
        message["content"] = content.into();
        message["stop_reason"] = self.stop_reason.into();
        message["stop_details"] = self.stop_details();
        message
    }

    /// The message object without content.
    pub(super) fn message(&self, output_tokens: u32) -> Value {
        let mut usage = self.usage_json(output_tokens);
        usage["cache_creation"] = json!({
            "ephemeral_5m_input_tokens": self.usage.cache_write_5m,
            "ephemeral_1h_input_tokens": self.usage.cache_write_1h,
        });
        usage["service_tier"] = "standard".into();
        usage["inference_geo"] = "global".into();
        usage["speed"] = "standard".into();

        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "container": null,
            "diagnostics": null,
            "stop_reason": null,
            "stop_sequence": null,
            "stop_details": null,
            "usage": usage,
        })
    }

    pub(super) fn usage_json(&self, output_tokens: u32) -> Value {
        let Usage {
            input,
            cache_write_5m,
            cache_write_1h,
            cache_read,
            ..
        } = self.usage;
        let thinking = self.thinking_tokens.min(output_tokens);

        json!({
            "input_tokens": input,
            "cache_creation_input_tokens": u64::from(cache_write_5m) + u64::from(cache_write_1h),
            "cache_read_input_tokens": cache_read,
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": thinking},
            "server_tool_use": null,
        })
    }

    pub(super) fn stop_details(&self) -> Value {
        match self.behaviour {
            Behaviour::Refusal => {
                json!({"type": "refusal", "category": "general_harms", "explanation": null})
            }
            _ => Value::Null,
        }
    }
}

/// Shortens the text as the behaviour demands and returns the stop reason.
fn shorten(pieces: &mut Vec<String>, behaviour: &Behaviour) -> &'static str {
    match behaviour {
        Behaviour::MaxTokens => {
            pieces.truncate(pieces.len().div_ceil(2));
            "max_tokens"
        }
        Behaviour::Refusal => {
            pieces.truncate(2);
            "refusal"
        }
        Behaviour::OnlyThinking => {
            pieces.clear();
            "end_turn"
        }
        _ => "end_turn",
    }
}
