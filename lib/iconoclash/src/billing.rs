//! Who pays: a copy of what Stripe says, which is never more than an answer of Stripe itself.
//!
//! An event only says that it is time to ask: [`sync`] fetches all of a customer's subscriptions and writes them with the
//! event's id, the plan that follows and the customer's next version in one statement. That statement applies only over
//! the version that was read *before* Stripe was asked, so each answer that is written was fetched wholly after the one
//! before it was written: an older answer never covers a newer one, and no lock is held while Stripe is asked.

mod entitlements;
mod refresh;

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};
use stripe::{self, webhook::Event};

use crate::{
    app::App,
    http::error::{Error, Result},
    identity::session_cache,
    notify::mail::{self, Mail},
    spending::plan::Plan,
};

pub use entitlements::{GRACE, Held, plan};
pub use refresh::{Confirmed, confirm_stale};

/// What asking Stripe about a customer came to.
#[derive(Debug)]
pub enum Synced {
    /// Stripe's answer is written.
    Written(Box<Change>),
    /// An answer that was fetched after this call began is written already: this one.
    Covered(Vec<Held>),
    /// The event had its effect before.
    Repeated,
    /// No user of ours has this customer.
    Foreign,
    /// Stripe does not know the customer, and nothing was written: more likely the key is another account's.
    Missing,
}

/// What was held of a customer, and what is held now.
#[derive(Debug)]
pub struct Change {
    /// Whose subscriptions they are.
    pub user: Uuid,
    /// The subscriptions before.
    pub before: Vec<Held>,
    /// The subscriptions now.
    pub after: Vec<Held>,
    /// The plan before.
    pub plan_before: Plan,
    /// The plan now.
    pub plan: Plan,
    /// What the user is to be told, once; send it with [`tell`].
    pub mails: Vec<Mail>,
}

/// Asks Stripe about a customer within the deadline and writes the answer, for an event's sake or for its own.
///
/// Asks twice at the most. An answer whose version was overtaken is fetched again; one that is overtaken again can be
/// dropped, because whoever overtook it asked Stripe after this call had begun.
pub async fn sync(
    app: &App,
    customer: &str,
    event: Option<&Event>,
    deadline: Duration,
) -> Result<Synced> {
    let until = tokio::time::Instant::now() + deadline;
    let event_id = event.map(|event| event.id.as_str());
    let kind = event.map(|event| event.kind.as_str());
    let mut first_version = None;
    loop {
        let Some(known) = app
            .db()?
            .old_optional(&KNOWN, &[&customer, &event_id])
            .await?
        else {
            return Ok(Synced::Foreign);
        };
        if known.repeated {
            return Ok(Synced::Repeated);
        }
        if known.version >= *first_version.get_or_insert(known.version) + 2 {
            app.db()?
                .old_execute(&RECORD, &[&event_id, &kind, &customer, &app.now()])
                .await?;
            return Ok(Synced::Covered(parse(known.held)?));
        }
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let fetched = match app
            .stripe()?
            .with_deadline(left)
            .subscriptions(customer)
            .await
        {
            Ok(fetched) => fetched,
            Err(error) if error.customer_is_missing() => return Ok(Synced::Missing),
            Err(error) => return Err(error.into()),
        };
        if let Some(change) = write(app, customer, known, &fetched, (event_id, kind)).await? {
            return Ok(Synced::Written(Box::new(change)));
        }
    }
}

/// Writes what Stripe answered over the version that is known; nothing where that is not the newest any more.
async fn write(
    app: &App,
    customer: &str,
    known: Known,
    fetched: &[stripe::Subscription],
    (event_id, kind): (Option<&str>, Option<&str>),
) -> Result<Option<Change>> {
    let now = app.now();
    let before = parse(known.held)?;
    let after: Vec<Held> = fetched
        .iter()
        .map(|fetched| Held::new(fetched, &before, now))
        .collect();
    let plan = plan(&after, now);
    let check_at = entitlements::check_at(&after, known.checkout_at, now);
    let held = serde_json::to_value(&after).map_err(|error| Error::Internal(error.into()))?;
    let name = plan.as_str();
    if known.plan != name {
        session_cache::invalidate(app, known.user_id).await?;
    }
    let written = app
        .db()?
        .old_optional(
            &WRITE,
            &[
                &customer,
                &known.version,
                &now,
                &check_at,
                &known.checkout_at,
                &held,
                &name,
                &event_id,
                &kind,
            ],
        )
        .await?;
    let Some(plan_changed) = written else {
        return Ok(None);
    };
    if plan_changed && known.plan == name {
        // Somebody else changed it meanwhile, and this changed it back.
        session_cache::invalidate(app, known.user_id).await?;
    }
    let plan_before = Plan::parse(&known.plan).unwrap_or(Plan::Free);
    let mails = known
        .email
        .map(|email| past_due_mails(app, &email, &before, &after))
        .unwrap_or_default();
    Ok(Some(Change {
        user: known.user_id,
        before,
        after,
        plan_before,
        plan,
        mails,
    }))
}

fn parse(held: Value) -> Result<Vec<Held>> {
    serde_json::from_value(held).map_err(|error| Error::Internal(error.into()))
}

/// Sends what a change has to tell.
pub async fn tell(app: &App, mails: Vec<Mail>) {
    for mail in mails {
        mail::send(app, mail).await;
    }
}

/// One mail for each subscription of which a payment has become due: only one write can be the first to see it.
fn past_due_mails(app: &App, email: &str, before: &[Held], after: &[Held]) -> Vec<Mail> {
    let is_due = |known: &[Held], id: &str| {
        known
            .iter()
            .any(|held| held.id == id && held.past_due_since.is_some())
    };
    let newly_due = after
        .iter()
        .filter(|held| is_due(after, &held.id) && !is_due(before, &held.id));
    newly_due
        .filter_map(|held| {
            let (since, ends) = (held.past_due_since?, held.grace_ends()?);
            Some(Mail {
                to: vec![email.to_owned()],
                subject: "Your payment for Iconoclash Pro did not go through".to_owned(),
                paragraphs: vec![
                    "We could not collect the payment for your Iconoclash Pro subscription.".to_owned(),
                    format!(
                        "You keep Pro until {}. Please check your card under “Manage subscription” before then; the \
                         payment is tried again by itself.",
                        ends.date()
                    ),
                ],
                link: Some(("Open Iconoclash".to_owned(), app.config().public_url.clone())),
                key: format!("past-due/{}/{}", held.id, since.unix_timestamp()),
            })
        })
        .collect()
}

/// Notes that a checkout begins, so that what becomes of it is looked at even if every event is lost.
pub async fn checkout_begins(app: &App, customer: &str) -> Result<()> {
    let now = app.now();
    app.db()?
        .old_execute(
            &CHECKOUT_BEGINS,
            &[&customer, &now, &entitlements::first_look(now)],
        )
        .await?;
    Ok(())
}

/// Has the next [`confirm_stale`] ask about a customer. Where that cannot be written, Stripe sends the event again anyway.
pub async fn check_soon(app: &App, customer: &str) {
    let noted = match app.db() {
        Ok(db) => db
            .old_execute(&CHECK_SOON, &[&customer, &app.now()])
            .await
            .map_err(Error::from),
        Err(error) => Err(error),
    };
    if let Err(error) = noted {
        tracing::warn!(customer, cause = ?error, "a customer could not be noted to be asked about");
    }
}

/// Forgets a customer that was deleted at Stripe, and with it what it paid for; false where no user has it (any more).
///
/// Here an event is believed without asking Stripe, which says the same of a customer of another account. It can be
/// neither out of date nor out of order: a deleted customer never comes back.
pub async fn forget(app: &App, customer: &str, event: &Event) -> Result<bool> {
    let Some(known) = app
        .db()?
        .old_optional(&KNOWN, &[&customer, &event.id])
        .await?
    else {
        return Ok(false);
    };
    session_cache::invalidate(app, known.user_id).await?;
    let forgotten = app
        .db()?
        .old_optional(&FORGET, &[&customer, &event.id, &event.kind, &app.now()])
        .await?;
    Ok(forgotten.is_some())
}

/// Records an event that changes no subscription; false where it was recorded before or concerns somebody else.
pub async fn record(app: &App, event: &Event) -> Result<bool> {
    let values = (&event.id, &event.kind, event.customer());
    let recorded = app
        .db()?
        .old_execute(&RECORD_OURS, &[values.0, values.1, &values.2, &app.now()])
        .await?;
    Ok(recorded > 0)
}

impl From<stripe::Error> for Error {
    fn from(error: stripe::Error) -> Self {
        match &error {
            stripe::Error::Unreachable(_) => Self::unavailable(error),
            stripe::Error::Refused { status, .. }
                if status.is_server_error() || status.as_u16() == 429 =>
            {
                Self::unavailable(error)
            }
            _ => Self::internal(error),
        }
    }
}

sql_positional! {
    /// What a customer's next answer is written over, and whether an event has had its effect.
    read KNOWN(TEXT, TEXT) -> Known = "
        select c.user_id, c.version, c.checkout_at, u.plan, u.email,
          exists (select from stripe_events e where e.id = $2) as repeated,
          coalesce((select jsonb_agg(jsonb_build_object('id', s.id, 'status', s.status, 'price_id', s.price_id,
            'cancel_at_period_end', s.cancel_at_period_end, 'current_period_end', s.current_period_end,
            'past_due_since', s.past_due_since, 'created_at', s.created_at) order by s.created_at desc)
            from subscriptions s where s.customer_id = c.id), '[]') as held
        from stripe_customers c join users u on u.id = c.user_id
        where c.id = $1";
}

row! {
    struct Known {
        user_id: Uuid,
        version: i64,
        checkout_at: Option<OffsetDateTime>,
        plan: String,
        email: Option<String>,
        repeated: bool,
        held: Value,
    }
}

sql_positional! {
    /// All of an answer, the plan that follows from it and the event that it was fetched for, or nothing: whoever read
    /// an older version waits for the customer's row here and then finds it newer. A checkout that began meanwhile keeps
    /// its time to be looked at. Tells whether the plan is another one now.
    write WRITE(TEXT, INT8, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ, JSONB, TEXT, TEXT, TEXT) -> bool = "
        with fresh as (
          update stripe_customers
          set version = version + 1, confirmed_at = $3,
            check_at = least($4, case when checkout_at is distinct from $5 then check_at end)
          where id = $1 and version = $2
          returning id, user_id
        ), kept as (
          insert into subscriptions (id, customer_id, status, price_id, cancel_at_period_end, current_period_end,
            past_due_since, created_at)
          select s.id, fresh.id, s.status, s.price_id, s.cancel_at_period_end, s.current_period_end, s.past_due_since,
            s.created_at
          from fresh cross join jsonb_to_recordset($6) as s (id text, status text, price_id text,
            cancel_at_period_end boolean, current_period_end timestamptz, past_due_since timestamptz,
            created_at timestamptz)
          on conflict (id) do update
          set customer_id = excluded.customer_id, status = excluded.status, price_id = excluded.price_id,
            cancel_at_period_end = excluded.cancel_at_period_end, current_period_end = excluded.current_period_end,
            past_due_since = excluded.past_due_since
        ), gone as (
          delete from subscriptions s using fresh
          where s.customer_id = fresh.id
            and not exists (select from jsonb_array_elements($6) as answered where answered ->> 'id' = s.id)
        ), planned as (
          update users u set plan = $7 from fresh
          where u.id = fresh.user_id and u.plan not in ('guest', $7)
          returning u.id
        ), happened as (
          insert into stripe_events (id, type, customer_id, received_at)
          select $8::text, $9::text, id, $3 from fresh where $8 is not null
          on conflict do nothing
        )
        select exists (select from planned) as plan_changed from fresh";

    /// The customer with its subscriptions, what they granted, and that the user has it; the event that told of it.
    write FORGET(TEXT, TEXT, TEXT, TIMESTAMPTZ) -> Uuid = "
        with gone as (
          delete from stripe_customers where id = $1 returning id, user_id
        ), unlinked as (
          update users u
          set stripe_customer_id = nullif(u.stripe_customer_id, gone.id), former_stripe_customer_id = gone.id,
            plan = case when u.plan = 'guest' then u.plan else 'free' end
          from gone where u.id = gone.user_id
        ), happened as (
          insert into stripe_events (id, type, customer_id, received_at)
          select $2::text, $3::text, id, $4 from gone
          on conflict do nothing
        )
        select user_id from gone";

    /// An event whose effect is there already.
    write RECORD(TEXT, TEXT, TEXT, TIMESTAMPTZ) -> () = "
        insert into stripe_events (id, type, customer_id, received_at)
        select $1::text, $2::text, $3::text, $4::timestamptz where $1 is not null
        on conflict do nothing";

    /// An event of nobody in particular or of a customer of ours, the first time that it comes.
    write RECORD_OURS(TEXT, TEXT, TEXT, TIMESTAMPTZ) -> () = "
        insert into stripe_events (id, type, customer_id, received_at)
        select $1::text, $2::text, $3::text, $4::timestamptz
        where $3 is null or exists (select from stripe_customers c where c.id = $3)
        on conflict do nothing";

    write CHECKOUT_BEGINS(TEXT, TIMESTAMPTZ, TIMESTAMPTZ) -> () = "
        update stripe_customers set checkout_at = $2, check_at = least(check_at, $3) where id = $1";

    write CHECK_SOON(TEXT, TIMESTAMPTZ) -> () = "
        update stripe_customers set check_at = least(check_at, $2) where id = $1";
}
