//! Checks every JSON response that a test reads against the OpenAPI document.

use http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE};
use iconoclash::routes;
use serde_json::{Value, json};
use std::sync::LazyLock;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(routes::all().into_openapi()).unwrap());

/// Statuses that any route may answer, whether the document lists them or not.
const ANYWHERE: [u16; 11] = [400, 401, 403, 404, 405, 413, 415, 422, 429, 500, 503];

/// The document that `GET /api/openapi` serves.
pub(crate) fn document() -> &'static Value {
    &DOCUMENT
}

/// Fails unless the document describes this response.
#[track_caller]
pub(crate) fn check(
    method: &Method,
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
    json: &Value,
) {
    let header = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert!(
        header("x-request-id").is_some(),
        "{method} {path}: no x-request-id"
    );
    assert!(
        header("cache-control").is_some(),
        "{method} {path}: no cache-control"
    );

    check_times(json);

    let content_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
    if status.is_client_error() || status.is_server_error() && content_type != "application/json" {
        assert_eq!(
            content_type, "application/problem+json",
            "{method} {path} {status}"
        );
        assert_eq!(
            json["request_id"].as_str(),
            header("x-request-id").as_deref()
        );
        check_problem(method, path, status, json);
        return;
    }

    let Some(operation) = operation(method, path) else {
        panic!("{method} {path} is not in the document and answered {status}");
    };
    let response = &operation["responses"][status.as_str()];
    assert!(
        response.is_object(),
        "{method} {path} answered {status}, which is not documented: {json}"
    );

    let schema = &response["content"]["application/json"]["schema"];
    if schema.is_object() && method != Method::HEAD {
        assert_valid(schema, json, method, path);
    }
}

/// Fails unless every time has six decimals and is UTC. Returns how many there are.
#[track_caller]
pub(crate) fn check_times(json: &Value) -> usize {
    match json {
        Value::String(text) if OffsetDateTime::parse(text, &Rfc3339).is_ok() => {
            let decimals = text.get(19..).unwrap_or_default();
            let has_six = decimals.len() == 8 && decimals.starts_with('.') && text.ends_with('Z');
            assert!(has_six, "{text} is not written with six decimals");
            1
        }
        Value::Array(items) => items.iter().map(check_times).sum(),
        Value::Object(fields) => fields.values().map(check_times).sum(),
        _ => 0,
    }
}

#[track_caller]
fn check_problem(method: &Method, path: &str, status: StatusCode, json: &Value) {
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    assert_valid(&schema, json, method, path);
    assert_eq!(json["status"], status.as_u16(), "{json}");

    let Some(operation) = operation(method, path) else {
        return;
    };
    let is_known =
        ANYWHERE.contains(&status.as_u16()) || operation["responses"][status.as_str()].is_object();
    assert!(
        is_known,
        "{method} {path} answered {status}, which is not documented: {json}"
    );
}

#[track_caller]
fn assert_valid(schema: &Value, json: &Value, method: &Method, path: &str) {
    let mut schema = schema.clone();
    schema["components"] = DOCUMENT["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(json)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(
        errors.is_empty(),
        "{method} {path} answered {json}: {errors:#?}"
    );
}

fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap().trim_end_matches('/');
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let exact = paths.get(path);
    let operations = exact.or_else(|| {
        paths
            .iter()
            .find(|(template, _)| matches(template, path))
            .map(|(_, found)| found)
    })?;
    let method = if method == Method::HEAD {
        "get".to_owned()
    } else {
        method.as_str().to_lowercase()
    };
    operations.get(method)
}

fn matches(template: &str, path: &str) -> bool {
    let template: Vec<_> = template.split('/').collect();
    let path: Vec<_> = path.split('/').collect();

    template.len() == path.len()
        && template
            .iter()
            .zip(path)
            .all(|(part, given)| part.starts_with('{') || *part == given)
}
