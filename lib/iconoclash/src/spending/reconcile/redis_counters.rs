//! Compares Redis' counters with the ledger and repairs them.
//!
//! A counter is right if it equals the ledger's sum plus the open holds that the ledger does not have yet, or has at a
//! lower cost. Redis is read first, then its open holds, then the ledger, so a counter that has not changed between its
//! reading and its repair has missed nothing. The ledger's sums and rows come from one statement and so from one moment:
//! a call that began between two statements would be counted twice.

use std::sync::LazyLock;

use time::{Date, Duration, OffsetDateTime};
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use pooled_postgres::{row, sql};

use super::{BATCH, Report, open_holds};
use crate::{
    app::App,
    clock::{month_start, utc_day},
    http::error::{Error, Result},
    redis,
    spending::{
        ledger::Spending,
        open_hold::OpenHold,
        redis_keys::{self, DAY_TTL},
    },
};

static REPAIR_SUBJECT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../lua/repair_subject.lua")));
static REPAIR_BUDGET: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../lua/repair_budget.lua")));

/// How often everybody's spending is read again because it changed before the repair.
const MAX_ATTEMPTS: usize = 5;
/// How far before the last run a subject's last message may be: clocks and runs overlap.
const OVERLAP: Duration = Duration::minutes(10);

pub(super) async fn compare(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let day = utc_day(now);
    let subjects = compare_subjects(app, now, day, report).await;
    let budget = compare_budget(app, day, report).await;
    subjects.and(budget)
}

async fn compare_budget(app: &App, day: Date, report: &mut Report) -> Result<()> {
    for _ in 0..MAX_ATTEMPTS {
        match compare_budget_once(app, day).await? {
            Comparison::Equal => return Ok(()),
            Comparison::Repaired => {
                report.budget_repaired = true;
                return Ok(());
            }
            Comparison::ChangedMeanwhile => {}
        }
    }
    tracing::info!("spending changes too fast to compare it; the next run tries again");
    Ok(())
}

enum Comparison {
    Equal,
    Repaired,
    ChangedMeanwhile,
}

/// Every open hold. Fails if there are more than one run reads.
async fn all_open_holds(app: &App) -> Result<Vec<OpenHold>> {
    match open_holds(app).await? {
        (holds, true) => Ok(holds.into_iter().map(|(hold, _)| hold).collect()),
        (_, false) => Err(Error::unavailable(
            "there are more open holds than one run reads",
        )),
    }
}

/// Compares the subjects that sent something since the run before the last.
async fn compare_subjects(
    app: &App,
    now: OffsetDateTime,
    day: Date,
    report: &mut Report,
) -> Result<()> {
    let yesterday = now - Duration::DAY;
    let last_run = app.db()?.optional(LastRun).await?;
    let since = last_run.unwrap_or(yesterday).max(yesterday) - OVERLAP;
    let subjects = app.db()?.all(ActiveSubjects { since, day }).await?;

    let mut outcome = Ok(());
    for batch in subjects.chunks(BATCH) {
        let repairs = subject_repairs(app, day, batch, report).await?;
        for repaired in app.redis()?.pipeline(&repairs).await? {
            let changed = repaired.as_ref().is_ok_and(|changed| *changed == 1);
            report.subjects_repaired += usize::from(changed);
            outcome = outcome.and(repaired.map(drop).map_err(redis::Error::from));
        }
    }
    Ok(outcome?)
}

/// The commands that repair a batch of subjects.
async fn subject_repairs(
    app: &App,
    day: Date,
    subjects: &[String],
    report: &mut Report,
) -> Result<Vec<Command>> {
    let reads: Vec<Command> = subjects
        .iter()
        .map(|subject| redis_keys::subject_day(subject, day))
        .map(|key| Command::new("HMGET").arg(key).args(["n", "c"]).idempotent())
        .collect();
    let counted = app.redis()?.pipeline(&reads).await?;
    let expected = expected_subject_days(app, day, subjects).await?;

    let mut repairs = Vec::new();
    for (subject, counted) in subjects.iter().zip(counted) {
        let Ok(counted) = counted else { continue };
        // The next message restores a day that Redis has lost.
        let Some(messages) = counted[0].as_str() else {
            continue;
        };
        report.subjects_compared += 1;

        let spent = counted[1].as_str().unwrap_or_default();
        if let Some(row) = expected.iter().find(|row| row.subject == *subject)
            && !row.equals(messages, spent)
        {
            repairs.push(row.repair(day, messages, spent));
        }
    }
    Ok(repairs)
}

async fn expected_subject_days(
    app: &App,
    day: Date,
    subjects: &[String],
) -> Result<Vec<SubjectDay>> {
    let mut holds = all_open_holds(app).await?;
    holds.retain(|hold| hold.day == day);

    let hold_subjects: Vec<&str> = holds.iter().map(|hold| hold.subject.as_str()).collect();
    let requests: Vec<Uuid> = holds.iter().map(|hold| hold.request).collect();
    let amounts: Vec<i64> = holds.iter().map(|hold| hold.amount).collect();
    let are_messages: Vec<bool> = holds.iter().map(|hold| hold.is_message).collect();
    let statement = SubjectDays {
        subjects,
        day,
        hold_subjects: &hold_subjects,
        requests: &requests,
        amounts: &amounts,
        are_messages: &are_messages,
    };
    Ok(app.db()?.all(statement).await?)
}

impl SubjectDay {
    fn equals(&self, messages: &str, spent: &str) -> bool {
        messages.parse() == Ok(self.messages) && spent.parse() == Ok(self.spent_microusd)
    }

    fn repair(&self, day: Date, messages: &str, spent: &str) -> Command {
        let key = redis_keys::subject_day(&self.subject, day);
        let args: [Arg; 4] = [
            messages.into(),
            spent.into(),
            self.messages.into(),
            self.spent_microusd.into(),
        ];
        REPAIR_SUBJECT.command(&[&key], &args).idempotent()
    }
}

async fn compare_budget_once(app: &App, day: Date) -> Result<Comparison> {
    let today_key = redis_keys::day(day);
    let month_key = redis_keys::month(day);
    let read = Command::new("MGET")
        .arg(&today_key)
        .arg(&month_key)
        .args(redis_keys::earlier_days(day));
    let stored: Vec<Option<String>> = app.redis()?.exec(&read.idempotent()).await?;
    let expected = expected_spending(app, day).await?;

    let Some(stored_today) = stored[0].clone() else {
        // Lost, or the day has not begun. The next message restores it.
        return Ok(Comparison::Equal);
    };
    let number = |at: usize| {
        let text = stored[at].as_deref();
        text.and_then(|text| text.parse::<i64>().ok())
            .unwrap_or_default()
    };
    let earlier: i64 = (2..stored.len()).map(number).sum();
    let correction = expected.month - expected.today - earlier;
    if number(0) == expected.today && number(1) == correction {
        return Ok(Comparison::Equal);
    }

    let args: [Arg; 5] = [
        stored_today.into(),
        stored[1].clone().unwrap_or_default().into(),
        expected.today.into(),
        correction.into(),
        DAY_TTL.as_secs().into(),
    ];
    let repair = REPAIR_BUDGET.command(&[&today_key, &month_key], &args);
    match app.redis()?.exec::<i64>(&repair.idempotent()).await? {
        1 => Ok(Comparison::Repaired),
        _ => Ok(Comparison::ChangedMeanwhile),
    }
}

async fn expected_spending(app: &App, day: Date) -> Result<Spending> {
    let month = month_start(day);
    let mut holds = all_open_holds(app).await?;
    holds.retain(|hold| month_start(hold.day) == month);

    let days: Vec<Date> = holds.iter().map(|hold| hold.day).collect();
    let requests: Vec<Uuid> = holds.iter().map(|hold| hold.request).collect();
    let amounts: Vec<i64> = holds.iter().map(|hold| hold.amount).collect();
    let statement = SpendingWithHolds {
        day,
        month,
        days: &days,
        requests: &requests,
        amounts: &amounts,
    };
    Ok(app.db()?.one(statement).await?)
}

row! {
    struct SubjectDay { subject: String, messages: i64, spent_microusd: i64 }
}

sql! {
    /// The run before the last that could ask Redis: what later runs could not compare is still to be compared.
    read LastRun -> OffsetDateTime = "
        select started_at from cron_runs where job = 'reconcile' and report ->> 'redis' is null
        order by started_at desc offset 1 limit 1";

    read ActiveSubjects { since: OffsetDateTime, day: Date } -> String = "
        select distinct subject from usage_events
        where created_at >= greatest(:since, :day::date::timestamp at time zone 'UTC')";

    /// Subjects' days with the day's open holds, as far as the holds exceed their rows in the ledger. A row that is not
    /// there yet has counted nothing.
    read SubjectDays {
        subjects: &[String], day: Date, hold_subjects: &[&str], requests: &[Uuid], amounts: &[i64], are_messages: &[bool],
    } -> SubjectDay = "
        select who.subject, coalesce(d.messages, 0) + coalesce(o.messages, 0) as messages,
          coalesce(d.spent_microusd, 0) + coalesce(o.money, 0) as spent_microusd
        from unnest(:subjects::text[]) as who (subject)
        left join subject_days d on d.subject = who.subject and d.day = :day
        left join (
          select h.subject, sum(h.amount - coalesce(e.cost_microusd, 0))::bigint as money,
            count(*) filter (where h.is_message and not coalesce(e.counted, false)) as messages
          from unnest(:hold_subjects::text[], :requests::uuid[], :amounts::bigint[], :are_messages::bool[])
            as h (subject, request_id, amount, is_message)
          left join usage_events e on e.request_id = h.request_id
          group by h.subject
        ) o on o.subject = who.subject";

    /// Everybody's day and month with the month's open holds, likewise.
    read SpendingWithHolds {
        day: Date, month: Date, days: &[Date], requests: &[Uuid], amounts: &[i64],
    } -> Spending = "
        select
          coalesce((select spent_microusd from budget_days where day = :day), 0)
            + coalesce(sum(o.money) filter (where o.day = :day), 0)::bigint as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between :month and :day)
            + coalesce(sum(o.money), 0)::bigint as month
        from (
          select h.day, h.amount - coalesce(e.cost_microusd, 0) as money
          from unnest(:days::date[], :requests::uuid[], :amounts::bigint[]) as h (day, request_id, amount)
          left join usage_events e on e.request_id = h.request_id
        ) o";
}
