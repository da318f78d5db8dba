//! Paying for Pro: the way to Stripe's own pages and back, and Stripe's events.
//!
//! Cards, invoices and cancellations happen at Stripe; what follows from them here is the business of `subscription`.

use axum::{Json, extract::State};
use http::HeaderMap;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};
use stripe::{
    CheckoutSession,
    webhook::{self, Event},
};

use crate::{
    app::App,
    billing::{self, Held, Synced},
    http::{
        error::{Error, Problem, Result},
        extract::Raw,
        serve::Background,
    },
    identity::{
        auth::User,
        rate_limit::{self, Limit, LimitSubject},
    },
    notify::alert::{self, Alert},
    spending::plan::Plan,
};

/// `/api/billing/*`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(checkout))
        .routes(routes!(portal))
        .routes(routes!(receive))
}

/// Stripe wants to be answered quickly, and so do we, within a second; what takes longer is asked again by the cron.
const WEBHOOK_DEADLINE: Duration = Duration::from_millis(800);
const CHECKOUT_DEADLINE: Duration = Duration::from_secs(8);
/// A page that is about to close is not worth being sent to again.
const PAGE_LIFE_LEFT_SECS: i64 = 30 * 60;

/// A page at Stripe.
#[derive(Debug, Serialize, ToSchema)]
struct Page {
    /// Where to send the browser.
    #[schema(example = "https://checkout.stripe.com/c/pay/cs_…")]
    url: String,
}

/// What an event came to.
#[derive(Debug, Serialize, ToSchema)]
struct Received {
    outcome: Outcome,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// Stripe was asked, and its answer is written.
    Written,
    /// The event had its effect before, or another one has had it.
    Repeated,
    /// Nothing here depends on it.
    Ignored,
}

/// Begin to pay for Pro: the page on which to do so. Asking again gives the same page while it is open.
#[utoipa::path(post, path = "/api/billing/checkout", tag = "billing", security(("bearer" = [])),
    responses((status = 200, body = Page), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
async fn checkout(
    State(app): State<App>,
    background: Background,
    user: User,
) -> Result<Json<Page>> {
    let email = email(&user)?;
    rate_limit::check(&app, &[(Limit::Billing, LimitSubject::User(user.id))]).await?;
    let Linked { customer, former } = app.db()?.old_one(&LINKED, &[&user.id]).await?;
    let customer = match customer {
        Some(customer) => customer,
        None => new_customer(&app, &user, email, former.as_deref()).await?,
    };
    // Before Stripe is asked what is paid for: whoever pays on that page from now on is seen to have paid.
    let latest = match app
        .stripe()?
        .with_deadline(CHECKOUT_DEADLINE)
        .latest_checkout(&customer)
        .await
    {
        Err(error) if error.customer_is_missing() => None,
        latest => latest?,
    };
    let mut synced = unpaid(&app, &background, &customer).await?;
    if matches!(synced, Synced::Foreign) {
        // The user has it, but what happens to it would not be known to be the user's.
        link(&app, &user, &customer, Some(&customer)).await?;
        synced = unpaid(&app, &background, &customer).await?;
    }
    let customer = match synced {
        Synced::Written(_) | Synced::Covered(_) | Synced::Repeated => customer,
        // Another key's customer. Where something is paid for, the key is what is wrong.
        Synced::Missing if user.profile.plan == Plan::Free => {
            new_customer(&app, &user, email, Some(&customer)).await?
        }
        Synced::Missing => {
            return Err(Error::Internal(
                "Stripe does not know a customer who pays".into(),
            ));
        }
        Synced::Foreign => {
            return Err(Error::Internal(
                "a customer that was just linked is nobody's".into(),
            ));
        }
    };
    billing::checkout_begins(&app, &customer).await?;
    Ok(Json(Page {
        url: checkout_page(&app, &background, user.id, &customer, latest).await?,
    }))
}

/// The page on which to change the card, see invoices and cancel.
#[utoipa::path(post, path = "/api/billing/portal", tag = "billing", security(("bearer" = [])),
    responses((status = 200, body = Page), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
async fn portal(State(app): State<App>, user: User) -> Result<Json<Page>> {
    email(&user)?;
    rate_limit::check(&app, &[(Limit::Billing, LimitSubject::User(user.id))]).await?;
    let Linked { customer, .. } = app.db()?.old_one(&LINKED, &[&user.id]).await?;
    let customer = customer.ok_or(NOTHING_TO_MANAGE)?;
    let (back, key) = (
        app.config().public_url.clone(),
        format!("portal-{}", app.new_id()),
    );
    let stripe = app.stripe()?.with_deadline(CHECKOUT_DEADLINE);
    Ok(Json(Page {
        url: stripe.create_portal(&customer, &back, &key).await?,
    }))
}

/// Stripe's events, signed. A repeated one, one that comes late and one that nobody knows are all well.
#[utoipa::path(post, path = "/api/billing/webhook", tag = "billing",
    params(("Stripe-Signature" = String, Header, description = "t=…,v1=…")),
    request_body(content = serde_json::Value, description = "The event, byte for byte as it was signed"),
    responses((status = 200, body = Received), (status = 400, body = Problem), (status = 500, body = Problem), (status = 503, body = Problem)))]
async fn receive(
    State(app): State<App>,
    background: Background,
    headers: HeaderMap,
    body: Result<Raw>,
) -> Result<Json<Received>> {
    let event = genuine(&app, &headers, body)?;
    let outcome = match Effect::of(&event.kind) {
        Effect::Subscription => confirm(&app, &background, &event).await?,
        Effect::Deletion => match event.customer() {
            Some(customer) if billing::forget(&app, customer, &event).await? => Outcome::Written,
            _ => Outcome::Ignored,
        },
        Effect::Alert if billing::record(&app, &event).await? => {
            background.spawn(async move { alert::operators(&app, alert(&event)).await });
            Outcome::Written
        }
        Effect::Alert => Outcome::Repeated,
        Effect::Nothing => {
            tracing::info!(
                event = event.id,
                kind = event.kind,
                "an event that nothing depends on"
            );
            Outcome::Ignored
        }
    };
    Ok(Json(Received { outcome }))
}

/// What a kind of event means here.
enum Effect {
    Subscription,
    Deletion,
    Alert,
    Nothing,
}

impl Effect {
    fn of(kind: &str) -> Self {
        let about = |what: &str| kind.starts_with(what);
        match kind {
            webhook::CUSTOMER_DELETED => Self::Deletion,
            "charge.refunded" | "charge.dispute.created" => Self::Alert,
            _ if about("customer.subscription.")
                || about("checkout.session.")
                || about("invoice.") =>
            {
                Self::Subscription
            }
            _ => Self::Nothing,
        }
    }
}

/// The event, if Stripe has just sent it. Whatever else comes is malformed to us, however it is.
fn genuine(app: &App, headers: &HeaderMap, body: Result<Raw>) -> Result<Event> {
    let secrets = app.config().stripe_webhook_secrets.clone()?;
    let malformed = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
    let Raw(body) = body.map_err(|error| malformed(&error))?;
    let signature = headers
        .get("stripe-signature")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    webhook::verify(&secrets, signature, &body, app.now()).map_err(|forged| malformed(&forged))?;
    serde_json::from_slice(&body)
        .map_err(|error| malformed(&format_args!("The body is no event: {error}.")))
}

async fn confirm(app: &App, background: &Background, event: &Event) -> Result<Outcome> {
    let Some(customer) = event.customer() else {
        tracing::info!(
            event = event.id,
            kind = event.kind,
            "an event of no customer"
        );
        return Ok(Outcome::Ignored);
    };
    let synced = billing::sync(app, customer, Some(event), WEBHOOK_DEADLINE).await;
    if synced.is_err() {
        // Stripe sends the event again, but later than the next run of the cron.
        let (app, customer) = (app.clone(), customer.to_owned());
        background.spawn(async move { billing::check_soon(&app, &customer).await });
    }
    match synced {
        Ok(Synced::Written(change)) => {
            let (app, mails) = (app.clone(), change.mails);
            background.spawn(async move { billing::tell(&app, mails).await });
            Ok(Outcome::Written)
        }
        Ok(Synced::Repeated | Synced::Covered(_)) => Ok(Outcome::Repeated),
        Ok(Synced::Foreign) => {
            tracing::info!(
                event = event.id,
                kind = event.kind,
                customer,
                "an event of nobody's customer"
            );
            Ok(Outcome::Ignored)
        }
        Ok(Synced::Missing) => Err(Error::Internal(
            "Stripe does not know the customer of its own event".into(),
        )),
        // Stripe tries again whatever the 5xx is; that it could not be asked is for our log.
        Err(Error::Unavailable { cause, .. }) => Err(Error::Internal(cause)),
        Err(error) => Err(error),
    }
}

/// What operators are told of money that goes back.
fn alert(event: &Event) -> Alert {
    let object = &event.data.object;
    let text = |field: &str| object[field].as_str().unwrap_or("?").to_owned();
    let money = |field: &str| money(object[field].as_i64().unwrap_or(0), &text("currency"));
    let (subject, words, charge) = if event.kind == "charge.refunded" {
        let words = format!(
            "{} of {} went back to {}.",
            money("amount_refunded"),
            money("amount"),
            text("customer")
        );
        ("A payment was refunded", words, text("id"))
    } else {
        let words = format!(
            "{} are disputed: {}. Answer before the deadline.",
            money("amount"),
            text("reason")
        );
        ("A payment is disputed", words, text("charge"))
    };
    let link = format!("https://dashboard.stripe.com/payments/{charge}");
    Alert {
        subject: subject.to_owned(),
        text: words,
        link: Some(("At Stripe".to_owned(), link)),
        key: format!("stripe/{}", event.id),
    }
}

/// An amount as people write it; Stripe counts in the smallest unit of a currency.
fn money(amount: i64, currency: &str) -> String {
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

/// The address of an account; a guest has none.
fn email(user: &User) -> Result<&str> {
    user.profile.email.as_deref().ok_or(SIGN_UP_FIRST)
}

/// Makes the user's customer, after one that was deleted or in place of one that Stripe does not know. Whoever asks at the
/// same time gets the same one.
async fn new_customer(app: &App, user: &User, email: &str, former: Option<&str>) -> Result<String> {
    let key = format!("customer-{}-{}", user.id, former.unwrap_or("first"));
    let stripe = app.stripe()?.with_deadline(CHECKOUT_DEADLINE);
    let made = stripe
        .create_customer(email, &user.id.to_string(), &key)
        .await?;
    link(app, user, &made.id, former).await
}

/// Links a customer to the user, and gives the one that is linked: the first to come decides.
async fn link(app: &App, user: &User, customer: &str, in_place_of: Option<&str>) -> Result<String> {
    Ok(app
        .db()?
        .old_one(
            &LINK_CUSTOMER,
            &[&user.id, &customer, &in_place_of, &app.now()],
        )
        .await?)
}

/// Asks Stripe about a customer who is about to pay: an event that is on its way would be paid twice.
async fn unpaid(app: &App, background: &Background, customer: &str) -> Result<Synced> {
    let synced = billing::sync(app, customer, None, CHECKOUT_DEADLINE).await?;
    match synced {
        Synced::Written(change) if change.after.iter().any(Held::is_live) => {
            let (app, mails) = (app.clone(), change.mails);
            background.spawn(async move { billing::tell(&app, mails).await });
            Err(ALREADY_SUBSCRIBED)
        }
        Synced::Covered(held) if held.iter().any(Held::is_live) => Err(ALREADY_SUBSCRIBED),
        other => Ok(other),
    }
}

/// The page that is open already, else a new one after that one is closed: with two of them open, both could be paid.
async fn checkout_page(
    app: &App,
    background: &Background,
    user: Uuid,
    customer: &str,
    latest: Option<CheckoutSession>,
) -> Result<String> {
    let (price, root) = (
        app.config().stripe_price_pro.clone()?,
        &app.config().public_url,
    );
    let stripe = app.stripe()?.with_deadline(CHECKOUT_DEADLINE);
    if let Some(open) = latest.as_ref().filter(|latest| latest.is_open()) {
        let lasts = open.expires_at > app.now().unix_timestamp() + PAGE_LIFE_LEFT_SECS;
        if let Some(url) = open
            .url
            .clone()
            .filter(|_| lasts && open.metadata.get("price") == Some(&price))
        {
            return Ok(url);
        }
        let closed = stripe.expire_checkout(&open.id).await?;
        if closed.is_open() {
            return Err(Error::Internal(
                "Stripe does not close a checkout that is to be followed by another".into(),
            ));
        }
        // Whoever came first has closed it, or the user has paid there a moment ago.
        if closed.is_complete() {
            unpaid(app, background, customer).await?;
        }
    }
    let user = user.to_string();
    let params = [
        ("mode", "subscription"),
        ("customer", customer),
        ("client_reference_id", &user),
        ("line_items[0][price]", &price),
        ("line_items[0][quantity]", "1"),
        ("allow_promotion_codes", "true"),
        ("subscription_data[metadata][user_id]", &user),
        ("metadata[price]", &price),
        (
            "success_url",
            &format!("{root}/billing/success.html?session_id={{CHECKOUT_SESSION_ID}}"),
        ),
        ("cancel_url", &format!("{root}/billing/cancel.html")),
    ];
    let opened = stripe
        .create_checkout(&params, latest.as_ref().map(|latest| latest.id.as_str()))
        .await?;
    opened
        .url
        .ok_or_else(|| Error::Internal("Stripe opened a checkout without a page".into()))
}

const SIGN_UP_FIRST: Error = Error::Forbidden {
    code: "sign_up_first",
    detail: "Sign up first: a subscription belongs to an account. Your discussions stay.",
};
const ALREADY_SUBSCRIBED: Error = Error::Conflict {
    code: "already_subscribed",
    detail: "You have a subscription; change or end it under “Manage subscription”.",
};
const NOTHING_TO_MANAGE: Error = Error::Conflict {
    code: "not_subscribed",
    detail: "You have no subscription to manage.",
};

sql_positional! {
    read LINKED(UUID) -> Linked = "
        select stripe_customer_id as customer, former_stripe_customer_id as former from users where id = $1";
}

row! {
    struct Linked {
        customer: Option<String>,
        former: Option<String>,
    }
}

sql_positional! {
    /// The first to come decides which customer is the user's; everybody gets that one.
    write LINK_CUSTOMER(UUID, TEXT, TEXT, TIMESTAMPTZ) -> String = "
        with linked as (
          update users
          set stripe_customer_id =
            case when stripe_customer_id is null or stripe_customer_id = $3 then $2 else stripe_customer_id end
          where id = $1
          returning id, stripe_customer_id
        ), kept as (
          insert into stripe_customers (id, user_id, created_at)
          select stripe_customer_id, id, $4 from linked
          on conflict (user_id) do update set id = excluded.id
        )
        select coalesce(stripe_customer_id, $2) as id from linked";
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
            assert_eq!(money(amount, currency), expected);
        }
    }
}
