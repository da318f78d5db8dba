//! The endpoints below `/v1`.

use serde_json::{Value, json};

use super::account::{Account, period_end};
use super::params::{Params, Problem};
use super::{Action, NEXT_PRICE, PRICE, RecordedRequest, objects};

/// Makes the URL of a page.
type PageUrl<'a> = &'a dyn Fn(&str) -> String;

/// Answers a request with an object.
pub(super) fn answer(
    account: &mut Account,
    request: &RecordedRequest,
    page_url: PageUrl<'_>,
) -> Result<Value, Problem> {
    let method = request.method.as_str();
    let path = request.path.as_str();
    let params = &Params(request.params.clone());

    let segments: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    match (method, segments.as_slice()) {
        ("POST", ["customers"]) => create_customer(account, params),
        ("GET", ["customers", id]) => find_customer(account, id),
        ("GET", ["subscriptions"]) => list_subscriptions(account, params),
        ("GET", ["subscriptions", id]) => find_subscription(account, id),
        ("POST", ["subscriptions", id]) => update_subscription(account, id, params),
        ("DELETE", ["subscriptions", id]) => {
            find_subscription(account, id)?;
            account.cancel(id);
            find_subscription(account, id)
        }
        ("POST", ["checkout", "sessions"]) => create_checkout(account, params, page_url),
        ("GET", ["checkout", "sessions"]) => list_checkouts(account, params),
        ("GET", ["checkout", "sessions", id]) => find_checkout(account, id),
        ("POST", ["checkout", "sessions", id, "expire"]) => expire_checkout(account, id),
        ("POST", ["billing_portal", "sessions"]) => create_portal(account, params, page_url),
        _ => {
            let message = format!("Unrecognized request URL ({method}: {path}).");
            Err(Problem::new(404, "invalid_request_error", message))
        }
    }
}

fn create_customer(account: &mut Account, params: &Params) -> Result<Value, Problem> {
    params.allow(&["email", "name", "metadata[*"])?;

    let id = account.new_id("cus");
    let email = params.get("email").unwrap_or_default();
    let customer = objects::customer(&id, email, params.metadata("metadata"), account.now);

    account.customers.push(customer.clone());
    account.emit("customer.created", &customer);
    Ok(customer)
}

fn find_customer(account: &Account, id: &str) -> Result<Value, Problem> {
    let deleted = find(&account.deleted_customers, "customer", id);

    deleted.or_else(|_| find(&account.customers, "customer", id))
}

fn list_subscriptions(account: &Account, params: &Params) -> Result<Value, Problem> {
    params.allow(&["customer", "status", "limit", "starting_after"])?;

    let matches = |subscription: &Value| match params.get("status") {
        Some("all") => true,
        Some(status) => subscription["status"] == status,
        None => subscription["status"] != "canceled",
    };
    let subscriptions = &account.subscriptions;

    list(account, subscriptions, "/v1/subscriptions", params, matches)
}

fn find_subscription(account: &Account, id: &str) -> Result<Value, Problem> {
    find(&account.subscriptions, "subscription", id)
}

fn update_subscription(account: &mut Account, id: &str, params: &Params) -> Result<Value, Problem> {
    params.allow(&["cancel_at_period_end", "metadata[*"])?;

    let end = period_end(&find_subscription(account, id)?);
    if let Some(ends) = params.flag("cancel_at_period_end")? {
        account.set_end(id, ends, ends.then_some(end));
    }

    find_subscription(account, id)
}

fn create_checkout(
    account: &mut Account,
    params: &Params,
    page_url: PageUrl<'_>,
) -> Result<Value, Problem> {
    params.allow(&[
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
    check_checkout(account, params)?;

    let id = account.new_id("cs_test");
    let url = page_url(&format!("checkout/{id}"));
    let session = objects::session(&id, &url, params, account.now);

    let metadata = params.metadata("subscription_data[metadata]");
    account.subscription_metadata.insert(id, metadata);
    account.sessions.push(session.clone());
    Ok(session)
}

fn check_checkout(account: &Account, params: &Params) -> Result<(), Problem> {
    if params.required("mode")? != "subscription" {
        let message = "This fake sells subscriptions only.";
        return Err(Problem::new(400, "invalid_request_error", message));
    }
    params.required("success_url")?;
    params.flag("allow_promotion_codes")?;

    let price = params.required("line_items[0][price]")?;
    if ![PRICE, NEXT_PRICE].contains(&price) {
        return Err(Problem::missing("price", "line_items[0][price]", price));
    }

    known_customer(account, params)?;
    Ok(())
}

fn list_checkouts(account: &Account, params: &Params) -> Result<Value, Problem> {
    params.allow(&[
        "customer",
        "subscription",
        "status",
        "limit",
        "starting_after",
    ])?;

    let status = params.get("status");
    let matches = |session: &Value| status.is_none_or(|status| session["status"] == status);
    let sessions = &account.sessions;

    list(account, sessions, "/v1/checkout/sessions", params, matches)
}

fn find_checkout(account: &Account, id: &str) -> Result<Value, Problem> {
    find(&account.sessions, "checkout.session", id)
}

fn expire_checkout(account: &mut Account, id: &str) -> Result<Value, Problem> {
    let status = find_checkout(account, id)?["status"].clone();
    if status != "open" {
        let message =
            format!("Only Checkout Sessions with a status of open can be expired, not {status}.");
        return Err(Problem::new(400, "invalid_request_error", message));
    }

    account.act(Action::Expire(id));
    find_checkout(account, id)
}

fn create_portal(
    account: &mut Account,
    params: &Params,
    page_url: PageUrl<'_>,
) -> Result<Value, Problem> {
    params.allow(&["customer", "return_url", "configuration", "locale"])?;
    let customer = known_customer(account, params)?;

    let id = account.new_id("bps");
    let url = page_url(&format!("portal/{id}"));
    let return_url = params.get("return_url");
    let session = objects::portal_session(&id, &url, customer, return_url, account.now);

    account.portals.push(session.clone());
    Ok(session)
}

fn known_customer<'p>(account: &Account, params: &'p Params) -> Result<&'p str, Problem> {
    let customer = params.required("customer")?;

    match account.has_customer(customer) {
        true => Ok(customer),
        false => Err(Problem::missing("customer", "customer", customer)),
    }
}

fn find(objects: &[Value], kind: &str, id: &str) -> Result<Value, Problem> {
    let found = objects.iter().find(|object| objects::id(object) == id);

    found
        .cloned()
        .ok_or_else(|| Problem::missing(kind, "id", id))
}

/// A page of a list, newest first.
fn list(
    account: &Account,
    objects: &[Value],
    url: &str,
    params: &Params,
    matches: impl Fn(&Value) -> bool,
) -> Result<Value, Problem> {
    let limit = params.limit()?;
    let customer = params.get("customer");
    if customer.is_some_and(|id| !account.has_deleted_customer(id)) {
        known_customer(account, params)?;
    }

    let mut found: Vec<Value> = objects
        .iter()
        .rev()
        .filter(|it| customer.is_none_or(|customer| it["customer"] == json!(customer)))
        .filter(|it| matches(it))
        .cloned()
        .collect();

    if let Some(after) = params.get("starting_after") {
        let at = found.iter().position(|it| objects::id(it) == after);
        found.drain(..at.map_or(found.len(), |at| at + 1));
    }

    let has_more = found.len() > limit;
    found.truncate(limit);
    Ok(objects::list(url, found, has_more))
}
