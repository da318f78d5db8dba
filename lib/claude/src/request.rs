//! A prompt as the bytes that the provider reads and caches.

use serde::Serialize;

use super::{Prompt, Role, Turn};

/// The request as the provider reads it. Field order is fixed, so equal prompts are equal bytes.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    metadata: Metadata<'a>,
    #[serde(flatten)]
    thought: Thought,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system: Vec<Block<'a>>,
    messages: Vec<Message<'a>>,
}

/// As little thought as a model can be asked for. What it thinks is billed like what it says, counts in `max_tokens` and
/// keeps the user waiting, and current models think unless told not to, each in its own words
/// (<https://platform.claude.com/docs/en/build-with-claude/thinking>).
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Thought {
    Thinking { r#type: &'static str },
    OutputConfig { effort: &'static str },
}

impl Thought {
    fn least(model: &str) -> Self {
        if model.starts_with("claude-opus-5-5") {
            // Cannot be told not to.
            Self::OutputConfig { effort: "low" }
        } else if model.starts_with("claude-sonnet-5-5") {
            // Without tools, nothing is between them.
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

impl<'a> Body<'a> {
    /// Marks the system text, the recap and the last turn: the next message of the conversation finds this
    /// one's mark, as the provider looks 20 blocks back.
    pub(super) fn of(prompt: &'a Prompt) -> Self {
        let last = prompt.turns.len().saturating_sub(1);
        let message = |(at, turn): (usize, &'a Turn)| {
            let recap =
                (at == 0 && !prompt.recap.is_empty()).then(|| Block::new(&prompt.recap, true));
            Message {
                role: turn.role,
                content: recap
                    .into_iter()
                    .chain([Block::new(&turn.text, at == last)])
                    .collect(),
            }
        };
        Self {
            model: &prompt.model,
            max_tokens: prompt.max_tokens,
            stream: true,
            metadata: Metadata {
                user_id: &prompt.user_id,
            },
            thought: Thought::least(&prompt.model),
            system: if prompt.system.is_empty() {
                vec![]
            } else {
                vec![Block::new(&prompt.system, true)]
            },
            messages: prompt.turns.iter().enumerate().map(message).collect(),
        }
    }
}

impl<'a> Block<'a> {
    fn new(text: &'a str, cached: bool) -> Self {
        Self {
            r#type: "text",
            text,
            cache_control: cached.then_some(CacheControl {
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
            recap: String::new(),
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
    fn the_system_text_and_the_last_turn_are_marked_for_the_cache() {
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
            serde_json::to_value(Body::of(&prompt)).unwrap(),
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
    fn what_was_said_before_comes_first_and_is_marked_apart() {
        let prompt = prompt(
            "You are Socrates.",
            &[
                (Role::User, "Hello"),
                (Role::Assistant, "Why?"),
                (Role::User, "So"),
            ],
        );
        let body = serde_json::to_value(Body::of(&Prompt {
            recap: "Before.".into(),
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
    fn each_model_is_asked_in_its_own_words_not_to_think() {
        for (model, thought) in [
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
                serde_json::to_value(Thought::least(model)).unwrap(),
                thought,
                "{model}"
            );
        }
    }

    #[test]
    fn an_empty_system_text_is_left_out_because_the_provider_refuses_it() {
        let body = serde_json::to_value(Body::of(&prompt("", &[(Role::User, "Hello")]))).unwrap();
        assert_eq!(body.get("system"), None);
    }
}
