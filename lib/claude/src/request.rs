//! The request body: a prompt as the bytes that the provider caches.

use serde::Serialize;

use crate::{Prompt, Role, Turn};

/// The request body. Its field order is fixed, so equal prompts are equal bytes.
#[derive(Serialize)]
pub(crate) struct RequestBody<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    metadata: Metadata<'a>,
    #[serde(flatten)]
    thinking: Thinking,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Message<'a>>,
}

/// The setting that makes a model think least. Thinking is billed as output, counts towards `max_tokens` and delays the
/// text. Current models think by default, and each has a setting of its own
/// (<https://platform.claude.com/docs/en/build-with-claude/thinking>).
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Thinking {
    Thinking { r#type: &'static str },
    OutputConfig { effort: &'static str },
}

impl Thinking {
    fn least(model: &str) -> Self {
        if model.starts_with("claude-opus-5-5") {
            // Cannot be switched off.
            Self::OutputConfig { effort: "low" }
        } else if model.starts_with("claude-sonnet-5-5") {
            // These prompts have no tools, so the model never thinks.
            Self::Thinking {
                r#type: "between_tools",
            }
        } else {
            Self::Thinking { r#type: "disabled" }
        }
    }
}

#[derive(Serialize)]
struct Metadata<'a> {
    user_id: &'a str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: Role,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
struct Block<'a> {
    r#type: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Serialize)]
struct CacheControl {
    r#type: &'static str,
}

impl<'a> RequestBody<'a> {
    /// Marks the system text, the summary and the last turn for the cache. The next message of the conversation hits
    /// the last mark, because the provider searches 20 blocks back.
    pub(crate) fn from_prompt(prompt: &'a Prompt) -> Self {
        let last = prompt.turns.len().saturating_sub(1);
        let messages = prompt.turns.iter().enumerate().map(|(at, turn)| {
            let summary = (at == 0).then_some(prompt.summary_block.as_str());
            Message::new(turn, summary.unwrap_or_default(), at == last)
        });

        Self {
            model: &prompt.model,
            max_tokens: prompt.max_tokens,
            stream: true,
            metadata: Metadata {
                user_id: &prompt.user_id,
            },
            thinking: Thinking::least(&prompt.model),
            system: Block::marked(&prompt.system).into_iter().collect(),
            messages: messages.collect(),
        }
    }
}

impl<'a> Message<'a> {
    fn new(turn: &'a Turn, summary: &'a str, is_marked: bool) -> Self {
        let turn_block = Block::new(&turn.text, is_marked);

        Self {
            role: turn.role,
            content: Block::marked(summary)
                .into_iter()
                .chain([turn_block])
                .collect(),
        }
    }
}

impl<'a> Block<'a> {
    /// A block with a cache mark; none for an empty text, which the provider rejects.
    fn marked(text: &'a str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::new(text, true))
    }

    fn new(text: &'a str, is_marked: bool) -> Self {
        Self {
            r#type: "text",
            text,
            cache_control: is_marked.then_some(CacheControl {
                r#type: "ephemeral",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(system: &str, turns: &[(Role, &str)]) -> Prompt {
        Prompt {
            model: "claude-haiku-5-5".into(),
            max_tokens: 64,
            system: system.into(),
            summary_block: String::new(),
            turns: turns
                .iter()
                .map(|&(role, text)| Turn {
                    role,
                    text: text.into(),
                })
                .collect(),
            user_id: "u1".into(),
        }
    }

    #[test]
    fn system_text_and_last_turn_are_marked_for_the_cache() {
        let prompt = prompt(
            "You are Socrates.",
            &[
                (Role::User, "Hello"),
                (Role::Assistant, "Why?"),
                (Role::User, "Because"),
            ],
        );
        let block = |text: &str| serde_json::json!([{"type": "text", "text": text}]);
        let marked = |text: &str| serde_json::json!([{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]);
        assert_eq!(
            serde_json::to_value(RequestBody::from_prompt(&prompt)).unwrap(),
            serde_json::json!({
                "model": "claude-haiku-5-5", "max_tokens": 64, "stream": true,
                "metadata": {"user_id": "u1"}, "thinking": {"type": "disabled"},
                "system": marked("You are Socrates."),
                "messages": [
                    {"role": "user", "content": block("Hello")},
                    {"role": "assistant", "content": block("Why?")},
                    {"role": "user", "content": marked("Because")},
                ],
            })
        );
    }

    #[test]
    fn the_summary_is_the_first_block_and_has_its_own_mark() {
        let prompt = prompt(
            "You are Socrates.",
            &[
                (Role::User, "Hello"),
                (Role::Assistant, "Why?"),
                (Role::User, "So"),
            ],
        );
        let body = serde_json::to_value(RequestBody::from_prompt(&Prompt {
            summary_block: "Before.".into(),
            ..prompt
        }))
        .unwrap();
        let first = body["messages"][0]["content"].as_array().unwrap();
        assert_eq!(
            (first.len(), &first[0]["text"], &first[1]["text"]),
            (2, &"Before.".into(), &"Hello".into())
        );
        assert!(first[0]["cache_control"].is_object() && first[1].get("cache_control").is_none());
    }

    #[test]
    fn each_model_gets_the_setting_that_makes_it_think_least() {
        for (model, thinking) in [
            (
                "claude-haiku-5-5",
                serde_json::json!({"thinking": {"type": "disabled"}}),
            ),
            (
                "claude-haiku-4-5-20251001",
                serde_json::json!({"thinking": {"type": "disabled"}}),
            ),
            (
                "claude-opus-5",
                serde_json::json!({"thinking": {"type": "disabled"}}),
            ),
            (
                "claude-sonnet-5-5",
                serde_json::json!({"thinking": {"type": "between_tools"}}),
            ),
            (
                "claude-opus-5-5",
                serde_json::json!({"output_config": {"effort": "low"}}),
            ),
        ] {
            assert_eq!(
                serde_json::to_value(Thinking::least(model)).unwrap(),
                thinking,
                "{model}"
            );
        }
    }

    #[test]
    fn an_empty_system_text_is_left_out_because_the_provider_rejects_it() {
        let body = serde_json::to_value(RequestBody::from_prompt(&prompt(
            "",
            &[(Role::User, "Hello")],
        )))
        .unwrap();
        assert_eq!(body.get("system"), None);
    }
}
