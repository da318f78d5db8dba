//! The endpoints by which a program asks for events, faults and disorder.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Action, Delivery, Fault, Shared, lock};
use crate::wire::{self, Body};

/// Answers `/local/stripe/{what}`, in JSON.
pub(super) fn answer(shared: &Shared, method: &Method, what: &str, body: &Value) -> Response<Body> {
    match done(shared, method, what, body) {
        Ok(said) => wire::json(StatusCode::OK, &said),
        Err(problem) => wire::json(StatusCode::BAD_REQUEST, &json!({ "error": problem })),
    }
}

fn done(shared: &Shared, method: &Method, what: &str, body: &Value) -> Result<Value, String> {
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    let times = body["times"].as_u64().unwrap_or(1).min(1_000);
    let always = body["always"] == true;
    match (method.as_str(), what) {
        ("POST", "deliveries") => {
            let delivery: Delivery = text("how").parse()?;
            if always {
                shared.deliveries.always(delivery);
            } else {
                (0..times).for_each(|_| shared.deliveries.next(delivery));
            }
            Ok(json!({"next": times, "always": always}))
        }
        ("DELETE", "deliveries") => {
            shared.deliveries.forget();
            Ok(json!({}))
        }
        ("POST", "faults") => {
            let fault: Fault = text("fault").parse()?;
            let mut faults = lock(&shared.faults);
            if always {
                faults.always = Some(fault);
            } else {
                faults.next.extend((0..times).map(|_| fault));
            }
            Ok(json!({"next": times, "always": always}))
        }
        ("DELETE", "faults") => {
            *lock(&shared.faults) = super::Faults::default();
            Ok(json!({}))
        }
        ("POST", "release") => {
            shared.releases.add_permits(1);
            Ok(json!({}))
        }
        ("POST", "act") => {
            let (action, target) = (text("action"), text("target"));
            shared.act(Action::of(&action, &target).map_err(|unknown| unknown.to_string())?);
            Ok(json!({}))
        }
        _ => Err(
            "there are POST and DELETE deliveries, POST and DELETE faults, POST release, POST act"
                .to_owned(),
        ),
    }
}
