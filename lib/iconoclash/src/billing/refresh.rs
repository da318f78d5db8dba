//! Refreshes customers whose events may have been lost, for the cron.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use pooled_postgres::sql;
use time::OffsetDateTime;

use super::{Synced, send_mails, sync};
use crate::{
    app::App,
    http::error::{Error, Result},
};

/// Customers per run, so that a run ends well within a function's time limit.
const MAX_CUSTOMERS: i64 = 200;
const CONCURRENCY: usize = 8;
const DEADLINE: Duration = Duration::from_secs(8);
/// How long a customer is reserved for one run. While Stripe is unavailable, a customer is retried after this time.
const LEASE: time::Duration = time::Duration::minutes(15);
/// The longest time to the next check of a customer that Stripe refuses again and again.
const MAX_BACKOFF: time::Duration = time::Duration::DAY;

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
/// Runs may overlap: each customer is leased to one run. A customer that Stripe refuses is checked less and less often,
/// and after the others, so that it does not delay them.
pub async fn refresh_due(app: &App) -> Result<RefreshReport> {
    let now = app.now();
    let lease_ends = now + LEASE;
    let due = ClaimDueCustomers {
        now,
        lease_ends,
        limit: MAX_CUSTOMERS,
    };
    let customers = app.db()?.all(due).await?;
    let checked = customers.len();

    let outcomes: Vec<Refreshed> = stream::iter(customers)
        .map(async |customer| refresh(app, &customer, lease_ends).await)
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

async fn refresh(app: &App, customer: &str, lease_ends: OffsetDateTime) -> Refreshed {
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
            back_off(app, customer, lease_ends).await;
            Refreshed::Failed
        }
        Err(error) => {
            tracing::warn!(
                customer,
                cause = error.cause(),
                "could not refresh the customer"
            );
            // An outage is no customer's fault, and must not delay them once it is over.
            if !matches!(error, Error::Unavailable { .. }) {
                back_off(app, customer, lease_ends).await;
            }
            Refreshed::Failed
        }
    }
}

/// Delays the next check of a customer, twice as long after each failure.
async fn back_off(app: &App, customer: &str, lease_ends: OffsetDateTime) {
    if let Err(error) = try_to_back_off(app, customer, lease_ends).await {
        tracing::warn!(
            customer,
            cause = error.cause(),
            "could not delay the customer's next check"
        );
    }
}

async fn try_to_back_off(app: &App, customer: &str, lease_ends: OffsetDateTime) -> Result<()> {
    let back_off = BackOff {
        customer,
        lease_ends,
        now: app.now(),
        first_secs: LEASE.as_seconds_f64(),
        max_secs: MAX_BACKOFF.as_seconds_f64(),
    };
    app.db()?.execute(back_off).await?;
    Ok(())
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
          order by failed_checks, check_at
          limit :limit
          for update skip locked
        )
        returning id";

    /// Counts a failed check and sets the time of the next one, unless a check was scheduled after the lease began.
    write BackOff {
        customer: &str,
        lease_ends: OffsetDateTime,
        now: OffsetDateTime,
        first_secs: f64,
        max_secs: f64,
    } -> () = "
        update stripe_customers
        set failed_checks = failed_checks + 1,
          check_at = :now::timestamptz + make_interval(
            secs => least(:max_secs::float8, :first_secs::float8 * 2 ^ least(failed_checks, 20))
          )
        where id = :customer and check_at = :lease_ends";
}
