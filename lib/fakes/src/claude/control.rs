//! The endpoints by which a developer asks for faults.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::Shared;
use super::behaviour::{Behaviour, UnknownBehaviour};
use super::script::{Only, Script, Scripts};
use crate::faulty_http::{self, Body};
use crate::sync::lock;

/// The most requests that one call scripts.
const MAX_TIMES: u64 = 1_000;

/// Answers `/local/claude/{action}`.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    action: &str,
    body: &Value,
) -> Response<Body> {
    match (method.as_str(), action) {
        ("POST", "faults") => match add_fault(shared, body) {
            Ok(added) => faulty_http::json(StatusCode::OK, &added),
            Err(problem) => {
                faulty_http::json(StatusCode::BAD_REQUEST, &json!({ "error": problem }))
            }
        },
        ("DELETE", "faults") => {
            *lock(&shared.scripts) = Scripts::default();
            faulty_http::json(StatusCode::OK, &json!({}))
        }
        ("POST", "release") => {
            shared.releases.add_permits(1);
            faulty_http::json(StatusCode::OK, &json!({}))
        }
        _ => {
            let problem = json!({"error": "there are POST and DELETE faults, POST release"});
            faulty_http::json(StatusCode::NOT_FOUND, &problem)
        }
    }
}

fn add_fault(shared: &Shared, body: &Value) -> Result<Value, String> {
    let script = read_script(body)?;
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    let only = Only {
        key: text("key"),
        model: text("model"),
        organisation: text("organisation"),
    };

    let mut scripts = lock(&shared.scripts);
    if body["always"] == true {
        scripts.always(only, script);
        return Ok(json!({"always": true}));
    }

    let times = body["times"].as_u64().unwrap_or(1).min(MAX_TIMES);
    for _ in 0..times {
        scripts.next(only.clone(), script.clone());
    }
    Ok(json!({ "next": times }))
}

fn read_script(body: &Value) -> Result<Script, String> {
    let behaviour: Behaviour = body["fault"]
        .as_str()
        .unwrap_or("answer")
        .parse()
        .map_err(|unknown: UnknownBehaviour| unknown.to_string())?;

    let headers = body["headers"].as_object().into_iter().flatten();
    let headers = headers
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();

    Ok(Script {
        text: body["text"].as_str().map(str::to_owned),
        headers,
        ..behaviour.into()
    })
}
