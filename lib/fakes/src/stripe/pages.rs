//! Pages on which a developer plays the customer, the bank and time: a checkout, a portal and an
//! overview of the account.

use http::{HeaderValue, Method, Response, StatusCode, header};
use maud::{Markup, html};
use serde_json::Value;
use time::OffsetDateTime;

use super::account::{Account, is_ending, period_end};
use super::objects::{self, MONTHLY_CENTS};
use super::params::Params;
use super::{Action, Shared};
use crate::faulty_http::{self, Body};
use crate::html;

const TITLE: &str = "Stripe, locally";
const HOME: &str = "/local/stripe";

/// An action and the label of its button.
type Button = (&'static str, &'static str);

/// Answers `/local/stripe/{path}`.
pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    form: &Params,
) -> Response<Body> {
    let segments: Vec<&str> = path.split('/').collect();
    let page = match (method.as_str(), segments.as_slice()) {
        ("POST", ["act"]) => return act(shared, form),
        ("POST", ["checkout", id, "pay"]) => return pay(shared, id),
        ("GET", ["checkout", id]) => shared.with_account(|account| checkout(account, id)),
        ("GET", ["portal", id]) => shared.with_account(|account| portal(account, id)),
        ("GET", [""]) => Some(overview(shared)),
        _ => None,
    };

    match page {
        Some(body) => html::page(StatusCode::OK, TITLE, &body),
        None => html::page(StatusCode::NOT_FOUND, TITLE, &not_found()),
    }
}

fn act(shared: &Shared, form: &Params) -> Response<Body> {
    let name = form.get("action").unwrap_or_default();
    let target = form.get("target").unwrap_or_default();

    match Action::from_name(name, target) {
        Ok(action) => shared.act(action),
        Err(unknown) => {
            let body = html! { (unknown) };
            return html::page(StatusCode::BAD_REQUEST, TITLE, &body);
        }
    }

    redirect(form.get("back").unwrap_or(HOME))
}

fn pay(shared: &Shared, session: &str) -> Response<Body> {
    let next = shared.with_account(|account| success_url(account, session));
    shared.act(Action::Pay(session));

    redirect(next.as_deref().unwrap_or(HOME))
}

fn success_url(account: &Account, session: &str) -> Option<String> {
    let url = account.session(session)?["success_url"].as_str()?;

    Some(url.replace("{CHECKOUT_SESSION_ID}", session))
}

fn redirect(url: &str) -> Response<Body> {
    // A URL with a line break is not a header's value.
    let to = HeaderValue::from_str(url).unwrap_or(HeaderValue::from_static(HOME));

    let mut response =
        faulty_http::answer(StatusCode::SEE_OTHER, "text/plain", faulty_http::full(""));
    response.headers_mut().insert(header::LOCATION, to);
    response
}

fn not_found() -> Markup {
    html! {
        main.card {
            h1 { "Not found" }
            p { a href=(HOME) { "All customers and events" } }
        }
    }
}

fn checkout(account: &Account, id: &str) -> Option<Markup> {
    let session = account.session(id)?;
    let price = dollars(MONTHLY_CENTS);

    Some(html! {
        main.card {
            p.brand { "Iconoclash" }
            h1 { "Subscribe to Pro" }
            p.price { (price) span { " a month" } }
            dl {
                dt { "Account" }
                dd { (email_of(account, &session["customer"])) }
                dt { "Renews" }
                dd { "every month, until cancelled" }
            }
            @match session["status"].as_str() {
                Some("open") => {
                    form method="post" action={ (HOME) "/checkout/" (id) "/pay" } {
                        label { "Card" input value="4242 4242 4242 4242" readonly; }
                        button.main autofocus { "Subscribe for " (price) " a month" }
                    }
                    p.quiet { a href=(text(&session["cancel_url"])) { "Back without paying" } }
                }
                Some("complete") => p.note { "This checkout is paid." }
                _ => p.note { "This checkout is closed. Start a new one." }
            }
            @if session["allow_promotion_codes"] == true {
                p.quiet { "Promotion codes are allowed." }
            }
            p.fine { "A fake Stripe: no card is charged." }
        }
    })
}

fn portal(account: &Account, id: &str) -> Option<Markup> {
    let portal = account
        .portals
        .iter()
        .find(|portal| objects::id(portal) == id)?;
    let back = format!("{HOME}/portal/{id}");
    let mut subscriptions = account
        .subscriptions_of(text(&portal["customer"]))
        .peekable();

    Some(html! {
        main.card {
            p.brand { "Iconoclash" }
            h1 { "Your subscription" }
            p.quiet { (email_of(account, &portal["customer"])) }
            @if subscriptions.peek().is_none() {
                p.note { "There is no subscription." }
            }
            @for it in subscriptions {
                (subscription(it, &back))
            }
            p.quiet { a href=(text(&portal["return_url"])) { "Back to Iconoclash" } }
            p.fine { "A fake Stripe: no card is charged." }
        }
    })
}

/// A subscription and the actions that its state allows.
fn subscription(subscription: &Value, back: &str) -> Markup {
    let id = objects::id(subscription);
    let status = text(&subscription["status"]);
    let ending = is_ending(subscription);
    let end = day(period_end(subscription));
    let bank_actions = bank_actions(status);

    html! {
        section class=(status) {
            p { strong { "Pro" } " " span.tag { (status.replace('_', " ")) } }
            p.quiet {
                (dollars(MONTHLY_CENTS)) " a month, "
                @if status == "canceled" { "ended" }
                @else if ending { "ends on " (end) }
                @else { "renews on " (end) }
            }
            (buttons(customer_actions(status, ending), id, back))
            @if !bank_actions.is_empty() {
                h3 { "Play the bank and the clock" }
                (buttons(bank_actions, id, back))
            }
        }
    }
}

fn customer_actions(status: &str, ending: bool) -> &'static [Button] {
    match status {
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
    }
}

fn bank_actions(status: &str) -> &'static [Button] {
    match status {
        "canceled" | "paused" => &[],
        "past_due" | "unpaid" => &[
            ("recover", "The payment succeeds"),
            ("give_up", "Stripe gives up"),
        ],
        _ => &[
            ("fail_payment", "A payment fails"),
            ("end_period", "The period ends now"),
            ("pause", "Pause"),
        ],
    }
}

fn buttons(actions: &[Button], target: &str, back: &str) -> Markup {
    html! {
        div.row {
            @for (action, label) in actions {
                form method="post" action={ (HOME) "/act" } {
                    input type="hidden" name="action" value=(action);
                    input type="hidden" name="target" value=(target);
                    input type="hidden" name="back" value=(back);
                    button { (label) }
                }
            }
        }
    }
}

fn overview(shared: &Shared) -> Markup {
    let attempts = shared.deliveries.attempts();

    html! {
        main.card.wide {
            h1 { (TITLE) }
            p.quiet { "A fake: customers, their subscriptions, and the events about them." }
            (shared.with_account(|account| customers(account)))
            h2 { "Events, newest first" }
            table {
                @if attempts.is_empty() {
                    tr { td.quiet { "None yet." } }
                }
                @for attempt in &attempts {
                    tr {
                        td { (attempt.event.kind) }
                        td.quiet { (attempt.event.id) }
                        td { (attempt.outcome) }
                    }
                }
            }
        }
    }
}

fn customers(account: &Account) -> Markup {
    html! {
        @if account.customers.is_empty() {
            p.note {
                "No checkout was started yet: "
                code { "POST /api/billing/checkout" }
                "."
            }
        }
        @for it in account.customers.iter().rev() {
            (customer(account, it))
        }
    }
}

fn customer(account: &Account, customer: &Value) -> Markup {
    const ACTIONS: &[Button] = &[
        ("subscribe", "Give a subscription"),
        ("refund", "Refund a payment"),
        ("dispute", "Dispute a payment"),
        ("delete", "Delete the customer"),
    ];

    let id = objects::id(customer);
    let open_checkouts = account
        .sessions
        .iter()
        .rev()
        .filter(|session| session["customer"] == id && session["status"] == "open");

    html! {
        h2 { (text(&customer["email"])) " " span.quiet { (id) } }
        @for session in open_checkouts {
            p { a href={ (HOME) "/checkout/" (objects::id(session)) } { "An open checkout" } }
        }
        @for it in account.subscriptions_of(id) {
            (subscription(it, HOME))
        }
        (buttons(ACTIONS, id, HOME))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn dollars(cents: i64) -> String {
    format!("${}.{:02}", cents / 100, cents % 100)
}

fn day(epoch_secs: i64) -> String {
    OffsetDateTime::from_unix_timestamp(epoch_secs)
        .map(|at| at.date().to_string())
        .unwrap_or_default()
}

fn email_of<'a>(account: &'a Account, customer: &Value) -> &'a str {
    let found = account.customers.iter().find(|it| it["id"] == *customer);

    found.map_or("", |customer| text(&customer["email"]))
}
