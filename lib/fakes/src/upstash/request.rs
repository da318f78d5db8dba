//! The bodies of requests: words of commands in JSON.

use serde_json::value::RawValue;

use super::resp::Words;

/// A command as it was sent, or the reason why it is none.
pub(super) type Command = Result<Words, String>;

/// One command; `None` if the body is no list.
pub(super) fn parse(body: &[u8]) -> Option<Command> {
    let words: Vec<&RawValue> = serde_json::from_slice(body).ok()?;

    Some(words.into_iter().map(word).collect())
}

/// Several commands; `None` if the body is no list of lists.
pub(super) fn parse_all(body: &[u8]) -> Option<Vec<Command>> {
    let commands: Vec<Vec<&RawValue>> = serde_json::from_slice(body).ok()?;
    let commands = commands
        .into_iter()
        .map(|words| words.into_iter().map(word).collect());

    Some(commands.collect())
}

fn word(value: &RawValue) -> Result<Vec<u8>, String> {
    let written = value.get();

    match written.as_bytes().first() {
        Some(b'"') => serde_json::from_str(written)
            .map(String::into_bytes)
            .map_err(|error| format!("ERR {error}")),
        // JavaScript writes `undefined` and `NaN` as null: one command is refused, not all of them.
        Some(b'n') => Err("ERR null args are not supported".to_owned()),
        Some(b'[' | b'{') => {
            Err("ERR unsupported arg type: only strings, numbers and booleans are words".to_owned())
        }
        // A number stays as written: a float would change the spelling of large and small ones.
        _ => Ok(written.as_bytes().to_vec()),
    }
}
