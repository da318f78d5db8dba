//! Receiving Stripe's events.

use std::{fmt::Display, time::Duration};

use axum::{Json, extract::State};
use http::HeaderMap;
use serde::Serialize;
use serde_json::Value;
use stripe::webhook::{self, Event};
use utoipa::ToSchema;

use crate::{
    app::App,
    billing::{self, Synced},
    http::{
        error::{Error, Problem, Result},
        extract::Raw,
        serve::Background,
    },
    notify::alert::{self, Alert},
};

/// Deadline of the calls to Stripe for an event. Stripe expects a quick answer; the cron retries what takes longer.
const STRIPE_DEADLINE: Duration = Duration::from_millis(800);

/// The answer to an event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Received {
    outcome: EventOutcome,
}

/// What an event changed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EventOutcome {
    /// The change is stored.
    Written,
    /// The change was stored before.
    Repeated,
    /// The event concerns nothing that is stored here.
    Ignored,
}

/// Receive a signed event from Stripe. Repeated, late and unknown events are accepted.
#[utoipa::path(
    post,
    path = "/api/billing/webhook",
    tag = "billing",
    params(("Stripe-Signature" = String, Header, description = "t=…,v1=…")),
    request_body(
        content = serde_json::Value,
        description = "The event, byte for byte as it was signed"
    ),
    responses(
        (status = 200, body = Received),
        (status = 400, body = Problem),
        (status = 500, body = Problem),
        (status = 503, body = Problem),
    ),
)]
pub(super) async fn receive(
    State(app): State<App>,
    background: Background,
    headers: HeaderMap,
    body: Result<Raw>,
) -> Result<Json<Received>> {
    let event = verify_event(&app, &headers, body)?;

    let outcome = match Effect::from_kind(&event.kind) {
        Effect::Sync => sync_customer(&app, &background, &event).await?,
        Effect::DeleteCustomer => delete_customer(&app, &event).await?,
        Effect::Alert => alert_operators(&app, &background, event).await?,
        Effect::Ignored => {
            log_ignored(&event, "events of this kind change nothing");
            EventOutcome::Ignored
        }
    };
    Ok(Json(Received { outcome }))
}

/// How a kind of event is handled.
enum Effect {
    Sync,
    DeleteCustomer,
    Alert,
    Ignored,
}

impl Effect {
    fn from_kind(kind: &str) -> Self {
        const SYNCED: [&str; 3] = ["customer.subscription.", "checkout.session.", "invoice."];

        match kind {
            webhook::CUSTOMER_DELETED => Self::DeleteCustomer,
            "charge.refunded" | "charge.dispute.created" => Self::Alert,
            _ if SYNCED.iter().any(|prefix| kind.starts_with(prefix)) => Self::Sync,
            _ => Self::Ignored,
        }
    }
}

/// The event, if Stripe signed it within the last minutes. Any other request is answered with 400.
fn verify_event(app: &App, headers: &HeaderMap, body: Result<Raw>) -> Result<Event> {
    let secrets = app.config().stripe_webhook_secrets()?;
    let bad_request = |reason: &dyn Display| Error::BadRequest(reason.to_string());

    let Raw(body) = body.map_err(|error| bad_request(&error))?;
    let signature = headers
        .get("stripe-signature")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    webhook::verify(secrets, signature, &body, app.now()).map_err(|error| bad_request(&error))?;

    serde_json::from_slice(&body).map_err(|_| bad_request(&"The body is not a Stripe event."))
}

async fn sync_customer(app: &App, background: &Background, event: &Event) -> Result<EventOutcome> {
    let Some(customer) = event.customer() else {
        log_ignored(event, "it has no customer");
        return Ok(EventOutcome::Ignored);
    };

    let synced = billing::sync(app, customer, Some(event), STRIPE_DEADLINE).await;
    if synced.is_err() {
        // Stripe sends the event again, but later than the next run of the cron.
        let app = app.clone();
        let customer = customer.to_owned();
        background.spawn(async move { billing::schedule_refresh(&app, &customer).await });
    }

    match synced {
        Ok(Synced::Written(change)) => {
            let app = app.clone();
            background.spawn(async move { billing::send_mails(&app, change.mails).await });
            Ok(EventOutcome::Written)
        }
        Ok(Synced::Deleted) => Ok(EventOutcome::Written),
        Ok(Synced::Repeated | Synced::Superseded(_)) => Ok(EventOutcome::Repeated),
        Ok(Synced::NotOurs) => {
            log_ignored(event, "its customer belongs to no user");
            Ok(EventOutcome::Ignored)
        }
        Ok(Synced::NotInStripe) => Err(Error::internal(
            "Stripe does not know the customer of its own event",
        )),
        // Stripe retries after any 5xx. A 500 logs that Stripe could not be reached as an error of ours.
        Err(Error::Unavailable { cause, .. }) => Err(Error::Internal(cause)),
        Err(error) => Err(error),
    }
}

async fn delete_customer(app: &App, event: &Event) -> Result<EventOutcome> {
    let Some(customer) = event.customer() else {
        return Ok(EventOutcome::Ignored);
    };

    if billing::customer_deleted(app, customer, Some(event)).await? {
        Ok(EventOutcome::Written)
    } else {
        Ok(EventOutcome::Ignored)
    }
}

async fn alert_operators(app: &App, background: &Background, event: Event) -> Result<EventOutcome> {
    if !billing::record_event(app, &event).await? {
        return Ok(EventOutcome::Repeated);
    }

    let app = app.clone();
    background.spawn(async move { alert::send(&app, refund_or_dispute_alert(&event)).await });
    Ok(EventOutcome::Written)
}

fn log_ignored(event: &Event, reason: &str) {
    tracing::info!(
        event = event.id,
        kind = event.kind,
        customer = event.customer(),
        reason,
        "event ignored"
    );
}

/// The alert about money that goes back to a customer.
fn refund_or_dispute_alert(event: &Event) -> Alert {
    let charge = ChargeEvent(&event.data.object);
    let is_refund = event.kind == "charge.refunded";

    let subject = if is_refund {
        "A payment was refunded"
    } else {
        "A payment is disputed"
    };
    let text = if is_refund {
        format!(
            "{} of {} was refunded to {}.",
            charge.money("amount_refunded"),
            charge.money("amount"),
            charge.text("customer")
        )
    } else {
        format!(
            "A payment of {} is disputed. Reason: {}. Respond before the deadline.",
            charge.money("amount"),
            charge.text("reason")
        )
    };
    let charge_id = charge.text(if is_refund { "id" } else { "charge" });
    let link = format!("https://dashboard.stripe.com/payments/{charge_id}");

    Alert {
        subject: subject.to_owned(),
        text,
        link: Some(("View in Stripe".to_owned(), link)),
        key: format!("stripe/{}", event.id),
    }
}

/// A charge, or a dispute of one, whose fields may be missing.
struct ChargeEvent<'a>(&'a Value);

impl ChargeEvent<'_> {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or("?")
    }

    fn money(&self, field: &str) -> String {
        let amount = self.0[field].as_i64().unwrap_or(0);
        format_money(amount, self.text("currency"))
    }
}

/// An amount with its currency. Stripe counts in the currency's smallest unit.
fn format_money(amount: i64, currency: &str) -> String {
    let currency = currency.to_uppercase();
    match currency.as_str() {
        "BIF" | "CLP" | "DJF" | "GNF" | "JPY" | "KMF" | "KRW" | "MGA" | "PYG" | "RWF" | "UGX"
        | "VND" | "VUV" | "XAF" | "XOF" | "XPF" => format!("{amount} {currency}"),
        "BHD" | "JOD" | "KWD" | "OMR" | "TND" => {
            format!("{}.{:03} {currency}", amount / 1000, amount % 1000)
        }
        _ => format!("{}.{:02} {currency}", amount / 100, amount % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_as_many_decimals_as_its_currency() {
        for (amount, currency, expected) in [
            (1_205, "usd", "12.05 USD"),
            (7, "eur", "0.07 EUR"),
            (1_205, "jpy", "1205 JPY"),
            (12_000, "krw", "12000 KRW"),
            (1_205, "kwd", "1.205 KWD"),
            (1_205, "?", "12.05 ?"),
        ] {
            assert_eq!(format_money(amount, currency), expected);
        }
    }
}
