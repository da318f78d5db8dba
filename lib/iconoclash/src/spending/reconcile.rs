//! Repairs what crashes and outages leave behind.
//!
//! Replies whose process died are ended, open holds are settled, Redis' counters are compared with the ledger, and Stripe
//! is asked about subscriptions whose events were lost. Safe to run twice and concurrently: a reply is ended by one
//! statement, a hold settles once, and a counter is set only if it has not changed since it was read.

mod redis_counters;

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use time::{Duration, OffsetDateTime};
use upstash_redis_rs::Command;
use utoipa::ToSchema;
use uuid::Uuid;

use pooled_postgres::{row, sql};

use crate::{
    app::App,
    billing::{self, RefreshReport},
    cache,
    clock::epoch_ms,
    http::{
        error::{Error, Result},
        request_log,
    },
    redis,
    spending::{ledger, open_hold::OpenHold, redis_keys::OPEN_HOLDS},
};

/// A hold that is older than this and has no ledger row belongs to a process that died before it wrote one.
const MAX_AGE_WITHOUT_ROW: Duration = Duration::minutes(2);
/// How long a counter of a rate limit is kept in Postgres after its last use.
const RATE_LIMIT_TTL: Duration = Duration::DAY;
/// Commands of one pipeline.
const BATCH: usize = 100;
/// Holds of one Redis response, whose limit of a mebibyte allows some 9,000.
const PAGE: usize = 2_000;
/// Pages that one run reads; the rest is left for the next run.
const MAX_PAGES: usize = 10;

/// What one run did.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Report {
    /// Replies whose process had died.
    replies_ended: i64,
    /// Holds of ended replies that were not settled.
    holds_settled: usize,
    /// Holds without a call.
    holds_dropped: usize,
    /// Cached values that Redis now knows to be stale.
    stale_values: usize,
    /// Subjects whose day was compared with the ledger.
    subjects_compared: usize,
    /// Subjects whose day differed and was repaired.
    subjects_repaired: usize,
    /// Whether everybody's spending differed and was repaired.
    budget_repaired: bool,
    /// Customers that Stripe was asked about because no event came.
    subscriptions_confirmed: usize,
    /// Customers whose plan differed from Stripe's.
    subscriptions_healed: usize,
    /// Customers that Stripe could not be asked about; they are tried again.
    subscriptions_failed: usize,
    /// `unavailable` or `failed`, if a step on Redis did not run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<String>,
}

/// Runs every step, whatever becomes of the others, and returns the first failure. An unreachable Redis is no failure.
pub async fn run(app: &App) -> Result<Report> {
    let started = app.now();
    let mut report = Report::default();

    let replies = end_expired(app, None)
        .await
        .map(|ended| report.replies_ended = ended);
    let limits = forget_rate_limits(app, started).await;
    let redis = reconcile_redis_if_available(app, started, &mut report).await;
    let subscriptions = billing::refresh_due(app)
        .await
        .map(|refreshed| report.count_subscriptions(&refreshed));
    let recorded = record_run(app, started, &report).await;

    replies
        .and(limits)
        .and(redis)
        .and(subscriptions)
        .and(recorded)?;
    Ok(report)
}

impl Report {
    fn count_subscriptions(&mut self, refreshed: &RefreshReport) {
        self.subscriptions_confirmed = refreshed.checked;
        self.subscriptions_healed = refreshed.healed;
        self.subscriptions_failed = refreshed.failed;
    }
}

/// Ends replies whose lease ran out, of one discussion or of all.
pub(crate) async fn end_expired(app: &App, discussion: Option<Uuid>) -> Result<i64> {
    Ok(ledger::settle_expired(app.db()?, app.now(), discussion).await?)
}

async fn forget_rate_limits(app: &App, now: OffsetDateTime) -> Result<()> {
    let before_ms = epoch_ms(now - RATE_LIMIT_TTL);
    app.db()?.execute(ForgetRateLimits { before_ms }).await?;
    Ok(())
}

async fn record_run(app: &App, started: OffsetDateTime, report: &Report) -> Result<()> {
    let report = serde_json::to_value(report).map_err(Error::internal)?;
    let run = RecordRun {
        id: app.new_id(),
        job: "reconcile",
        started_at: started,
        ended_at: app.now(),
        report,
    };
    app.db()?.execute(run).await?;
    Ok(())
}

async fn reconcile_redis_if_available(
    app: &App,
    now: OffsetDateTime,
    report: &mut Report,
) -> Result<()> {
    match reconcile_redis(app, now, report).await {
        Ok(()) => Ok(()),
        Err(Error::Unavailable { cause, .. }) => {
            let cause = request_log::error_chain(cause.as_ref());
            tracing::warn!(cause, "Redis is unavailable and was not reconciled");
            report.redis = Some("unavailable".to_owned());
            Ok(())
        }
        Err(error) => {
            report.redis = Some("failed".to_owned());
            Err(error)
        }
    }
}

async fn reconcile_redis(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let stale = cache::flush_pending_invalidations(app)
        .await
        .map(|values| report.stale_values = values);
    let holds = settle_open_holds(app, now, report).await;
    let counters = redis_counters::compare(app, now, report).await;
    stale.and(holds).and(counters)
}

/// Settles holds whose call has ended, and drops holds whose call was never made.
async fn settle_open_holds(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let (holds, _) = open_holds(app).await?;
    let requests: Vec<Uuid> = holds.iter().map(|(hold, _)| hold.request).collect();
    let requests = requests.as_slice();
    let rows = app.db()?.all(CallsByRequest { requests }).await?;
    let calls: HashMap<Uuid, CallRow> = rows.into_iter().map(|row| (row.request_id, row)).collect();

    let dead_before_ms = epoch_ms(now - MAX_AGE_WITHOUT_ROW);
    let mut commands = Vec::new();
    for (hold, admitted_ms) in &holds {
        match calls.get(&hold.request) {
            Some(call) if call.running => {}
            Some(call) => {
                report.holds_settled += 1;
                let cost = call.cost_microusd;
                commands.push(match hold.is_message && !call.counted {
                    true => hold.settle_uncounted(cost, 0),
                    false => hold.settle(cost),
                });
            }
            None if *admitted_ms < dead_before_ms => {
                report.holds_dropped += 1;
                commands.push(match hold.is_message {
                    true => hold.settle_uncounted(0, 0),
                    false => hold.settle(0),
                });
            }
            None => {}
        }
    }

    let mut outcome = Ok(());
    for batch in commands.chunks(BATCH) {
        for settled in app.redis()?.pipeline(batch).await? {
            outcome = outcome.and(settled.map(drop).map_err(redis::Error::from));
        }
    }
    Ok(outcome?)
}

/// Open holds with their time of admission, oldest first, and whether these are all.
///
/// The next page starts at the time at which the last one ended, not at a rank: a rank moves with every hold that is
/// settled in between, and a hold would be skipped.
async fn open_holds(app: &App) -> Result<(Vec<(OpenHold, i64)>, bool)> {
    let mut holds = Vec::new();
    let mut seen = HashSet::new();
    let mut from = "-inf".to_owned();

    for _ in 0..MAX_PAGES {
        let range = Command::new("ZRANGE")
            .arg(OPEN_HOLDS)
            .args([from.as_str(), "+inf", "BYSCORE", "LIMIT", "0"])
            .arg(PAGE)
            .arg("WITHSCORES");
        let words: Vec<String> = app.redis()?.exec(&range.idempotent()).await?;

        let scores = words.iter().skip(1);
        for (member, score) in words.iter().zip(scores).step_by(2) {
            if seen.insert(member.clone())
                && let Some(hold) = OpenHold::parse(member)
                && let Ok(admitted_ms) = score.parse::<f64>()
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
    struct CallRow { request_id: Uuid, running: bool, counted: bool, cost_microusd: i64 }
}

sql! {
    read CallsByRequest { requests: &[Uuid] } -> CallRow = "
        select request_id, outcome = 'running' as running, counted, cost_microusd
        from usage_events where request_id = any(:requests::uuid[])";

    write ForgetRateLimits { before_ms: i64 } -> () =
        "delete from rate_limits where arrival_ms < :before_ms";

    /// The job runs each minute, so a week of runs is enough.
    write RecordRun {
        id: Uuid, job: &str, started_at: OffsetDateTime, ended_at: OffsetDateTime, report: serde_json::Value,
    } -> () = "
        with old as (
          delete from cron_runs where job = :job and started_at < :started_at::timestamptz - interval '7 days'
        )
        insert into cron_runs (id, job, started_at, ended_at, report)
        values (:id, :job, :started_at, :ended_at, :report)";
}
