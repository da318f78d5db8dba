//! Asking Stripe about what no event told: for the cron.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::{Synced, sync, tell};
use pooled_postgres::sql_positional;

use crate::{app::App, http::error::Result};

/// Customers that one run asks about, so that it ends well within a function's time.
const AT_MOST: i64 = 200;
const AT_ONCE: usize = 8;
const DEADLINE: Duration = Duration::from_secs(8);

/// What one run of [`confirm_stale`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Customers that Stripe was asked about.
    pub asked: usize,
    /// Those whose plan was another one than Stripe's.
    pub healed: usize,
    /// Those that could not be confirmed; they are tried again in a quarter of an hour.
    pub failed: usize,
}

/// Asks Stripe about every customer whose time has come: not confirmed for a day, a grace period over, a last period
/// over, a checkout of which nothing was heard. One run asks about a bounded number, those first that wait longest; run
/// it again while `asked` is not zero. Safe in parallel: each customer is one run's for a quarter of an hour, so that
/// one that always fails keeps nobody else waiting.
pub async fn confirm_stale(app: &App) -> Result<Confirmed> {
    let now = app.now();
    let lease = now + time::Duration::minutes(15);
    let customers = app
        .db()?
        .old_all(&TAKE_DUE, &[&now, &lease, &AT_MOST])
        .await?;
    let asked = customers.len();
    let plans = stream::iter(customers)
        .map(async |customer| confirm(app, &customer).await)
        .buffer_unordered(AT_ONCE);
    let outcomes: Vec<Option<bool>> = plans.collect().await;
    let healed = outcomes
        .iter()
        .filter(|outcome| **outcome == Some(true))
        .count();
    let failed = outcomes.iter().filter(|outcome| outcome.is_none()).count();
    Ok(Confirmed {
        asked,
        healed,
        failed,
    })
}

/// Whether the plan had to change, if Stripe could be asked.
async fn confirm(app: &App, customer: &str) -> Option<bool> {
    match sync(app, customer, None, DEADLINE).await {
        Ok(Synced::Written(change)) => {
            let healed = change.plan != change.plan_before;
            if healed {
                let (from, to) = (change.plan_before.as_str(), change.plan.as_str());
                tracing::warn!(customer, user.id = %change.user, from, to, "no event told of a change of plan");
            }
            tell(app, change.mails).await;
            Some(healed)
        }
        Ok(Synced::Covered(_) | Synced::Repeated | Synced::Foreign) => Some(false),
        Ok(Synced::Missing) => {
            tracing::warn!(
                customer,
                "Stripe does not know this customer: is STRIPE_SECRET_KEY of the right account?"
            );
            None
        }
        Err(error) => {
            tracing::warn!(customer, cause = ?error, "Stripe could not be asked about a customer");
            None
        }
    }
}

sql_positional! {
    /// Takes those that are due, by a lease; another run at the same time takes others.
    write TAKE_DUE(TIMESTAMPTZ, TIMESTAMPTZ, INT8) -> String = "
        update stripe_customers set check_at = $2
        where id in (
          select id from stripe_customers where check_at <= $1 order by check_at limit $3 for update skip locked
        )
        returning id";
}
