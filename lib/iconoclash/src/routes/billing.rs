//! Paying for Pro: Stripe's checkout and portal pages, Stripe's webhook, and asking Stripe where an event is missing.
//!
//! Cards, invoices and cancellations are handled at Stripe. [`crate::billing`] keeps the local copy of subscriptions.

mod checkout;
mod refresh;
mod webhook;

use std::time::Duration;

use axum::{Json, extract::State};
use pooled_postgres::{row, sql};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    app::App,
    billing,
    http::error::{Error, Problem, Result},
    identity::{
        auth::User,
        rate_limit::{self, Limit, LimitSubject},
    },
};

/// `/api/billing/*`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(checkout::checkout))
        .routes(routes!(portal))
        .routes(routes!(refresh::refresh))
        .routes(routes!(webhook::receive))
}

/// Deadline of a call to Stripe while a user waits for a page.
const STRIPE_DEADLINE: Duration = Duration::from_secs(8);

/// A page at Stripe.
#[derive(Debug, Serialize, ToSchema)]
struct StripePage {
    /// The address to open in the browser.
    #[schema(example = "https://checkout.stripe.com/c/pay/cs_…")]
    url: String,
}

/// Open the page on which to change the card, see invoices and cancel.
#[utoipa::path(
    post,
    path = "/api/billing/portal",
    tag = "billing",
    security(("bearer" = [])),
    responses(
        (status = 200, body = StripePage),
        (status = 401, body = Problem),
        (status = 403, body = Problem),
        (status = 409, body = Problem),
        (status = 429, body = Problem),
        (status = 503, body = Problem),
    ),
)]
async fn portal(State(app): State<App>, user: User) -> Result<Json<StripePage>> {
    email(&user)?;
    rate_limit::check(&app, &[(Limit::Billing, LimitSubject::User(user.id))]).await?;

    let customer = customer_of(&app, user.id).await?.current;
    let customer = customer.ok_or(NOT_SUBSCRIBED)?;

    let return_url = &app.config().public_url;
    let key = format!("portal-{}", app.new_id());
    let stripe = app.stripe()?.with_deadline(STRIPE_DEADLINE);

    match stripe.create_portal(&customer, return_url, &key).await {
        Err(error) if error.customer_is_missing() => {
            let deleted = billing::remove_if_deleted(&app, &customer, None, STRIPE_DEADLINE);
            Err(if deleted.await? {
                NOT_SUBSCRIBED
            } else {
                error.into()
            })
        }
        opened => Ok(Json(StripePage { url: opened? })),
    }
}

/// The account's address. A guest has none.
fn email(user: &User) -> Result<&str> {
    user.profile.email.as_deref().ok_or(SIGN_UP_FIRST)
}

async fn customer_of(app: &App, user: Uuid) -> Result<CustomerIds> {
    Ok(app.db()?.one(CustomerOfUser { user }).await?)
}

const SIGN_UP_FIRST: Error = Error::Forbidden {
    code: "sign_up_first",
    detail: "Create an account first: a subscription belongs to an account. \
             Your discussions are kept.",
};
const NOT_SUBSCRIBED: Error = Error::Conflict {
    code: "not_subscribed",
    detail: "You have no subscription to manage.",
};

sql! {
    read CustomerOfUser { user: Uuid } -> CustomerIds = "
        select stripe_customer_id as current, former_stripe_customer_id as former
        from users
        where id = :user";
}

row! {
    /// A user's customers at Stripe.
    struct CustomerIds {
        current: Option<String>,
        /// The last one that was deleted at Stripe.
        former: Option<String>,
    }
}
