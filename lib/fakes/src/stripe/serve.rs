//! From a request to its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::object;
use super::params::{Params, Problem};
use super::world::World;
use super::{API_VERSION, Fault, NEXT_PRICE, PRICE, Recorded, Shared, control, lock, page};
use crate::wire::{self, Body, HangUp};

pub(super) async fn handle(
    shared: Arc<Shared>,
    request: Request<Bytes>,
) -> Result<Response<Body>, HangUp> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let form = String::from_utf8_lossy(&body);
    if let Some(rest) = path.strip_prefix("/local/stripe") {
        let json = parts
            .headers
            .get("content-type")
            .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
        let rest = rest.trim_matches('/');
        return Ok(
            if json || parts.method == Method::DELETE || rest == "release" {
                control::answer(
                    &shared,
                    &parts.method,
                    rest,
                    &serde_json::from_slice(&body).unwrap_or(Value::Null),
                )
            } else {
                page::answer(&shared, &parts.method, rest, &Params::parse(&form))
            },
        );
    }
    let params = match parts.method {
        Method::POST => Params::parse(&form),
        _ => Params::parse(parts.uri.query().unwrap_or_default()),
    };
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let idempotency_key = header("idempotency-key").map(str::to_owned);
    let recorded = Recorded {
        method: parts.method.clone(),
        path: path.clone(),
        params: params.0.clone(),
        idempotency_key: idempotency_key.clone(),
    };
    let fault = lock(&shared.faults).take();
    let replayed = idempotency_key
        .as_ref()
        .is_some_and(|key| shared.with_world(|it| it.answers.contains_key(key)));
    let answered = match authorize(&shared, &parts.headers) {
        Ok(()) => keyed(
            &shared,
            &parts.method,
            &path,
            &params,
            idempotency_key.as_deref(),
            fault,
        ),
        Err(problem) => (problem.status.as_u16(), problem.body()),
    };
    shared
        .requests
        .send_modify(|requests| requests.push(recorded));
    match fault {
        Some(Fault::Drop) => return Err(HangUp),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Slow(ms)) => {
            let pause = rand::random_range(0..=ms);
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        }
        Some(Fault::Hold) => {
            if let Ok(permit) = shared.releases.acquire().await {
                permit.forget();
            }
        }
        _ => {}
    }
    let (status, body) = answered;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match fault {
        Some(Fault::Malformed) => {
            let half = body.to_string();
            wire::answer(
                status,
                "application/json",
                wire::full(half[..half.len() / 2].to_owned()),
            )
        }
        _ => wire::json(status, &body),
    };
    let headers = response.headers_mut();
    let id = shared.with_world(|world| world.id("req"));
    headers.extend([
        (
            http::HeaderName::from_static("request-id"),
            HeaderValue::from_str(&id).map_err(|_| HangUp)?,
        ),
        (
            http::HeaderName::from_static("stripe-version"),
            HeaderValue::from_static(API_VERSION),
        ),
    ]);
    if replayed && parts.method == Method::POST {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The key, and the one version that this stand-in speaks.
fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let key = text("authorization")
        .strip_prefix("Bearer ")
        .unwrap_or_default();
    if key != shared.key {
        let last: String = key
            .chars()
            .rev()
            .take(4)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        return Err(Problem::new(
            401,
            "invalid_request_error",
            format!("Invalid API Key provided: ****{last}"),
        ));
    }
    match text("stripe-version") {
        API_VERSION => Ok(()),
        other => {
            let message = format!(
                "This stand-in speaks {API_VERSION} only, not {other:?}: pin it in Stripe-Version."
            );
            Err(Problem::new(400, "invalid_request_error", message))
        }
    }
}

/// The answer that a key has already, else a new one, which is kept unless the request was no good.
fn keyed(
    shared: &Shared,
    method: &Method,
    path: &str,
    params: &Params,
    key: Option<&str>,
    fault: Option<Fault>,
) -> (u16, Value) {
    let asked = format!("{method} {path} {:?}", params.0);
    let key = key.filter(|_| *method == Method::POST);
    if let Some((first, status, body)) =
        key.and_then(|key| shared.with_world(|it| it.answers.get(key).cloned()))
    {
        if first == asked {
            return (status, body);
        }
        let message = "Keys for idempotent requests can only be used with the same parameters they were first used with.";
        return (400, Problem::new(400, "idempotency_error", message).body());
    }
    let (status, body) = match fault {
        Some(Fault::Status(status)) => {
            let kind = if status < 500 {
                "invalid_request_error"
            } else {
                "api_error"
            };
            (
                status,
                Problem::new(status, kind, "As it was asked to, this stand-in failed.").body(),
            )
        }
        _ => {
            let url = |path: &str| shared.page_url(path);
            match shared.with_world(|world| answer(world, method, path, params, &url)) {
                Ok(body) => (200, body),
                Err(problem) => (problem.status.as_u16(), problem.body()),
            }
        }
    };
    if let Some(key) = key.filter(|_| status == 200 || status >= 500) {
        shared.with_world(|world| {
            world
                .answers
                .insert(key.to_owned(), (asked, status, body.clone()))
        });
    }
    (status, body)
}

fn answer(
    world: &mut World,
    method: &Method,
    path: &str,
    params: &Params,
    url: &dyn Fn(&str) -> String,
) -> Result<Value, Problem> {
    let segments: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    match (method.as_str(), segments.as_slice()) {
        ("POST", ["customers"]) => {
            params.only(&["email", "name", "metadata[*"])?;
            let id = world.id("cus");
            let email = params.get("email").unwrap_or_default();
            let customer = object::customer(&id, email, params.metadata("metadata"), world.now);
            world.customers.push(customer.clone());
            world.happens("customer.created", &customer);
            Ok(customer)
        }
        ("GET", ["customers", id]) => find(&world.customers, "customer", id),
        ("GET", ["subscriptions"]) => {
            params.only(&["customer", "status", "limit", "starting_after"])?;
            let status = params.get("status");
            let wanted = |it: &Value| match status {
                Some("all") => true,
                Some(status) => it["status"] == status,
                None => it["status"] != "canceled",
            };
            list(
                world,
                &world.subscriptions,
                "/v1/subscriptions",
                params,
                wanted,
            )
        }
        ("GET", ["subscriptions", id]) => find(&world.subscriptions, "subscription", id),
        ("POST", ["subscriptions", id]) => {
            params.only(&["cancel_at_period_end", "metadata[*"])?;
            let end = super::world::period_end(&find(&world.subscriptions, "subscription", id)?);
            if let Some(ends) = params.flag("cancel_at_period_end")? {
                world.set_end(id, ends, ends.then_some(end));
            }
            find(&world.subscriptions, "subscription", id)
        }
        ("DELETE", ["subscriptions", id]) => {
            find(&world.subscriptions, "subscription", id)?;
            world.cancel(id);
            find(&world.subscriptions, "subscription", id)
        }
        ("POST", ["checkout", "sessions"]) => open_checkout(world, params, url),
        ("GET", ["checkout", "sessions"]) => {
            params.only(&[
                "customer",
                "subscription",
                "status",
                "limit",
                "starting_after",
            ])?;
            let status = params.get("status");
            let wanted = |it: &Value| status.is_none_or(|status| it["status"] == status);
            list(
                world,
                &world.sessions,
                "/v1/checkout/sessions",
                params,
                wanted,
            )
        }
        ("GET", ["checkout", "sessions", id]) => find(&world.sessions, "checkout.session", id),
        ("POST", ["checkout", "sessions", id, "expire"]) => {
            let status = find(&world.sessions, "checkout.session", id)?["status"].clone();
            if status != "open" {
                let message = format!(
                    "Only Checkout Sessions with a status of open can be expired, not {status}."
                );
                return Err(Problem::new(400, "invalid_request_error", message));
            }
            world.act(super::Action::Expire(id));
            find(&world.sessions, "checkout.session", id)
        }
        ("POST", ["billing_portal", "sessions"]) => {
            params.only(&["customer", "return_url", "configuration", "locale"])?;
            let customer = known_customer(world, params)?.to_owned();
            let id = world.id("bps");
            let page = url(&format!("portal/{id}"));
            let session =
                object::portal_session(&id, &page, &customer, params.get("return_url"), world.now);
            world.portals.push(session.clone());
            Ok(session)
        }
        _ => {
            let message = format!("Unrecognized request URL ({method}: {path}).");
            Err(Problem::new(404, "invalid_request_error", message))
        }
    }
}

fn open_checkout(
    world: &mut World,
    params: &Params,
    url: &dyn Fn(&str) -> String,
) -> Result<Value, Problem> {
    params.only(&[
        "mode",
        "customer",
        "client_reference_id",
        "line_items[][price]",
        "line_items[][quantity]",
        "allow_promotion_codes",
        "subscription_data[metadata][*",
        "subscription_data[trial_period_days]",
        "metadata[*",
        "success_url",
        "cancel_url",
        "locale",
        "expires_at",
        "ui_mode",
        "allowed_payment_method_types[]",
    ])?;
    if params.required("mode")? != "subscription" {
        return Err(Problem::new(
            400,
            "invalid_request_error",
            "This stand-in sells subscriptions only.",
        ));
    }
    params.required("success_url")?;
    params.flag("allow_promotion_codes")?;
    let price = params.required("line_items[0][price]")?;
    if ![PRICE, NEXT_PRICE].contains(&price) {
        return Err(Problem::missing("price", "line_items[0][price]", price));
    }
    known_customer(world, params)?;
    let id = world.id("cs_test");
    let session = object::session(&id, &url(&format!("checkout/{id}")), params, world.now);
    world
        .subscription_metadata
        .insert(id, params.metadata("subscription_data[metadata]"));
    world.sessions.push(session.clone());
    Ok(session)
}

fn known_customer<'p>(world: &World, params: &'p Params) -> Result<&'p str, Problem> {
    let customer = params.required("customer")?;
    if world.has_customer(customer) {
        Ok(customer)
    } else {
        Err(Problem::missing("customer", "customer", customer))
    }
}

fn find(objects: &[Value], what: &str, id: &str) -> Result<Value, Problem> {
    let found = objects.iter().find(|it| object::id(it) == id).cloned();
    found.ok_or_else(|| Problem::missing(what, "id", id))
}

/// A page of a list, newest first.
fn list(
    world: &World,
    objects: &[Value],
    url: &str,
    params: &Params,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value, Problem> {
    if params.get("customer").is_some() {
        known_customer(world, params)?;
    }
    let (limit, customer) = (params.limit()?, params.get("customer"));
    let theirs = |it: &&Value| {
        customer.is_none_or(|customer| it["customer"] == json!(customer)) && wanted(it)
    };
    let mut found: Vec<Value> = objects.iter().rev().filter(theirs).cloned().collect();
    if let Some(after) = params.get("starting_after") {
        let at = found
            .iter()
            .position(|it| object::id(it) == after)
            .map_or(found.len(), |at| at + 1);
        found.drain(..at);
    }
    let has_more = found.len() > limit;
    found.truncate(limit);
    Ok(object::list(url, found, has_more))
}
