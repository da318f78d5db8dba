//! What crashes and outages left behind, put right: replies whose process died are ended, holds that nobody settled are,
//! what Redis counts is compared with the ledger, and Stripe is asked about subscriptions of which no event told.
//!
//! Safe to run twice and at the same time: a reply is ended by one statement, a hold settles once, and a counter is set
//! only if nobody has changed it since it was read.

mod counters;

use serde::Serialize;
use std::collections::{HashMap, HashSet};
use time::{Duration, OffsetDateTime};
use upstash_redis_rs::Command;
use utoipa::ToSchema;
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    billing::{self, Confirmed},
    cache,
    clock::epoch_ms,
    http::{
        error::{Error, Result},
        request_log,
    },
    redis,
    spending::admission::stored::{OPEN_HOLDS, OpenHold},
};

/// A hold without a row in the ledger belongs to a process that died before it wrote one, which takes seconds.
const ADMITTED_WITHOUT_ROW: Duration = Duration::minutes(2);
/// Commands of one pipeline.
const BATCH: usize = 100;
/// Holds of one answer of Redis, which may have a mebibyte: some 9,000 of them.
const PAGE: usize = 2_000;
/// Answers that one run reads; what is beyond them is left for the next.
const PAGES: usize = 10;

/// What was done.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Report {
    /// Replies whose process had died.
    replies_ended: i64,
    /// Holds whose reply had ended without settling them.
    holds_settled: usize,
    /// Holds that came to nothing.
    holds_dropped: usize,
    /// Cached values of which Redis was told late that they were stale.
    stale_values: usize,
    /// Subjects whose day was compared with the ledger.
    subjects_compared: usize,
    /// Those that differed and were set right.
    subjects_repaired: usize,
    /// Whether everybody's spending differed and was set right.
    budget_repaired: bool,
    /// Customers of whom Stripe was asked because no event came.
    subscriptions_confirmed: usize,
    /// Those whose plan was another one than Stripe's.
    subscriptions_healed: usize,
    /// Those of whom Stripe could not be asked; they are tried again.
    subscriptions_failed: usize,
    /// Why Redis was left as it is, or a part of it: it could not be asked, or a step failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<String>,
}

/// Puts right what there is. Each step runs whatever became of the others; the first failure is the run's, but not that
/// Redis could not be asked.
pub async fn run(app: &App) -> Result<Report> {
    let (started, db) = (app.now(), app.db()?);
    let mut report = Report::default();
    let ended = end_expired(app, None)
        .await
        .map(|ended| report.replies_ended = ended);
    let forgotten = db
        .old_execute(&FORGET_LIMITS, &[&epoch_ms(started - Duration::DAY)])
        .await;
    let redis = match reconcile_redis(app, started, &mut report).await {
        Err(Error::Unavailable { cause, .. }) => {
            tracing::warn!(
                cause = request_log::error_chain(cause.as_ref()),
                "Redis is left as it is"
            );
            report.redis = Some("unavailable".to_owned());
            Ok(())
        }
        Err(cause) => {
            report.redis = Some("failed".to_owned());
            Err(cause)
        }
        Ok(()) => Ok(()),
    };
    let confirmed = billing::confirm_stale(app).await.map(
        |Confirmed {
             asked,
             healed,
             failed,
         }| {
            (
                report.subscriptions_confirmed,
                report.subscriptions_healed,
                report.subscriptions_failed,
            ) = (asked, healed, failed);
        },
    );
    let told = serde_json::to_value(&report).map_err(|error| Error::Internal(error.into()))?;
    let noted = db
        .old_execute(
            &NOTE_RUN,
            &[&app.new_id(), &"reconcile", &started, &app.now(), &told],
        )
        .await;
    ended
        .and(forgotten.map_err(Error::from))
        .and(redis)
        .and(confirmed)
        .and(noted.map_err(Error::from))?;
    Ok(report)
}

/// Ends replies whose lease ran out, of one discussion or of all. What was written stays, the ledger keeps the most that
/// the call can have cost, and where nothing was written the message does not count.
pub async fn end_expired(app: &App, discussion: Option<Uuid>) -> Result<i64> {
    Ok(app
        .db()?
        .old_one(&END_EXPIRED, &[&app.now(), &discussion])
        .await?)
}

async fn reconcile_redis(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let told = cache::flush_pending_invalidations(app)
        .await
        .map(|told| report.stale_values = told);
    let settled = settle_open_holds(app, now, report).await;
    let compared = counters::compare(app, now, report).await;
    told.and(settled).and(compared)
}

/// Holds whose reply has ended are settled, and those of which no reply came are dropped.
async fn settle_open_holds(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let (open, _) = open_holds(app).await?;
    let requests: Vec<Uuid> = open.iter().map(|(hold, _)| hold.request).collect();
    let ledger = app.db()?.old_all(&BY_REQUEST, &[&requests]).await?;
    let ledger: HashMap<Uuid, LedgerRow> = ledger
        .into_iter()
        .map(|row| (row.request_id, row))
        .collect();
    let mut settling = Vec::new();
    for (hold, admitted_ms) in &open {
        match ledger.get(&hold.request) {
            Some(row) if row.running => {}
            Some(row) => {
                report.holds_settled += 1;
                settling.push(hold.settle(row.cost_microusd, hold.is_message && !row.counted));
            }
            None if *admitted_ms < epoch_ms(now - ADMITTED_WITHOUT_ROW) => {
                report.holds_dropped += 1;
                settling.push(hold.settle(0, hold.is_message));
            }
            None => {}
        }
    }
    let mut outcome = Ok(());
    for batch in settling.chunks(BATCH) {
        for settled in app.redis()?.pipeline(batch).await? {
            outcome = outcome.and(settled.map(drop).map_err(redis::Error::from));
        }
    }
    Ok(outcome?)
}

/// Open holds and when they were admitted, oldest first, and whether these are all.
///
/// The next page begins with the time at which the last one ended, not with a rank: ranks sink with every hold that is
/// settled meanwhile, and one would be passed over. So what was in the set all the time is read.
async fn open_holds(app: &App) -> Result<(Vec<(OpenHold, i64)>, bool)> {
    let (mut holds, mut seen, mut from) = (Vec::new(), HashSet::new(), "-inf".to_owned());
    for _ in 0..PAGES {
        let range = Command::new("ZRANGE").arg(OPEN_HOLDS).args([
            from.as_str(),
            "+inf",
            "BYSCORE",
            "LIMIT",
            "0",
        ]);
        let words: Vec<String> = app
            .redis()?
            .exec(&range.arg(PAGE).arg("WITHSCORES").idempotent())
            .await?;
        for (member, score) in words.iter().zip(words.iter().skip(1)).step_by(2) {
            if seen.insert(member.clone())
                && let (Some(hold), Ok(admitted_ms)) =
                    (OpenHold::parse(member), score.parse::<f64>())
            {
                holds.push((hold, admitted_ms as i64));
            }
        }
        match words.last() {
            Some(last) if words.len() >= 2 * PAGE => from.clone_from(last),
            _ => return Ok((holds, true)),
        }
    }
    Ok((holds, false))
}

row! {
    struct LedgerRow { request_id: Uuid, running: bool, counted: bool, cost_microusd: i64 }
}

sql_positional! {
    /// A slow producer that still lives writes its own end over this one.
    write END_EXPIRED(TIMESTAMPTZ, UUID) -> i64 = "
        with expired as (
          select id from messages
          where status = 'streaming' and lease_expires_at <= $1 and ($2::uuid is null or discussion_id = $2)
          order by lease_expires_at limit 1000 for update skip locked
        ), ended as (
          update messages m
          set lease_expires_at = null, status = case
            when m.stop_requested_at is not null then 'stopped' when m.content = '' then 'failed' else 'partial' end
          from expired where m.id = expired.id
          returning m.id, m.status
        ), freed as (
          delete from idempotency_keys k using ended where k.reply_id = ended.id and ended.status = 'failed'
        ), orphaned as (
          -- Its discussion was deleted while it ran, or it was no reply, whose process died all the same.
          select e.message_id as id, 'partial' as status, e.kind from usage_events e
          where $2::uuid is null and e.outcome = 'running' and e.created_at < $1 - interval '10 minutes'
            and (e.kind <> 'reply' or not exists (select from messages m where m.id = e.message_id))
        ), told as (
          update usage_events e
          set outcome = over.status, ended_at = $1, counted = e.counted and over.status <> 'failed'
          from (select id, status, 'reply' as kind from ended union all select id, status, kind from orphaned) over
          where e.message_id = over.id and e.kind = over.kind and e.outcome = 'running'
          returning e.subject, (e.created_at at time zone 'UTC')::date as day, e.kind = 'reply' and not e.counted as failed
        ), given_back as (
          update subject_days s set messages = s.messages - uncounted.messages
          from (select subject, day, count(*) as messages from told where failed group by 1, 2) uncounted
          where s.subject = uncounted.subject and s.day = uncounted.day
        )
        select count(*) from told";

    read BY_REQUEST(UUID_ARRAY) -> LedgerRow = "
        select request_id, outcome = 'running' as running, counted, cost_microusd
        from usage_events where request_id = any($1::uuid[])";

    write FORGET_LIMITS(INT8) -> () = "delete from rate_limits where arrival_ms < $1";

    /// A job that runs each minute leaves many rows; those of a week tell enough.
    write NOTE_RUN(UUID, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, JSONB) -> () = "
        with old as (
          delete from cron_runs where job = $2 and started_at < $3::timestamptz - interval '7 days'
        )
        insert into cron_runs (id, job, started_at, ended_at, report) values ($1, $2, $3, $4, $5)";
}
