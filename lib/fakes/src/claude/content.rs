//! The content blocks of a system text or a message.

use serde_json::{Map, Value};

use super::cache::{Block, Ttl, count};
use super::request::Problem;

/// Adds the blocks of a string or a list to `blocks` and returns their text.
pub(super) fn content_blocks(
    value: &Value,
    role: &str,
    path: &str,
    blocks: &mut Vec<Block>,
) -> Result<String, Problem> {
    let list = match value {
        Value::String(text) => vec![text_block(text)],
        Value::Array(list) => list.clone(),
        _ => {
            let message = format!("{path}: Input should be a valid list");
            return Err(Problem::invalid(message));
        }
    };

    let mut texts = Vec::new();
    for (at, block) in list.into_iter().enumerate() {
        let path = format!("{path}.{at}");
        let Value::Object(mut block) = block else {
            let message = format!("{path}: Input should be an object");
            return Err(Problem::invalid(message));
        };

        let marked = cache_marker(&block)?;
        block.remove("cache_control");
        let text = block_text(&block, &path)?;
        let content = Value::Object(block).to_string();

        blocks.push(Block {
            tokens: count(text.as_ref().unwrap_or(&content)),
            content: format!("{role} {content}"),
            marked,
        });
        texts.extend(text);
    }

    Ok(texts.join("\n"))
}

fn text_block(text: &str) -> Value {
    let mut block = Map::new();
    block.insert("type".to_owned(), "text".into());
    block.insert("text".to_owned(), text.into());

    Value::Object(block)
}

/// The text of a text block; other blocks have none.
fn block_text(block: &Map<String, Value>, path: &str) -> Result<Option<String>, Problem> {
    let kind = block.get("type").and_then(Value::as_str);
    let kind = kind.ok_or_else(|| Problem::required(&format!("{path}.type")))?;
    if kind != "text" {
        return Ok(None);
    }

    let text = block.get("text").and_then(Value::as_str);
    let text = text.unwrap_or_default();
    if text.trim().is_empty() {
        let message = format!("{path}: text content blocks must be non-empty");
        return Err(Problem::invalid(message));
    }
    Ok(Some(text.to_owned()))
}

/// The `cache_control` of a block or a request.
pub(super) fn cache_marker(fields: &Map<String, Value>) -> Result<Option<Ttl>, Problem> {
    let Some(Value::Object(control)) = fields.get("cache_control") else {
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
