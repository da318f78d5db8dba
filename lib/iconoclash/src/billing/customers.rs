//! Changes to a customer that need no answer from Stripe.

use std::time::Duration;

use pooled_postgres::sql;
use stripe::webhook::Event;
use time::OffsetDateTime;
use uuid::Uuid;

use super::entitlements;
use crate::{app::App, http::error::Result, identity::session_cache};

/// Records that a checkout starts, so that its result is checked even if every event is lost.
pub(crate) async fn checkout_started(app: &App, customer: &str) -> Result<()> {
    let now = app.now();
    let start = StartCheckout {
        customer,
        now,
        check_at: entitlements::first_checkout_check(now),
    };
    app.db()?.execute(start).await?;
    Ok(())
}

/// Includes the customer in the next [`refresh_due`](super::refresh_due).
///
/// A failure is only logged: Stripe sends the event again.
pub(crate) async fn schedule_refresh(app: &App, customer: &str) {
    if let Err(error) = try_to_schedule_refresh(app, customer).await {
        tracing::warn!(
            customer,
            cause = error.cause(),
            "could not schedule a refresh of the customer"
        );
    }
}

async fn try_to_schedule_refresh(app: &App, customer: &str) -> Result<()> {
    let now = app.now();
    app.db()?.execute(ScheduleRefresh { customer, now }).await?;
    Ok(())
}

/// Removes a customer that Stripe refuses, if it was deleted there. Returns whether it was.
///
/// Stripe refuses a customer of another account in the same way; then nothing changes, because most likely the API key
/// is wrong.
pub(crate) async fn remove_if_deleted(
    app: &App,
    customer: &str,
    event: Option<&Event>,
    deadline: Duration,
) -> Result<bool> {
    let stripe = app.stripe()?.with_deadline(deadline);
    if !stripe.is_customer_deleted(customer).await? {
        return Ok(false);
    }

    tracing::warn!(customer, "the customer is deleted at Stripe");
    customer_deleted(app, customer, event).await?;
    Ok(true)
}

/// Removes a customer that was deleted at Stripe, with its subscriptions and the plan that they granted.
///
/// Returns false if the customer belongs to no user. A deleted customer never comes back, so this is never outdated.
pub(crate) async fn customer_deleted(
    app: &App,
    customer: &str,
    event: Option<&Event>,
) -> Result<bool> {
    let db = app.db()?;
    let Some(user) = db.optional(UserOfCustomer { customer }).await? else {
        return Ok(false);
    };

    session_cache::invalidate(app, user).await?;
    let deleted = db.optional(DeleteCustomer {
        customer,
        event_id: event.map(|event| event.id.as_str()),
        event_kind: event.map(|event| event.kind.as_str()),
        now: app.now(),
    });
    Ok(deleted.await?.is_some())
}

/// Records an event that changes no subscription. Returns false if it is recorded already or its customer is not ours.
pub(crate) async fn record_event(app: &App, event: &Event) -> Result<bool> {
    let record = RecordEvent {
        id: &event.id,
        kind: &event.kind,
        customer: event.customer(),
        now: app.now(),
    };
    let recorded = app.db()?.execute(record).await?;
    Ok(recorded > 0)
}

sql! {
    /// Sets the time of the next check, unless an earlier one is set.
    write StartCheckout {
        customer: &str,
        now: OffsetDateTime,
        check_at: OffsetDateTime,
    } -> () = "
        update stripe_customers
        set checkout_at = :now, check_at = least(check_at, :check_at)
        where id = :customer";

    write ScheduleRefresh { customer: &str, now: OffsetDateTime } -> () = "
        update stripe_customers
        set check_at = least(check_at, :now)
        where id = :customer";

    read UserOfCustomer { customer: &str } -> Uuid =
        "select user_id from stripe_customers where id = :customer";

    /// Deletes the customer and its subscriptions, takes back the plan and records the event, if there is one.
    write DeleteCustomer {
        customer: &str,
        event_id: Option<&str>,
        event_kind: Option<&str>,
        now: OffsetDateTime,
    } -> Uuid = "
        with deleted as (
          delete from stripe_customers
          where id = :customer
          returning id, user_id
        ), unlinked as (
          update users u
          set stripe_customer_id = nullif(u.stripe_customer_id, deleted.id),
            former_stripe_customer_id = deleted.id,
            plan = case when u.plan = 'guest' then u.plan else 'free' end
          from deleted
          where u.id = deleted.user_id
        ), recorded as (
          insert into stripe_events (id, type, customer_id, received_at)
          select :event_id::text, :event_kind::text, id, :now
          from deleted
          where :event_id is not null
          on conflict do nothing
        )
        select user_id from deleted";

    /// Records an event without a customer or with one of ours.
    write RecordEvent {
        id: &str,
        kind: &str,
        customer: Option<&str>,
        now: OffsetDateTime,
    } -> () = "
        insert into stripe_events (id, type, customer_id, received_at)
        select :id::text, :kind::text, :customer::text, :now::timestamptz
        where :customer is null
          or exists (select from stripe_customers c where c.id = :customer)
        on conflict do nothing";
}
