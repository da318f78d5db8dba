//! The models that the fake knows.

use serde_json::{Value, json};

/// A model as the provider lists it.
pub(super) struct Model {
    pub(super) id: &'static str,
    name: &'static str,
    /// The longest reply, in tokens.
    pub(super) max_tokens: u64,
    /// Whether a request may start the reply with an assistant message.
    pub(super) allows_prefill: bool,
    /// Whether the model thinks first if a request does not set `thinking`.
    pub(super) thinks_by_default: bool,
    /// The values of `thinking.type` that the model accepts.
    pub(super) thinking_types: &'static [&'static str],
}

const MODELS: [Model; 5] = [
    model("claude-opus-5-5", "Claude Opus 5.5", &["adaptive"]),
    model(
        "claude-sonnet-5-5",
        "Claude Sonnet 5.5",
        &["adaptive", "between_tools"],
    ),
    model(
        "claude-haiku-5-5",
        "Claude Haiku 5.5",
        &["adaptive", "disabled"],
    ),
    model(
        "claude-opus-5",
        "Claude Opus 5",
        &["adaptive", "enabled", "disabled"],
    ),
    Model {
        max_tokens: 64_000,
        allows_prefill: true,
        thinks_by_default: false,
        ..model(
            "claude-haiku-4-5",
            "Claude Haiku 4.5",
            &["enabled", "disabled"],
        )
    },
];

const fn model(
    id: &'static str,
    name: &'static str,
    thinking_types: &'static [&'static str],
) -> Model {
    Model {
        id,
        name,
        max_tokens: 128_000,
        allows_prefill: false,
        thinks_by_default: true,
        thinking_types,
    }
}

/// The model of an id.
pub(super) fn find(id: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == id)
}

/// The answer of `GET /v1/models`.
pub(super) fn list() -> Value {
    let models: Vec<Value> = MODELS.iter().map(describe).collect();

    json!({
        "data": models,
        "has_more": false,
        "first_id": MODELS[0].id,
        "last_id": MODELS[MODELS.len() - 1].id,
    })
}

fn describe(model: &Model) -> Value {
    json!({
        "type": "model",
        "id": model.id,
        "display_name": model.name,
        "created_at": "2026-10-07T00:00:00Z",
        "lifecycle": "active",
        "deprecated_at": null,
        "retires_at": null,
        "line": model.id.split('-').nth(1),
        "max_input_tokens": 1_000_000,
        "max_tokens": model.max_tokens,
        "capabilities": null,
    })
}
