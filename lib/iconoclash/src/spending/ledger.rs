//! The ledger: one row for every call to Claude, and the sums that limits are checked against.
//!
//! This is the only module that writes `usage_events`, `subject_days` and `budget_days`. A call [`begin`]s with its
//! maximum cost, in the statement that checks every limit, and is [`settle`]d to its real cost. Rows that belong to the
//! call are written in the same statements: a reply's messages, a title, a summary.
//!
//! Lock order, in both statements: idempotency key, discussion, messages, ledger row, subject's day, budget's day. Two
//! statements that follow it cannot deadlock. A CTE that changes a later row reads from the CTE of the earlier one,
//! because Postgres runs CTEs that nothing reads in an order of its own.

use time::OffsetDateTime;
use uuid::Uuid;

use pooled_postgres::{Db, Error, row, sql, text_enum};

use super::{plan::Plan, price, usage::UsageReport};
use crate::{
    app::App,
    clock::{epoch_ms, month_start, utc_day},
};

text_enum! {
    /// What a call is for.
    pub(crate) enum Kind {
        /// A reply to a message.
        Reply = "reply",
        /// The title of a discussion.
        Title = "title",
        /// The summary of a discussion's older part.
        Summary = "summary",
        /// An operator's test of a key.
        KeyTest = "key_test",
    }
}

text_enum! {
    /// How a call ended.
    pub(crate) enum Outcome {
        /// The provider said that the message ended.
        Complete = "complete",
        /// It broke off; a part of the text is there.
        Partial = "partial",
        /// The user stopped it.
        Stopped = "stopped",
        /// It broke off before any text.
        Failed = "failed",
    }
}

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewCall<'a> {
    pub(crate) request: Uuid,
    pub(crate) kind: Kind,
    /// The user, unless an operator makes the call.
    pub(crate) user: Option<Uuid>,
    /// The reply that the call belongs to.
    pub(crate) reply: Uuid,
    pub(crate) subject: &'a str,
    pub(crate) plan: Plan,
    pub(crate) model: &'a str,
    pub(crate) key_label: &'a str,
    /// The most that the call can cost, in micro-dollars.
    pub(crate) max_cost: i64,
    /// Whether it counts as one of the subject's messages.
    pub(crate) counted: bool,
    pub(crate) now: OffsetDateTime,
}

/// The limits that a call must keep. `None` means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The subject's messages a day.
    pub(crate) messages: Option<i64>,
    /// The subject's micro-dollars a day.
    pub(crate) subject_microusd: Option<i64>,
    /// Everybody's micro-dollars a day.
    pub(crate) day_microusd: Option<i64>,
    /// Everybody's micro-dollars a month.
    pub(crate) month_microusd: Option<i64>,
    /// Milliseconds between two messages in the long run (GCRA's emission interval).
    pub(crate) burst_interval_ms: i64,
    /// GCRA's burst tolerance, unless Redis has already decided.
    pub(crate) burst_tolerance_ms: Option<i64>,
}

/// The rows of a message and its reply, which are written when the call begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyRows<'a> {
    pub(crate) discussion: Uuid,
    /// The message's id.
    pub(crate) message: Uuid,
    pub(crate) content: &'a str,
    pub(crate) lease_expires_at: OffsetDateTime,
    /// The request's idempotency key and the fingerprint that it is bound to.
    pub(crate) key: Option<(&'a str, &'a [u8])>,
}

/// Writes the call with its maximum cost, and the rows of its reply, if every limit allows it.
///
/// Returns the subject's messages of the day. `None` means that the idempotency key is taken or the discussion is gone;
/// nothing is written then. A limit that is reached is an error that carries the limit's name as its constraint.
pub(crate) async fn begin(
    db: &Db,
    call: &NewCall<'_>,
    limits: &Limits,
    rows: Option<&ReplyRows<'_>>,
) -> Result<Option<i64>, Error> {
    let day = utc_day(call.now);
    let key = rows.and_then(|rows| rows.key);

    db.optional(Begin {
        request: call.request,
        kind: call.kind,
        user: call.user,
        reply: call.reply,
        subject: call.subject,
        plan: call.plan,
        model: call.model,
        key_label: call.key_label,
        max_cost: call.max_cost,
        now: call.now,
        now_ms: epoch_ms(call.now),
        day,
        month: month_start(day),
        counted: call.counted,
        messages_limit: limits.messages,
        subject_limit: limits.subject_microusd,
        day_limit: limits.day_microusd,
        month_limit: limits.month_microusd,
        burst_interval_ms: limits.burst_interval_ms,
        burst_tolerance_ms: limits.burst_tolerance_ms,
        discussion: rows.map(|rows| rows.discussion),
        message: rows.map(|rows| rows.message),
        content: rows.map(|rows| rows.content),
        lease_expires_at: rows.map(|rows| rows.lease_expires_at),
        key: key.map(|(key, _)| key),
        key_hash: key.map(|(_, hash)| hash),
    })
    .await
}

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settlement<'a> {
    pub(crate) request: Uuid,
    pub(crate) outcome: Outcome,
    /// Whether the message counts against the day's quota.
    pub(crate) counted: bool,
    /// The burst that a message returns that does not count, in milliseconds.
    pub(crate) burst_ms: i64,
    pub(crate) usage: &'a UsageReport,
    pub(crate) model: &'a str,
    /// The key that answered, if one did.
    pub(crate) key_label: Option<&'a str>,
    /// When the call began, which decides its price.
    pub(crate) began_at: OffsetDateTime,
    pub(crate) now: OffsetDateTime,
    pub(crate) result: CallResult<'a>,
}

/// What a call was made for, and what it produced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CallResult<'a> {
    /// A reply, with its text so far.
    Reply {
        reply: Uuid,
        text: &'a str,
        stop_reason: Option<&'a str>,
    },
    /// A better title for a discussion; `None` if the answer was not a title.
    Title {
        discussion: Uuid,
        title: Option<&'a str>,
    },
    /// A summary of a discussion up to a message; `None` if there is none.
    Summary {
        discussion: Uuid,
        summary: Option<&'a str>,
        until: Uuid,
    },
    /// Nothing that is stored.
    Nothing,
}

/// Writes how the call ended, what it cost and what it produced. Returns the cost in micro-dollars, or `None` if the
/// ledger does not have the call.
///
/// Safe to repeat. It is right even after [`settle_expired`] ended the call of a producer that was only slow: the sums
/// change by the difference to what the ledger has. A message that no longer counts stays uncounted, because it may have
/// been sent again. A failed reply frees its idempotency key. A title that the user has set meanwhile stays, and so does
/// a summary that reaches further.
pub(crate) async fn settle(db: &Db, settlement: &Settlement<'_>) -> Result<Option<i64>, Error> {
    let tokens = &settlement.usage.tokens;
    let price = price::cost(settlement.model, tokens, settlement.began_at)
        .expect("configuration accepts only models with a price");

    let mut statement = Settle {
        request: settlement.request,
        outcome: settlement.outcome,
        counted: settlement.counted,
        burst_ms: settlement.burst_ms,
        input: tokens.input.into(),
        cache_write_5m: tokens.cache_write_5m.into(),
        cache_write_1h: tokens.cache_write_1h.into(),
        cache_read: tokens.cache_read.into(),
        output: tokens.output.into(),
        cost: price.microusd,
        saved: price.saved_microusd,
        price_date: price.price_date,
        estimated: settlement.usage.estimated,
        model: settlement.model,
        key_label: settlement.key_label,
        ended_at: settlement.now,
        reply: None,
        text: None,
        stop_reason: None,
        discussion: None,
        title: None,
        summary: None,
        summary_until: None,
    };
    match settlement.result {
        CallResult::Reply {
            reply,
            text,
            stop_reason,
        } => {
            statement.reply = Some(reply);
            statement.text = Some(text);
            statement.stop_reason = stop_reason;
        }
        CallResult::Title { discussion, title } => {
            statement.discussion = Some(discussion);
            statement.title = title;
        }
        CallResult::Summary {
            discussion,
            summary,
            until,
        } => {
            statement.discussion = Some(discussion);
            statement.summary = summary;
            statement.summary_until = Some(until);
        }
        CallResult::Nothing => {}
    }

    let settled = db.execute(statement).await? > 0;
    Ok(settled.then_some(price.microusd))
}

/// Books a call that was made although the ledger refused it, or did not answer whether it accepted it. Such a call is
/// paid for all the same. Returns its cost.
///
/// No limit applies. Safe to repeat, also if the refused statement takes effect after all.
pub(crate) async fn book(
    db: &Db,
    call: &NewCall<'_>,
    settlement: &Settlement<'_>,
) -> Result<i64, Error> {
    if let Some(cost) = settle(db, settlement).await? {
        return Ok(cost);
    }
    begin(db, call, &Limits::default(), None).await?;
    let cost = settle(db, settlement).await?;
    Ok(cost.unwrap_or(call.max_cost))
}

/// Ends replies whose lease ran out, of one discussion or of all, and calls that nothing can end any more. Returns how
/// many were ended.
///
/// The text stays, the ledger keeps the maximum cost, and where there is no text the message does not count.
pub(crate) async fn settle_expired(
    db: &Db,
    now: OffsetDateTime,
    discussion: Option<Uuid>,
) -> Result<i64, Error> {
    db.one(SettleExpired { now, discussion }).await
}

/// The subject's messages of a day.
pub(crate) async fn messages_today(
    db: &Db,
    subject: &str,
    now: OffsetDateTime,
) -> Result<i64, Error> {
    let day = utc_day(now);
    let messages = db.optional(MessagesOfDay { subject, day }).await?;
    Ok(messages.unwrap_or_default())
}

row! {
    /// Micro-dollars spent by everybody, held or settled.
    #[derive(Clone, Copy, Debug)]
    pub struct Spending {
        /// This UTC day.
        today: i64,
        /// This UTC month.
        month: i64,
    }
}

/// What everybody has spent today and this month.
pub async fn spending(app: &App) -> crate::http::error::Result<Spending> {
    let day = utc_day(app.now());
    let month = month_start(day);
    Ok(app.db()?.one(SpendingOfDay { day, month }).await?)
}

sql! {
    /// The question, the reply's place, the idempotency key, the ledger row and its sums: all or nothing. No row changes
    /// where the key is taken or the discussion is gone. The rows that everybody writes come last, so that they are
    /// locked for the shortest time.
    write Begin {
        request: Uuid, kind: Kind, user: Option<Uuid>, reply: Uuid, subject: &str, plan: Plan, model: &str,
        key_label: &str, max_cost: i64, now: OffsetDateTime, now_ms: i64, day: time::Date, month: time::Date,
        counted: bool, messages_limit: Option<i64>, subject_limit: Option<i64>, day_limit: Option<i64>,
        month_limit: Option<i64>, burst_interval_ms: i64, burst_tolerance_ms: Option<i64>,
        discussion: Option<Uuid>, message: Option<Uuid>, content: Option<&str>,
        lease_expires_at: Option<OffsetDateTime>, key: Option<&str>, key_hash: Option<&[u8]>,
    } -> i64 = "
        with claimed as (
          insert into idempotency_keys (user_id, key, request_hash, reply_id, created_at)
          select :user::uuid, :key::text, :key_hash::bytea, :reply::uuid, :now::timestamptz where :key is not null
          on conflict do nothing
          returning key
        ), bumped as (
          update discussions set message_count = message_count + 2, updated_at = :now
          where id = :discussion::uuid and user_id = :user and (:key is null or exists (select from claimed))
          returning id
        ), question as (
          insert into messages (id, discussion_id, role, status, content, created_at)
          select :message::uuid, id, 'user', 'complete', :content::text, :now from bumped
        ), answer as (
          insert into messages (id, discussion_id, role, status, content, reply_to, model, lease_expires_at, created_at)
          select :reply, id, 'assistant', 'streaming', '', :message, :model::text, :lease_expires_at::timestamptz, :now
          from bumped
          returning id
        ), possible as (
          select 1 from answer union all select 1 where :discussion is null
        ), subject_day as (
          insert into subject_days as s (subject, day, messages, spent_microusd, burst_ms)
          select :subject::text, :day::date,
            at_most(:counted::bool::int, :messages_limit::bigint, 'subject_days_messages'),
            at_most(:max_cost::bigint, :subject_limit::bigint, 'subject_days_spent'),
            :now_ms::bigint + at_most(
              greatest(
                (select y.burst_ms from subject_days y where y.subject = :subject and y.day = :day::date - 1), :now_ms
              ) + :burst_interval_ms::bigint - :now_ms,
              :burst_tolerance_ms::bigint, 'subject_days_burst')
          from possible
          on conflict (subject, day) do update
          set messages = at_most(s.messages + :counted::int, :messages_limit, 'subject_days_messages'),
            spent_microusd = at_most(s.spent_microusd + :max_cost, :subject_limit, 'subject_days_spent'),
            burst_ms = :now_ms + at_most(
              greatest(s.burst_ms, :now_ms) + :burst_interval_ms - :now_ms, :burst_tolerance_ms, 'subject_days_burst')
          returning s.messages
        ), budget_day as (
          insert into budget_days as b (day, spent_microusd)
          select :day, at_most(
            at_most(:max_cost, :day_limit::bigint, 'budget_days_day'),
            :month_limit::bigint - before.spent, 'budget_days_month')
          from subject_day, (
            select coalesce(sum(d.spent_microusd), 0)::bigint as spent from budget_days d
            where d.day >= :month::date and d.day < :day
          ) before
          on conflict (day) do update
          set spent_microusd = at_most(
            at_most(b.spent_microusd + :max_cost, :day_limit, 'budget_days_day'),
            :month_limit - (
              select coalesce(sum(d.spent_microusd), 0)::bigint from budget_days d
              where d.day >= :month and d.day < :day
            ),
            'budget_days_month')
          returning day
        )
        insert into usage_events
          (request_id, kind, user_id, message_id, subject, plan, model, key_label, outcome, counted, cost_microusd,
            created_at)
        select :request::uuid, :kind::text, :user, :reply, :subject, :plan::text, :model, :key_label::text, 'running',
          :counted, :max_cost, :now
        from budget_day
        returning (select subject_day.messages from subject_day)";

    write Settle {
        request: Uuid, outcome: Outcome, counted: bool, burst_ms: i64, input: i64, cache_write_5m: i64, cache_write_1h: i64,
        cache_read: i64, output: i64, cost: i64, saved: i64, price_date: time::Date, estimated: bool, model: &str,
        key_label: Option<&str>, ended_at: OffsetDateTime, reply: Option<Uuid>, text: Option<&str>,
        stop_reason: Option<&str>, discussion: Option<Uuid>, title: Option<&str>, summary: Option<&str>,
        summary_until: Option<Uuid>,
    } -> () = "
        with titled as (
          update discussions set title = :title, title_made = false
          where id = :discussion and title_made and :title::text is not null
          returning id
        ), summarised as (
          update discussions set summary = :summary, summary_until = :summary_until
          where id = :discussion and :summary::text is not null
            and (summary_until is null or summary_until < :summary_until::uuid)
          returning id
        ), ended as (
          update messages
          set status = :outcome, content = :text::text, input_tokens = :input,
            cache_write_tokens = :cache_write_5m::bigint + :cache_write_1h::bigint, cache_read_tokens = :cache_read,
            output_tokens = :output, cost_microusd = :cost, lease_expires_at = null, model = :model,
            stop_reason = :stop_reason::text
          where id = :reply::uuid
          returning id
        ), freed as (
          delete from idempotency_keys where reply_id = :reply and :outcome = 'failed'
          returning key
        ), before as (
          select e.request_id, e.subject, (e.created_at at time zone 'UTC')::date as day, e.counted, e.cost_microusd
          from usage_events e,
            (select count(*) from titled) a, (select count(*) from summarised) b,
            (select count(*) from ended) c, (select count(*) from freed) d
          where e.request_id = :request::uuid for update of e
        ), subject_day as (
          update subject_days s
          set messages = s.messages + (before.counted and :counted::bool)::int - before.counted::int,
            spent_microusd = s.spent_microusd + :cost - before.cost_microusd,
            burst_ms = s.burst_ms - case when before.counted and not :counted then :burst_ms::bigint else 0 end
          from before where s.subject = before.subject and s.day = before.day
          returning s.subject
        ), budget_day as (
          update budget_days b set spent_microusd = b.spent_microusd + :cost - before.cost_microusd
          from before, (select count(*) from subject_day) earlier
          where b.day = before.day and before.cost_microusd <> :cost
        )
        update usage_events e
        set outcome = :outcome::text, input_tokens = :input::bigint, cache_write_5m_tokens = :cache_write_5m::bigint,
          cache_write_1h_tokens = :cache_write_1h::bigint, cache_read_tokens = :cache_read::bigint,
          output_tokens = :output::bigint, cost_microusd = :cost::bigint, counted = before.counted and :counted,
          estimated = :estimated::bool, price_date = :price_date::date, saved_microusd = :saved::bigint,
          ended_at = :ended_at::timestamptz, model = :model::text, key_label = coalesce(:key_label::text, e.key_label)
        from before where e.request_id = before.request_id";

    write SettleExpired { now: OffsetDateTime, discussion: Option<Uuid> } -> i64 = "
        with expired as (
          select id from messages
          where status = 'streaming' and lease_expires_at <= :now and (:discussion::uuid is null or discussion_id = :discussion)
          order by lease_expires_at limit 1000 for update skip locked
        ), ended as (
          update messages m
          set lease_expires_at = null, status = case
            when m.stop_requested_at is not null then 'stopped' when btrim(m.content, E' \\t\\r\\n') = '' then 'failed' else 'partial' end
          from expired where m.id = expired.id
          returning m.id, m.status
        ), freed as (
          delete from idempotency_keys k using ended where k.reply_id = ended.id and ended.status = 'failed'
        ), orphaned as (
          -- The reply's discussion was deleted, or the call was no reply, and its process died.
          select e.message_id as id, 'partial' as status, e.kind from usage_events e
          where :discussion is null and e.outcome = 'running' and e.created_at < :now - interval '10 minutes'
            and (e.kind <> 'reply' or not exists (select from messages m where m.id = e.message_id))
        ), settled as (
          update usage_events e
          set outcome = over.status, ended_at = :now, counted = e.counted and over.status <> 'failed'
          from (select id, status, 'reply' as kind from ended union all select id, status, kind from orphaned) over
          where e.message_id = over.id and e.kind = over.kind and e.outcome = 'running'
          returning e.subject, (e.created_at at time zone 'UTC')::date as day,
            e.kind = 'reply' and not e.counted as uncounted
        ), subject_day as (
          update subject_days s set messages = s.messages - failed.messages
          from (select subject, day, count(*) as messages from settled where uncounted group by 1, 2) failed
          where s.subject = failed.subject and s.day = failed.day
        )
        select count(*) from settled";

    read MessagesOfDay { subject: &str, day: time::Date } -> i64 =
        "select messages from subject_days where subject = :subject and day = :day";

    read SpendingOfDay { day: time::Date, month: time::Date } -> Spending = "
        select coalesce((select spent_microusd from budget_days where day = :day), 0) as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between :month and :day) as month";
}
