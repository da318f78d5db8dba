//! The endpoints by which a developer asks for events, faults and disorder.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Action, Delivery, Fault, Faults, Shared};
use crate::faulty_http::{self, Body};
use crate::sync::lock;

/// The most events or requests that one call changes.
const MAX_TIMES: u64 = 1_000;

/// Answers `/local/stripe/{action}` in JSON.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    action: &str,
    body: &Value,
) -> Response<Body> {
    let result = match (method.as_str(), action) {
        ("POST", "deliveries") => add_delivery(shared, body),
        ("DELETE", "deliveries") => {
            shared.deliveries.reset();
            Ok(json!({}))
        }
        ("POST", "faults") => add_fault(shared, body),
        ("DELETE", "faults") => {
            *lock(&shared.faults) = Faults::default();
            Ok(json!({}))
        }
        ("POST", "release") => {
            shared.releases.add_permits(1);
            Ok(json!({}))
        }
        ("POST", "act") => act(shared, body),
        _ => Err(
            "there are POST and DELETE deliveries, POST and DELETE faults, POST release, POST act"
                .to_owned(),
        ),
    };

    match result {
        Ok(answer) => faulty_http::json(StatusCode::OK, &answer),
        Err(problem) => faulty_http::json(StatusCode::BAD_REQUEST, &json!({ "error": problem })),
    }
}

fn add_delivery(shared: &Shared, body: &Value) -> Result<Value, String> {
    let delivery: Delivery = text(body, "how").parse()?;
    let always = body["always"] == true;

    if always {
        shared.deliveries.always(delivery);
    } else {
        (0..times(body)).for_each(|_| shared.deliveries.next(delivery));
    }

    Ok(json!({"next": times(body), "always": always}))
}

fn add_fault(shared: &Shared, body: &Value) -> Result<Value, String> {
    let fault: Fault = text(body, "fault").parse()?;
    let always = body["always"] == true;

    let mut faults = lock(&shared.faults);
    if always {
        faults.always = Some(fault);
    } else {
        faults.next.extend((0..times(body)).map(|_| fault));
    }

    Ok(json!({"next": times(body), "always": always}))
}

fn act(shared: &Shared, body: &Value) -> Result<Value, String> {
    let action = Action::from_name(text(body, "action"), text(body, "target"));
    shared.act(action.map_err(|unknown| unknown.to_string())?);

    Ok(json!({}))
}

fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_default()
}

fn times(body: &Value) -> u64 {
    body["times"].as_u64().unwrap_or(1).min(MAX_TIMES)
}
