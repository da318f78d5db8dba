//! Copies a customer's subscriptions from Stripe.
//!
//! Writes are ordered by a version per customer, without a lock while Stripe is asked. The version is read before the
//! subscriptions are fetched, and they are stored only if it is still the same. So everything that is stored was
//! fetched after the previous write, and an older answer never overwrites a newer one.

use std::time::Duration;

use pooled_postgres::{row, sql};
use serde_json::Value;
use stripe::webhook::Event;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    customers,
    entitlements::{self, StoredSubscription},
    past_due,
};
use crate::{
    app::App,
    http::error::{Error, Result},
    identity::session_cache,
    notify::mail::Mail,
    spending::plan::Plan,
};

/// The result of a [`sync`].
#[derive(Debug)]
pub enum Synced {
    /// Stripe's answer is stored.
    Written(Box<Change>),
    /// Another writer stored a newer answer, which was fetched after this call started: these subscriptions.
    Superseded(Vec<StoredSubscription>),
    /// The event was handled before.
    Repeated,
    /// The customer belongs to no user.
    NotOurs,
    /// The customer was deleted at Stripe, and with it what is stored here.
    Deleted,
    /// Stripe does not know the customer. Nothing is stored: most likely the API key is of another account.
    NotInStripe,
}

/// What a [`sync`] changed.
#[derive(Debug)]
pub struct Change {
    /// The user that the customer belongs to.
    pub user: Uuid,
    /// The subscriptions before.
    pub before: Vec<StoredSubscription>,
    /// The subscriptions now.
    pub after: Vec<StoredSubscription>,
    /// The plan before.
    pub plan_before: Plan,
    /// The plan now.
    pub plan: Plan,
    /// Mails about the change, to be sent once with [`send_mails`](super::send_mails).
    pub mails: Vec<Mail>,
}

/// Fetches a customer's subscriptions from Stripe and stores them, for an event or without one.
///
/// Fetches at most twice: after two writes by others, the second of them was fetched after this call started.
pub async fn sync(
    app: &App,
    customer: &str,
    event: Option<&Event>,
    deadline: Duration,
) -> Result<Synced> {
    let until = Instant::now() + deadline;
    let event_id = event.map(|event| event.id.as_str());
    let mut first_version = None;

    loop {
        let known = app.db()?.optional(CustomerState { customer, event_id });
        let Some(known) = known.await? else {
            return Ok(Synced::NotOurs);
        };
        if known.event_recorded {
            return Ok(Synced::Repeated);
        }

        let first_version = *first_version.get_or_insert(known.version);
        if known.version >= first_version + 2 {
            if let Some(event) = event {
                record_superseded(app, customer, event).await?;
            }
            return Ok(Synced::Superseded(from_json(known.subscriptions)?));
        }

        let time_left = until.saturating_duration_since(Instant::now());
        let stripe = app.stripe()?.with_deadline(time_left);
        let fetched = match stripe.subscriptions(customer).await {
            Err(error) if error.customer_is_missing() => {
                let time_left = until.saturating_duration_since(Instant::now());
                return missing(app, customer, event, time_left).await;
            }
            fetched => fetched?,
        };

        if let Some(change) = store(app, customer, known, &fetched, event).await? {
            return Ok(Synced::Written(Box::new(change)));
        }
    }
}

/// What it means that Stripe refuses the customer.
async fn missing(
    app: &App,
    customer: &str,
    event: Option<&Event>,
    deadline: Duration,
) -> Result<Synced> {
    if customers::remove_if_deleted(app, customer, event, deadline).await? {
        Ok(Synced::Deleted)
    } else {
        Ok(Synced::NotInStripe)
    }
}

/// Stores Stripe's answer, unless the customer's version changed since `known` was read.
async fn store(
    app: &App,
    customer: &str,
    known: Customer,
    fetched: &[stripe::Subscription],
    event: Option<&Event>,
) -> Result<Option<Change>> {
    let now = app.now();
    let before = from_json(known.subscriptions)?;
    let after: Vec<StoredSubscription> = fetched
        .iter()
        .map(|subscription| StoredSubscription::new(subscription, &before, now))
        .collect();
    let plan = entitlements::plan(&after, now);

    if known.plan != plan {
        session_cache::invalidate(app, known.user_id).await?;
    }

    let stored = app.db()?.optional(StoreSubscriptions {
        customer,
        version: known.version,
        now,
        check_at: entitlements::check_at(&after, known.checkout_at, now),
        known_check_at: known.check_at,
        known_checkout_at: known.checkout_at,
        subscriptions: serde_json::to_value(&after).map_err(Error::internal)?,
        plan,
        event_id: event.map(|event| event.id.as_str()),
        event_kind: event.map(|event| event.kind.as_str()),
    });
    let Some(plan_changed) = stored.await? else {
        return Ok(None);
    };

    // Another writer changed the plan after it was read, and this write changed it back.
    if plan_changed && known.plan == plan {
        session_cache::invalidate(app, known.user_id).await?;
    }

    let mails = known
        .email
        .map(|email| past_due::mails(app, &email, &before, &after))
        .unwrap_or_default();

    Ok(Some(Change {
        user: known.user_id,
        before,
        after,
        plan_before: known.plan,
        plan,
        mails,
    }))
}

async fn record_superseded(app: &App, customer: &str, event: &Event) -> Result<()> {
    let record = RecordSupersededEvent {
        id: &event.id,
        kind: &event.kind,
        customer,
        now: app.now(),
    };
    app.db()?.execute(record).await?;
    Ok(())
}

fn from_json(subscriptions: Value) -> Result<Vec<StoredSubscription>> {
    serde_json::from_value(subscriptions).map_err(Error::internal)
}

sql! {
    /// The version and the state that the next answer replaces, and whether the event is recorded.
    read CustomerState { customer: &str, event_id: Option<&str> } -> Customer = "
        select c.user_id, c.version, c.check_at, c.checkout_at, u.plan, u.email,
          exists (select from stripe_events e where e.id = :event_id) as event_recorded,
          coalesce(
            (select jsonb_agg(
                jsonb_build_object(
                  'id', s.id,
                  'status', s.status,
                  'price_id', s.price_id,
                  'cancel_at_period_end', s.cancel_at_period_end,
                  'current_period_end', s.current_period_end,
                  'past_due_since', s.past_due_since,
                  'created_at', s.created_at
                )
                order by s.created_at desc
              )
              from subscriptions s
              where s.customer_id = c.id),
            '[]'
          ) as subscriptions
        from stripe_customers c
        join users u on u.id = c.user_id
        where c.id = :customer";

    /// Replaces a customer's subscriptions, sets the user's plan and records the event, if the version is unchanged.
    ///
    /// A concurrent writer waits for the customer's row, and then finds a newer version and writes nothing. A check that
    /// was scheduled in between keeps its time, and so does that of a checkout that started. Returns whether the plan
    /// changed.
    write StoreSubscriptions {
        customer: &str,
        version: i64,
        now: OffsetDateTime,
        check_at: Option<OffsetDateTime>,
        known_check_at: Option<OffsetDateTime>,
        known_checkout_at: Option<OffsetDateTime>,
        subscriptions: Value,
        plan: Plan,
        event_id: Option<&str>,
        event_kind: Option<&str>,
    } -> bool = "
        with updated_customer as (
          update stripe_customers
          set version = version + 1,
            confirmed_at = :now,
            failed_checks = 0,
            check_at = least(
              :check_at,
              case
                when check_at is distinct from :known_check_at
                  or checkout_at is distinct from :known_checkout_at
                then check_at
              end
            )
          where id = :customer and version = :version
          returning id, user_id
        ), stored as (
          insert into subscriptions (
            id, customer_id, status, price_id, cancel_at_period_end, current_period_end,
            past_due_since, created_at
          )
          select s.id, c.id, s.status, s.price_id, s.cancel_at_period_end, s.current_period_end,
            s.past_due_since, s.created_at
          from updated_customer c
          cross join jsonb_to_recordset(:subscriptions) as s (
            id text, status text, price_id text, cancel_at_period_end boolean,
            current_period_end timestamptz, past_due_since timestamptz, created_at timestamptz
          )
          on conflict (id) do update
          set customer_id = excluded.customer_id,
            status = excluded.status,
            price_id = excluded.price_id,
            cancel_at_period_end = excluded.cancel_at_period_end,
            current_period_end = excluded.current_period_end,
            past_due_since = excluded.past_due_since
        ), removed as (
          delete from subscriptions s
          using updated_customer c
          where s.customer_id = c.id
            and not exists (
              select from jsonb_array_elements(:subscriptions) as fetched
              where fetched ->> 'id' = s.id
            )
        ), updated_user as (
          update users u
          set plan = :plan
          from updated_customer c
          where u.id = c.user_id and u.plan not in ('guest', :plan)
          returning u.id
        ), recorded as (
          insert into stripe_events (id, type, customer_id, received_at)
          select :event_id::text, :event_kind::text, id, :now
          from updated_customer
          where :event_id is not null
          on conflict do nothing
        )
        select exists (select from updated_user) as plan_changed
        from updated_customer";

    /// Records an event whose effect a newer write already has.
    write RecordSupersededEvent {
        id: &str,
        kind: &str,
        customer: &str,
        now: OffsetDateTime,
    } -> () = "
        insert into stripe_events (id, type, customer_id, received_at)
        values (:id, :kind, :customer, :now)
        on conflict do nothing";
}

row! {
    struct Customer {
        user_id: Uuid,
        version: i64,
        check_at: Option<OffsetDateTime>,
        checkout_at: Option<OffsetDateTime>,
        plan: Plan,
        email: Option<String>,
        event_recorded: bool,
        subscriptions: Value,
    }
}
