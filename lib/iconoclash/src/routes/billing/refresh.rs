//! Asking Stripe for the caller's plan, because an event may be late or lost.

use axum::extract::State;

use super::{STRIPE_DEADLINE, customer_of};
use crate::{
    app::App,
    billing::{self, Synced},
    http::{
        error::{Problem, Result},
        serve::Background,
    },
    identity::{
        auth::User,
        rate_limit::{self, Limit, LimitSubject},
    },
    spending::current_session::CurrentSession,
};

/// Ask Stripe for the caller's subscriptions once, and show the plan that they grant. For the page after paying.
#[utoipa::path(
    post,
    path = "/api/billing/refresh",
    tag = "billing",
    security(("bearer" = [])),
    responses(
        (status = 200, body = CurrentSession),
        (status = 401, body = Problem),
        (status = 429, body = Problem),
        (status = 503, body = Problem),
    ),
)]
pub(super) async fn refresh(
    State(app): State<App>,
    background: Background,
    user: User,
) -> Result<CurrentSession> {
    rate_limit::check(&app, &[(Limit::Billing, LimitSubject::User(user.id))]).await?;

    if let Some(customer) = customer_of(&app, user.id).await?.current {
        sync(&app, &background, &customer).await?;
    }
    CurrentSession::load(&app, user.session).await
}

async fn sync(app: &App, background: &Background, customer: &str) -> Result<()> {
    match billing::sync(app, customer, None, STRIPE_DEADLINE).await? {
        Synced::Written(change) => {
            let app = app.clone();
            background.spawn(async move { billing::send_mails(&app, change.mails).await });
        }
        Synced::Superseded(_) | Synced::Repeated | Synced::Deleted => {}
        // What is stored stays, and the answer shows it.
        unknown @ (Synced::NotOurs | Synced::NotInStripe) => {
            tracing::warn!(customer, ?unknown, "could not refresh the customer");
        }
    }
    Ok(())
}
