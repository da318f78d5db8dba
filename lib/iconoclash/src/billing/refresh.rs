//! Refreshes customers whose events may have been lost, for the cron.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use pooled_postgres::sql;
use time::OffsetDateTime;

use super::{Synced, send_mails, sync};
use crate::{app::App, http::error::Result};

/// Customers per run, so that a run ends well within a function's time limit.
const MAX_CUSTOMERS: i64 = 200;
const CONCURRENCY: usize = 8;
const DEADLINE: Duration = Duration::from_secs(8);
/// How long a customer is reserved for one run. A customer that fails is retried after this time.
const LEASE: time::Duration = time::Duration::minutes(15);

/// Counts of a run of [`refresh_due`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefreshReport {
    /// Customers that were due.
    pub checked: usize,
    /// Customers whose plan was wrong and is corrected.
    pub healed: usize,
    /// Customers that could not be refreshed and will be retried.
    pub failed: usize,
}

enum Refreshed {
    Unchanged,
    Healed,
    Failed,
}

/// Syncs the customers that are due: not confirmed for a day, at the end of a grace period or of a last paid period, or
/// with a checkout whose result is unknown.
///
/// A run syncs a bounded number of customers, the longest overdue first; call it again while `checked` is not zero.
/// Runs may overlap: each customer is leased to one run, so one that always fails does not delay the others.
pub async fn refresh_due(app: &App) -> Result<RefreshReport> {
    let now = app.now();
    let due = ClaimDueCustomers {
        now,
        lease_ends: now + LEASE,
        limit: MAX_CUSTOMERS,
    };
    let customers = app.db()?.all(due).await?;
    let checked = customers.len();

    let outcomes: Vec<Refreshed> = stream::iter(customers)
        .map(async |customer| refresh(app, &customer).await)
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;

    let mut report = RefreshReport {
        checked,
        ..RefreshReport::default()
    };
    for outcome in outcomes {
        match outcome {
            Refreshed::Unchanged => {}
            Refreshed::Healed => report.healed += 1,
            Refreshed::Failed => report.failed += 1,
        }
    }
    Ok(report)
}

async fn refresh(app: &App, customer: &str) -> Refreshed {
    match sync(app, customer, None, DEADLINE).await {
        Ok(Synced::Written(change)) => {
            let healed = change.plan != change.plan_before;
            if healed {
                tracing::warn!(
                    customer,
                    user.id = %change.user,
                    from = %change.plan_before,
                    to = %change.plan,
                    "a plan changed without an event"
                );
            }

            send_mails(app, change.mails).await;
            if healed {
                Refreshed::Healed
            } else {
                Refreshed::Unchanged
            }
        }
        Ok(Synced::Deleted) => Refreshed::Healed,
        Ok(Synced::Superseded(_) | Synced::Repeated | Synced::NotOurs) => Refreshed::Unchanged,
        Ok(Synced::NotInStripe) => {
            tracing::warn!(
                customer,
                "Stripe does not know this customer: is STRIPE_SECRET_KEY of the right account?"
            );
            Refreshed::Failed
        }
        Err(error) => {
            tracing::warn!(
                customer,
                cause = error.cause(),
                "could not refresh the customer"
            );
            Refreshed::Failed
        }
    }
}

sql! {
    /// Leases due customers to this run. Concurrent runs get others.
    write ClaimDueCustomers {
        now: OffsetDateTime,
        lease_ends: OffsetDateTime,
        limit: i64,
    } -> String = "
        update stripe_customers
        set check_at = :lease_ends
        where id in (
          select id
          from stripe_customers
          where check_at <= :now
          order by check_at
          limit :limit
          for update skip locked
        )
        returning id";
}
