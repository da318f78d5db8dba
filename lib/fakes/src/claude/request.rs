//! Reads a request as strictly as the provider does, so that a mistake of ours fails here too.

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use super::behaviour::Failure;
use super::cache::{Block, Ttl, count};

/// A model as the provider lists it.
pub(super) struct Model {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    /// The most tokens of a reply.
    pub(super) most_tokens: u64,
    /// Whether a reply may be begun for it.
    may_begin: bool,
    /// Whether it thinks first where a request says nothing of it.
    thinks: bool,
    /// The types of `thinking` that it takes.
    thinking: &'static [&'static str],
}

pub(super) const MODELS: [Model; 5] = [
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
        most_tokens: 64_000,
        may_begin: true,
        thinks: false,
        ..model(
            "claude-haiku-4-5",
            "Claude Haiku 4.5",
            &["enabled", "disabled"],
        )
    },
];

const fn model(id: &'static str, name: &'static str, thinking: &'static [&'static str]) -> Model {
    Model {
        id,
        name,
        most_tokens: 128_000,
        may_begin: false,
        thinks: true,
        thinking,
    }
}

const VERSIONS: [&str; 2] = ["2026-10-21", "2023-06-01"];
const SAMPLING: [&str; 3] = ["temperature", "top_p", "top_k"];
const FIELDS: [&str; 19] = [
    "cache_control",
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallbacks",
    "inference_geo",
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "thinking",
    "tools",
];

/// An error in the documented shape.
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) message: String,
    pub(super) headers: Vec<(String, String)>,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let (status, kind, code, message) = failure.parts();
        let headers = match failure {
            Failure::RateLimited { retry_after_secs } => {
                vec![("retry-after".to_owned(), retry_after_secs.to_string())]
            }
            _ => vec![],
        };
        Self {
            status,
            kind,
            code,
            message: message.to_owned(),
            headers,
        }
    }
}

impl Problem {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Failure::Invalid.into()
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Failure::NotFound.into()
        }
    }
}

/// A valid request.
pub(super) struct Asked {
    pub(super) model: String,
    /// Whether the model thinks before it speaks.
    pub(super) thinks: bool,
    pub(super) max_tokens: u32,
    pub(super) stream: bool,
    pub(super) system: String,
    /// The last text of the user.
    pub(super) last: String,
    pub(super) turns: usize,
    pub(super) blocks: Vec<Block>,
}

/// Checks the version header.
pub(super) fn version(headers: &HeaderMap) -> Result<(), Problem> {
    match headers
        .get("anthropic-version")
        .map(|value| value.to_str().unwrap_or_default())
    {
        None => Err(Problem::invalid("anthropic-version: header is required")),
        Some(version) if VERSIONS.contains(&version) => Ok(()),
        Some(version) => Err(Problem::invalid(format!(
            "anthropic-version: \"{version}\" is not a valid version"
        ))),
    }
}

/// Checks a body; counting tokens needs no `max_tokens`.
pub(super) fn read(body: &Value, counting: bool) -> Result<Asked, Problem> {
    let body = body
        .as_object()
        .ok_or_else(|| Problem::invalid("The request body is not valid JSON"))?;
    for field in body.keys() {
        if SAMPLING.contains(&field.as_str()) {
            return Err(Problem::invalid(format!(
                "{field}: this parameter is no longer supported"
            )));
        }
        if field != "tool_choice" && !FIELDS.contains(&field.as_str()) {
            return Err(Problem::invalid(format!(
                "{field}: Extra inputs are not permitted"
            )));
        }
    }
    let id = body
        .get("model")
        .and_then(Value::as_str)
        .ok_or_else(|| required("model"))?;
    let model = MODELS.iter().find(|model| model.id == id);
    let model = model.ok_or_else(|| Problem::not_found(format!("model: {id}")))?;
    let max_tokens = match body.get("max_tokens") {
        None if counting => 0,
        None => return Err(required("max_tokens")),
        Some(value) => value
            .as_u64()
            .ok_or_else(|| Problem::invalid("max_tokens: Input should be an integer"))?,
    };
    if max_tokens > model.most_tokens {
        let most = model.most_tokens;
        return Err(Problem::invalid(format!(
            "max_tokens: {max_tokens} > {most}, the most for {id}"
        )));
    }
    let thinks = thinks(body, model)?;
    metadata(body.get("metadata"))?;

    let mut blocks = Vec::new();
    if let Some(tools) = body.get("tools").filter(|tools| !tools.is_null()) {
        blocks.push(Block {
            content: tools.to_string(),
            tokens: count(&tools.to_string()),
            marked: None,
        });
    }
    let system = match body.get("system") {
        None | Some(Value::Null) => String::new(),
        Some(system) => content(system, "system", "system", &mut blocks)?,
    };
    let messages = body
        .get("messages")
        .and_then(Value::as_array)
        .ok_or_else(|| required("messages"))?;
    let mut last = (String::new(), String::new());
    for (at, message) in messages.iter().enumerate() {
        let role = message
            .get("role")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !["user", "assistant", "system"].contains(&role) {
            return Err(Problem::invalid(format!(
                "messages.{at}.role: Input should be 'user', 'assistant' or 'system'"
            )));
        }
        let place = format!("messages.{at}.content");
        let said = message.get("content").ok_or_else(|| required(&place))?;
        last = (role.to_owned(), content(said, role, &place, &mut blocks)?);
    }
    if last.0 == "assistant" && !model.may_begin {
        return Err(Problem::invalid(
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        ));
    }
    if messages.is_empty() {
        return Err(Problem::invalid(
            "messages: at least one message is required",
        ));
    }
    if let (Some(ttl), Some(block)) = (marker(body)?, blocks.last_mut()) {
        block.marked = Some(ttl);
    }
    let markers = blocks.iter().filter(|block| block.marked.is_some()).count();
    if markers > 4 {
        return Err(Problem::invalid(format!(
            "A maximum of 4 blocks with cache_control may be provided. Found {markers}."
        )));
    }
    Ok(Asked {
        model: id.to_owned(),
        thinks,
        max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
        system,
        last: last.1,
        turns: messages.len(),
        blocks,
    })
}

fn thinks(body: &Map<String, Value>, model: &Model) -> Result<bool, Problem> {
    let Some(thinking) = body.get("thinking").filter(|thinking| !thinking.is_null()) else {
        return Ok(model.thinks);
    };
    let kind = thinking
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| required("thinking.type"))?;
    if !model.thinking.contains(&kind) {
        return Err(Problem::invalid(format!(
            "\"thinking.type.{kind}\" is not supported for this model."
        )));
    }
    Ok(matches!(kind, "adaptive" | "enabled"))
}

fn required(field: &str) -> Problem {
    Problem::invalid(format!("{field}: Field required"))
}

fn metadata(metadata: Option<&Value>) -> Result<(), Problem> {
    let Some(Value::Object(fields)) = metadata else {
        return Ok(());
    };
    match fields.keys().find(|field| *field != "user_id") {
        Some(field) => Err(Problem::invalid(format!(
            "metadata.{field}: Extra inputs are not permitted"
        ))),
        None => Ok(()),
    }
}

/// Adds the blocks of a string or a list, and gives their text.
fn content(
    value: &Value,
    role: &str,
    place: &str,
    blocks: &mut Vec<Block>,
) -> Result<String, Problem> {
    let list = match value {
        Value::String(text) => {
            let mut block = Map::new();
            block.insert("type".to_owned(), "text".into());
            block.insert("text".to_owned(), text.as_str().into());
            vec![Value::Object(block)]
        }
        Value::Array(list) => list.clone(),
        _ => {
            return Err(Problem::invalid(format!(
                "{place}: Input should be a valid list"
            )));
        }
    };
    let mut texts = Vec::new();
    for (at, block) in list.into_iter().enumerate() {
        let Value::Object(mut block) = block else {
            return Err(Problem::invalid(format!(
                "{place}.{at}: Input should be an object"
            )));
        };
        let marked = marker(&block)?;
        block.remove("cache_control");
        let tokens = match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                let text = block
                    .get("text")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                if text.trim().is_empty() {
                    return Err(Problem::invalid(format!(
                        "{place}.{at}: text content blocks must be non-empty"
                    )));
                }
                texts.push(text.to_owned());
                count(text)
            }
            Some(_) => count(&Value::Object(block.clone()).to_string()),
            None => return Err(required(&format!("{place}.{at}.type"))),
        };
        blocks.push(Block {
            content: format!("{role} {}", Value::Object(block)),
            tokens,
            marked,
        });
    }
    Ok(texts.join("\n"))
}

fn marker(of: &Map<String, Value>) -> Result<Option<Ttl>, Problem> {
    let Some(Value::Object(control)) = of.get("cache_control") else {
        return Ok(None);
    };
    let field = |name: &str| control.get(name).and_then(Value::as_str);
    match (field("type"), field("ttl")) {
        (Some("ephemeral"), None | Some("5m")) => Ok(Some(Ttl::FiveMinutes)),
        (Some("ephemeral"), Some("1h")) => Ok(Some(Ttl::Hour)),
        _ => Err(Problem::invalid(
            "cache_control: Input should be ephemeral, with a ttl of '5m' or '1h'",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(change: Value, expected: Result<(), &str>) {
        let mut body = json!({
            "model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}],
        });
        for (field, value) in change.as_object().unwrap() {
            match value {
                Value::Null => body.as_object_mut().unwrap().remove(field),
                value => body
                    .as_object_mut()
                    .unwrap()
                    .insert(field.clone(), value.clone()),
            };
        }
        let actual = read(&body, false)
            .map(|_| ())
            .map_err(|problem| problem.message);
        assert_eq!(
            actual.as_ref().map_err(String::as_str).copied(),
            expected,
            "{change}"
        );
    }

    #[test]
    fn what_the_provider_refuses_is_refused() {
        check(json!({}), Ok(()));
        check(json!({"model": null}), Err("model: Field required"));
        check(json!({"model": "claude-1"}), Err("model: claude-1"));
        check(
            json!({"max_tokens": null}),
            Err("max_tokens: Field required"),
        );
        check(
            json!({"max_tokens": 128_001}),
            Err("max_tokens: 128001 > 128000, the most for claude-haiku-5-5"),
        );
        check(
            json!({"temperature": 1}),
            Err("temperature: this parameter is no longer supported"),
        );
        check(
            json!({"maxTokens": 1}),
            Err("maxTokens: Extra inputs are not permitted"),
        );
        check(
            json!({"metadata": {"email": "a@b"}}),
            Err("metadata.email: Extra inputs are not permitted"),
        );
        check(
            json!({"metadata": {"user_id": "u"}, "stream": true, "tool_choice": {"type": "auto"}}),
            Ok(()),
        );
        check(json!({"thinking": {"type": "disabled"}}), Ok(()));
        check(
            json!({"thinking": {}}),
            Err("thinking.type: Field required"),
        );
        for (model, kind) in [
            ("claude-sonnet-5-5", "disabled"),
            ("claude-opus-5-5", "disabled"),
            ("claude-haiku-5-5", "between_tools"),
            ("claude-haiku-5-5", "enabled"),
        ] {
            let refused = format!("\"thinking.type.{kind}\" is not supported for this model.");
            check(
                json!({"model": model, "thinking": {"type": kind}}),
                Err(&refused),
            );
        }
        check(json!({"messages": null}), Err("messages: Field required"));
        check(
            json!({"messages": []}),
            Err("messages: at least one message is required"),
        );
        check(
            json!({"messages": [{"role": "bot", "content": "x"}]}),
            Err("messages.0.role: Input should be 'user', 'assistant' or 'system'"),
        );
        check(
            json!({"messages": [{"role": "user"}]}),
            Err("messages.0.content: Field required"),
        );
        check(
            json!({"messages": [{"role": "user", "content": " "}]}),
            Err("messages.0.content.0: text content blocks must be non-empty"),
        );
        check(
            json!({"system": ""}),
            Err("system.0: text content blocks must be non-empty"),
        );
        let begun =
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
        check(
            json!({"messages": begun, "model": "claude-haiku-4-5"}),
            Ok(()),
        );
        check(
            json!({"messages": begun}),
            Err("This model does not support assistant message prefill. \
                 The conversation must end with a user message."),
        );
        let marked = |ttl: &str| json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": ttl}});
        check(
            json!({"system": [marked("1h"), marked("5m"), marked("5m"), marked("5m")]}),
            Ok(()),
        );
        check(
            json!({"system": vec![marked("5m"); 5]}),
            Err("A maximum of 4 blocks with cache_control may be provided. Found 5."),
        );
        check(
            json!({"system": [marked("2h")]}),
            Err("cache_control: Input should be ephemeral, with a ttl of '5m' or '1h'"),
        );
    }
}
