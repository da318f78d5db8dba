//! The endpoint by which a person asks for faults.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::behaviour::{Behaviour, Only, Script, Scripts, UnknownBehaviour};
use super::{Shared, lock};
use crate::wire::{self, Body};

/// Answers `/local/claude/{action}`.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    action: &str,
    body: &Value,
) -> Response<Body> {
    match (method.as_str(), action) {
        ("POST", "faults") => match fault(body) {
            Ok((only, script, Some(times))) => {
                (0..times).for_each(|_| lock(&shared.scripts).next(only.clone(), script.clone()));
                wire::json(StatusCode::OK, &json!({"next": times}))
            }
            Ok((only, script, None)) => {
                lock(&shared.scripts).always(only, script);
                wire::json(StatusCode::OK, &json!({"always": true}))
            }
            Err(problem) => wire::json(StatusCode::BAD_REQUEST, &json!({"error": problem})),
        },
        ("DELETE", "faults") => {
            *lock(&shared.scripts) = Scripts::default();
            wire::json(StatusCode::OK, &json!({}))
        }
        ("POST", "release") => {
            shared.releases.add_permits(1);
            wire::json(StatusCode::OK, &json!({}))
        }
        _ => wire::json(
            StatusCode::NOT_FOUND,
            &json!({"error": "there are POST and DELETE faults, POST release"}),
        ),
    }
}

/// The script a person asked for, and how often it is used; `None` is always.
fn fault(body: &Value) -> Result<(Only, Script, Option<u64>), String> {
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_owned);
    let name = text("fault").unwrap_or_else(|| "answer".to_owned());
    let behaviour: Behaviour = name
        .parse()
        .map_err(|unknown: UnknownBehaviour| unknown.to_string())?;
    let headers = body
        .get("headers")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let headers = headers
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    let script = Script {
        text: text("text"),
        headers,
        ..behaviour.into()
    };
    let always = body.get("always").and_then(Value::as_bool).unwrap_or(false);
    let times = body
        .get("times")
        .and_then(Value::as_u64)
        .unwrap_or(1)
        .min(1_000);
    let only = Only {
        key: text("key"),
        model: text("model"),
        organisation: text("organisation"),
    };
    Ok((only, script, (!always).then_some(times)))
}
