//! The pages: a checkout, a portal, and an overview of everything, on which a person plays customer, bank and time.

use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::Value;
use time::OffsetDateTime;

use super::object::{self, CENTS};
use super::params::Params;
use super::world::{World, is_ending, period_end};
use super::{Action, Shared};
use crate::html::{self, escaped};
use crate::wire::{self, Body};

/// Answers `/local/stripe/{path}`.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    form: &Params,
) -> Response<Body> {
    let segments: Vec<&str> = path.split('/').collect();
    let page = match (method.as_str(), segments.as_slice()) {
        ("POST", ["act"]) => {
            let (name, target) = (
                form.get("action").unwrap_or_default(),
                form.get("target").unwrap_or_default(),
            );
            match Action::of(name, target) {
                Ok(action) => shared.act(action),
                Err(unknown) => {
                    return html::page(
                        StatusCode::BAD_REQUEST,
                        "Stripe, locally",
                        &unknown.to_string(),
                    );
                }
            }
            return see_other(form.get("back").unwrap_or("/local/stripe"));
        }
        ("POST", ["checkout", id, "pay"]) => {
            let leads_to = shared.with_world(|world| success_url(world, id));
            shared.act(Action::Pay(id));
            return see_other(leads_to.as_deref().unwrap_or("/local/stripe"));
        }
        ("GET", ["checkout", id]) => shared.with_world(|world| checkout(world, id)),
        ("GET", ["portal", id]) => shared.with_world(|world| portal(world, id)),
        ("GET", [""]) => Some(overview(shared)),
        _ => None,
    };
    match page {
        Some(body) => html::page(StatusCode::OK, "Stripe, locally", &body),
        None => html::page(
            StatusCode::NOT_FOUND,
            "Stripe, locally",
            "<main class=card><h1>Nothing here</h1><p><a href=/local/stripe>Everything that this stand-in knows</a></main>",
        ),
    }
}

fn see_other(url: &str) -> Response<Body> {
    let mut response = wire::answer(StatusCode::SEE_OTHER, "text/plain", wire::full(""));
    // An address with a line break in it leads nowhere.
    let to = HeaderValue::from_str(url).unwrap_or(HeaderValue::from_static("/local/stripe"));
    response.headers_mut().insert(header::LOCATION, to);
    response
}

fn success_url(world: &World, session: &str) -> Option<String> {
    let session = world.sessions.iter().find(|it| object::id(it) == session)?;
    Some(
        session["success_url"]
            .as_str()?
            .replace("{CHECKOUT_SESSION_ID}", object::id(session)),
    )
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn dollars(cents: i64) -> String {
    format!("${}.{:02}", cents / 100, cents % 100)
}

fn day(epoch_secs: i64) -> String {
    OffsetDateTime::from_unix_timestamp(epoch_secs)
        .map(|at| at.date().to_string())
        .unwrap_or_default()
}

fn email_of(world: &World, customer: &Value) -> String {
    let found = world.customers.iter().find(|it| it["id"] == *customer);
    found.map(|it| text(&it["email"])).unwrap_or_default()
}

fn checkout(world: &World, id: &str) -> Option<String> {
    let session = world.sessions.iter().find(|it| object::id(it) == id)?;
    let (price, email) = (dollars(CENTS), email_of(world, &session["customer"]));
    let action = match session["status"].as_str() {
        Some("open") => format!(
            "<form method=post action='/local/stripe/checkout/{id}/pay'>\
             <label>Card<input value='4242 4242 4242 4242' readonly></label>\
             <button class=main autofocus>Subscribe for {price} a month</button></form>\
             <p class=quiet><a href='{}'>Back without paying</a></p>",
            text(&session["cancel_url"])
        ),
        Some("complete") => "<p class=note>This checkout is paid.</p>".to_owned(),
        _ => "<p class=note>This checkout is closed. Begin a new one.</p>".to_owned(),
    };
    let codes = if session["allow_promotion_codes"] == true {
        "<p class=quiet>Promotion codes are allowed.</p>"
    } else {
        ""
    };
    Some(format!(
        "<main class=card><p class=brand>Iconoclash</p><h1>Subscribe to Pro</h1>\
         <p class=price>{price}<span> a month</span></p><dl><dt>Account<dd>{email}<dt>Renews<dd>every month, until \
         cancelled</dl>{action}{codes}<p class=fine>A stand-in for Stripe: no card is charged.</p></main>"
    ))
}

fn portal(world: &World, id: &str) -> Option<String> {
    let portal = world.portals.iter().find(|it| object::id(it) == id)?;
    let theirs = world
        .subscriptions
        .iter()
        .rev()
        .filter(|it| it["customer"] == portal["customer"]);
    let rows: String = theirs
        .map(|it| subscription(it, &format!("/local/stripe/portal/{id}")))
        .collect();
    let rows = if rows.is_empty() {
        "<p class=note>There is no subscription.</p>".to_owned()
    } else {
        rows
    };
    Some(format!(
        "<main class=card><p class=brand>Iconoclash</p><h1>Your subscription</h1><p class=quiet>{}</p>{rows}\
         <p class=quiet><a href='{}'>Back to Iconoclash</a></p>\
         <p class=fine>A stand-in for Stripe: no card is charged.</p></main>",
        email_of(world, &portal["customer"]),
        text(&portal["return_url"]),
    ))
}

/// A subscription, and what can happen to it as it is.
fn subscription(it: &Value, back: &str) -> String {
    let (id, status, ends) = (
        object::id(it),
        it["status"].as_str().unwrap_or_default(),
        day(period_end(it)),
    );
    let ending = is_ending(it);
    let when = match status {
        "canceled" => "ended".to_owned(),
        _ if ending => format!("ends on {ends}"),
        _ => format!("renews on {ends}"),
    };
    let theirs: &[(&str, &str)] = match status {
        "canceled" => &[],
        "paused" => &[("resume", "Resume"), ("cancel_now", "Cancel now")],
        _ if ending => &[
            ("resume", "Keep it after all"),
            ("cancel_now", "Cancel now"),
        ],
        _ => &[
            ("cancel_at_period_end", "Cancel at the period’s end"),
            ("cancel_now", "Cancel now"),
        ],
    };
    let fates: &[(&str, &str)] = match status {
        "canceled" => &[],
        "past_due" | "unpaid" => &[
            ("recover", "The payment succeeds"),
            ("give_up", "Stripe gives up"),
        ],
        "paused" => &[],
        _ => &[
            ("fail_payment", "A payment fails"),
            ("end_period", "The period ends now"),
            ("pause", "Pause"),
        ],
    };
    let buttons = |actions: &[(&str, &str)]| -> String {
        let button = |(action, label): &(&str, &str)| {
            format!(
                "<form method=post action=/local/stripe/act><input type=hidden name=action value={action}>\
                 <input type=hidden name=target value='{id}'><input type=hidden name=back value='{back}'>\
                 <button>{label}</button></form>"
            )
        };
        actions.iter().map(button).collect()
    };
    let fates = if fates.is_empty() {
        String::new()
    } else {
        format!(
            "<h3>Play the bank and the clock</h3><div class=row>{}</div>",
            buttons(fates)
        )
    };
    format!(
        "<section class='{status}'><p><strong>Pro</strong> <span class=tag>{}</span></p>\
         <p class=quiet>{} a month, {when}</p><div class=row>{}</div>{fates}</section>",
        status.replace('_', " "),
        dollars(CENTS),
        buttons(theirs),
    )
}

fn overview(shared: &Shared) -> String {
    let sent = shared.deliveries.recent();
    let events: String = sent
        .iter()
        .map(|it| {
            let (kind, id) = (escaped(&it.event.kind), escaped(&it.event.id));
            format!(
                "<tr><td>{kind}<td class=quiet>{id}<td>{}",
                escaped(&it.outcome)
            )
        })
        .collect();
    let events = if events.is_empty() {
        "<tr><td class=quiet>None yet.".to_owned()
    } else {
        events
    };
    let customers = shared.with_world(|world| {
        let customers = world
            .customers
            .iter()
            .rev()
            .map(|customer| one_customer(world, customer));
        customers.collect::<String>()
    });
    let customers = if customers.is_empty() {
        "<p class=note>Nobody has begun a checkout yet: <code>POST /api/billing/checkout</code>.</p>".to_owned()
    } else {
        customers
    };
    format!(
        "<main class='card wide'><h1>Stripe, locally</h1>\
         <p class=quiet>A stand-in: customers, their subscriptions, and the events that were sent about them.</p>\
         {customers}<h2>Events, newest first</h2><table>{events}</table></main>"
    )
}

fn one_customer(world: &World, customer: &Value) -> String {
    let id = object::id(customer);
    let theirs = world
        .subscriptions
        .iter()
        .rev()
        .filter(|it| it["customer"] == id);
    let rows: String = theirs.map(|it| subscription(it, "/local/stripe")).collect();
    let open = world
        .sessions
        .iter()
        .rev()
        .filter(|it| it["customer"] == id && it["status"] == "open");
    let links: String = open
        .map(|it| {
            format!(
                "<p><a href='/local/stripe/checkout/{}'>An open checkout</a></p>",
                escaped(object::id(it))
            )
        })
        .collect();
    let gifts = [
        ("subscribe", "Give a subscription"),
        ("refund", "Refund a payment"),
        ("dispute", "Dispute a payment"),
        ("delete", "Delete the customer"),
    ];
    let gifts: String = gifts
        .iter()
        .map(|(action, label)| {
            format!(
                "<form method=post action=/local/stripe/act><input type=hidden name=action value={action}>\
                 <input type=hidden name=target value='{id}'><button>{label}</button></form>"
            )
        })
        .collect();
    format!(
        "<h2>{} <span class=quiet>{id}</span></h2>{links}{rows}<div class=row>{gifts}</div>",
        text(&customer["email"])
    )
}
