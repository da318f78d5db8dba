//! Parses a request as strictly as the provider does, so that a mistake fails locally too.

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use super::behaviour::Failure;
use super::cache::{Block, count};
use super::content::{cache_marker, content_blocks};
use super::models::{self, Model};

const VERSIONS: [&str; 2] = ["2026-10-21", "2023-06-01"];
const REMOVED_FIELDS: [&str; 3] = ["temperature", "top_p", "top_k"];
const FIELDS: [&str; 20] = [
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
    "tool_choice",
    "tools",
];
const ROLES: [&str; 3] = ["user", "assistant", "system"];
/// The most blocks of a request that may be marked for the prompt cache.
const MAX_CACHE_MARKERS: usize = 4;

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
        let headers = match failure {
            Failure::RateLimited { retry_after_secs } => {
                vec![("retry-after".to_owned(), retry_after_secs.to_string())]
            }
            _ => vec![],
        };

        Self {
            status: StatusCode::from_u16(failure.status()).expect("a status has three digits"),
            kind: failure.kind(),
            code: failure.code(),
            message: failure.message().to_owned(),
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

    pub(super) fn required(field: &str) -> Self {
        Self::invalid(format!("{field}: Field required"))
    }
}

/// A valid request.
pub(super) struct ParsedRequest {
    pub(super) model: String,
    /// Whether the model thinks before it answers.
    pub(super) thinks: bool,
    pub(super) max_tokens: u32,
    pub(super) stream: bool,
    pub(super) system: String,
    /// The text of the last message.
    pub(super) last_text: String,
    /// The number of messages.
    pub(super) turns: usize,
    pub(super) blocks: Vec<Block>,
}

/// Checks the version header.
pub(super) fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    let version = headers
        .get("anthropic-version")
        .map(|value| value.to_str().unwrap_or_default());

    match version {
        None => Err(Problem::invalid("anthropic-version: header is required")),
        Some(version) if VERSIONS.contains(&version) => Ok(()),
        Some(version) => Err(Problem::invalid(format!(
            "anthropic-version: \"{version}\" is not a valid version"
        ))),
    }
}

/// Parses the body of a request for a message.
pub(super) fn parse(body: &Value) -> Result<ParsedRequest, Problem> {
    parse_body(body, true)
}

/// The tokens of a prompt; the body needs no `max_tokens`.
pub(super) fn count_tokens(body: &Value) -> Result<u32, Problem> {
    let request = parse_body(body, false)?;

    Ok(request.blocks.iter().map(|block| block.tokens).sum())
}

fn parse_body(body: &Value, needs_max_tokens: bool) -> Result<ParsedRequest, Problem> {
    let body = body
        .as_object()
        .ok_or_else(|| Problem::invalid("The request body is not valid JSON"))?;
    check_fields(body)?;

    let model = parse_model(body)?;
    let max_tokens = parse_max_tokens(body, model, needs_max_tokens)?;
    let thinks = parse_thinking(body, model)?;
    check_metadata(body.get("metadata"))?;

    let mut blocks = tool_block(body).into_iter().collect();
    let system = parse_system(body, &mut blocks)?;
    let messages = body
        .get("messages")
        .and_then(Value::as_array)
        .ok_or_else(|| Problem::required("messages"))?;
    let last_text = parse_messages(messages, model, &mut blocks)?;
    mark_last_block(body, &mut blocks)?;

    Ok(ParsedRequest {
        model: model.id.to_owned(),
        thinks,
        max_tokens: u32::try_from(max_tokens).unwrap_or(u32::MAX),
        stream: body.get("stream") == Some(&Value::Bool(true)),
        system,
        last_text,
        turns: messages.len(),
        blocks,
    })
}

fn check_fields(body: &Map<String, Value>) -> Result<(), Problem> {
    for field in body.keys() {
        if REMOVED_FIELDS.contains(&field.as_str()) {
            return Err(Problem::invalid(format!(
                "{field}: this parameter is no longer supported"
            )));
        }
        if !FIELDS.contains(&field.as_str()) {
            return Err(Problem::invalid(format!(
                "{field}: Extra inputs are not permitted"
            )));
        }
    }

    Ok(())
}

fn parse_model(body: &Map<String, Value>) -> Result<&'static Model, Problem> {
    let id = body
        .get("model")
        .and_then(Value::as_str)
        .ok_or_else(|| Problem::required("model"))?;

    models::find(id).ok_or_else(|| Problem::not_found(format!("model: {id}")))
}

fn parse_max_tokens(
    body: &Map<String, Value>,
    model: &Model,
    required: bool,
) -> Result<u64, Problem> {
    let max_tokens = match body.get("max_tokens") {
        None if required => return Err(Problem::required("max_tokens")),
        None => 0,
        Some(value) => value
            .as_u64()
            .ok_or_else(|| Problem::invalid("max_tokens: Input should be an integer"))?,
    };

    let (limit, id) = (model.max_tokens, model.id);
    if max_tokens > limit {
        return Err(Problem::invalid(format!(
            "max_tokens: {max_tokens} > {limit}, the most for {id}"
        )));
    }
    Ok(max_tokens)
}

fn parse_thinking(body: &Map<String, Value>, model: &Model) -> Result<bool, Problem> {
    let Some(thinking) = body.get("thinking").filter(|thinking| !thinking.is_null()) else {
        return Ok(model.thinks_by_default);
    };
    let kind = thinking
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| Problem::required("thinking.type"))?;

    if !model.thinking_types.contains(&kind) {
        return Err(Problem::invalid(format!(
            "\"thinking.type.{kind}\" is not supported for this model."
        )));
    }
    Ok(matches!(kind, "adaptive" | "enabled"))
}

fn check_metadata(metadata: Option<&Value>) -> Result<(), Problem> {
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

/// The definitions of tools, the first part of a cached prefix.
fn tool_block(body: &Map<String, Value>) -> Option<Block> {
    let tools = body.get("tools").filter(|tools| !tools.is_null())?;
    let content = tools.to_string();

    Some(Block {
        tokens: count(&content),
        content,
        marked: None,
    })
}

fn parse_system(body: &Map<String, Value>, blocks: &mut Vec<Block>) -> Result<String, Problem> {
    match body.get("system") {
        None | Some(Value::Null) => Ok(String::new()),
        Some(system) => content_blocks(system, "system", "system", blocks),
    }
}

/// Adds the blocks of all messages and returns the text of the last one.
fn parse_messages(
    messages: &[Value],
    model: &Model,
    blocks: &mut Vec<Block>,
) -> Result<String, Problem> {
    let mut last_role = "";
    let mut last_text = String::new();

    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !ROLES.contains(&role) {
            return Err(Problem::invalid(format!(
                "messages.{at}.role: Input should be 'user', 'assistant' or 'system'"
            )));
        }

        let path = format!("messages.{at}.content");
        let content = message
            .get("content")
            .ok_or_else(|| Problem::required(&path))?;
        last_role = role;
        last_text = content_blocks(content, role, &path, blocks)?;
    }

    if last_role == "assistant" && !model.allows_prefill {
        return Err(Problem::invalid(
            "This model does not support assistant message prefill. \
             The conversation must end with a user message.",
        ));
    }
    if messages.is_empty() {
        let message = "messages: at least one message is required";
        return Err(Problem::invalid(message));
    }
    Ok(last_text)
}

/// A marker of the request itself marks its last block.
fn mark_last_block(body: &Map<String, Value>, blocks: &mut [Block]) -> Result<(), Problem> {
    if let (Some(ttl), Some(block)) = (cache_marker(body)?, blocks.last_mut()) {
        block.marked = Some(ttl);
    }

    let markers = blocks.iter().filter(|block| block.marked.is_some()).count();
    if markers > MAX_CACHE_MARKERS {
        return Err(Problem::invalid(format!(
            "A maximum of {MAX_CACHE_MARKERS} blocks with cache_control may be provided. \
             Found {markers}."
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(change: Value, expected: Result<(), &str>) {
        let mut body = json!({
            "model": "claude-haiku-5-5", "max_tokens": 9,
            "messages": [{"role": "user", "content": "Hello"}],
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
        let actual = parse(&body).map(|_| ()).map_err(|problem| problem.message);
        assert_eq!(
            actual.as_ref().map_err(String::as_str).copied(),
            expected,
            "{change}"
        );
    }

    #[test]
    fn invalid_requests_get_the_error_of_the_provider() {
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

        let prefilled =
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
        check(
            json!({"messages": prefilled, "model": "claude-haiku-4-5"}),
            Ok(()),
        );
        check(
            json!({"messages": prefilled}),
            Err("This model does not support assistant message prefill. \
                 The conversation must end with a user message."),
        );

        let marked = |ttl: &str| {
            let control = json!({"type": "ephemeral", "ttl": ttl});
            json!({"type": "text", "text": "x", "cache_control": control})
        };
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
