//! What Redis counts, compared with the ledger. A counter is right if it is the ledger's plus the holds that are open in
//! Redis and lower, or not there yet, in the ledger. Redis is read first, then its open holds, then the ledger; a counter
//! that has not changed from its reading to its repair has missed nothing in between.

use std::{collections::HashMap, sync::LazyLock};
use time::{Date, Duration, OffsetDateTime};
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use super::{BATCH, BY_REQUEST, LedgerRow, Report, open_holds};
use crate::{
    admission::stored::{self, KEEP_DAY, OpenHold},
    app::App,
    budget::{self, Spending},
    error::Result,
    redis, row, sql,
};

static REPAIR_SUBJECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("repair_subject.lua")));
static REPAIR_BUDGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("repair_budget.lua")));

/// How often everybody's spending is read again because somebody spent meanwhile.
const ATTEMPTS: usize = 5;

pub(super) async fn compare(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let day = budget::day(now);
    compare_subjects(app, now, day, report).await?;
    for _ in 0..ATTEMPTS {
        match compare_budget(app, day).await? {
            Compared::Right => return Ok(()),
            Compared::Repaired => {
                report.budget_repaired = true;
                return Ok(());
            }
            Compared::Changed => {}
        }
    }
    tracing::info!("everybody's spending changes too fast to be compared with the ledger; the next run tries again");
    Ok(())
}

enum Compared {
    Right,
    Repaired,
    Changed,
}

/// What the open holds add to the ledger: how many messages, and how much money.
fn beyond<'a>(open: impl Iterator<Item = &'a OpenHold>, ledger: &HashMap<Uuid, LedgerRow>) -> (i64, i64) {
    open.fold((0, 0), |(messages, money), hold| {
        let row = ledger.get(&hold.request);
        let uncounted = hold.is_message && row.is_none_or(|row| !row.counted);
        (messages + i64::from(uncounted), money + hold.amount - row.map_or(0, |row| row.cost_microusd))
    })
}

async fn ledger_of(app: &App, open: &[OpenHold]) -> Result<HashMap<Uuid, LedgerRow>> {
    let requests: Vec<Uuid> = open.iter().map(|hold| hold.request).collect();
    let rows = app.db()?.all(&BY_REQUEST, &[&requests]).await?;
    Ok(rows.into_iter().map(|row| (row.request_id, row)).collect())
}

async fn open_now(app: &App) -> Result<Vec<OpenHold>> {
    Ok(open_holds(app).await?.into_iter().map(|(hold, _)| hold).collect())
}

/// Those who sent something since the run before the last.
async fn compare_subjects(app: &App, now: OffsetDateTime, day: Date, report: &mut Report) -> Result<()> {
    let since = app.db()?.optional(&LAST_RUN, &[]).await?.unwrap_or(now - Duration::DAY);
    let since = since.max(now - Duration::DAY) - Duration::minutes(10);
    let subjects = app.db()?.all(&ACTIVE_SUBJECTS, &[&since, &day]).await?;
    for batch in subjects.chunks(BATCH) {
        let read = batch
            .iter()
            .map(|subject| Command::new("HMGET").arg(stored::subject_key(subject, day)).args(["n", "c"]).idempotent());
        let counted = app.redis()?.pipeline(&read.collect::<Vec<_>>()).await?;
        let open = open_now(app).await?;
        let ledger = ledger_of(app, &open).await?;
        let days = app.db()?.all(&SUBJECT_DAYS, &[&batch, &day]).await?;
        let mut repairs = Vec::new();
        for (subject, counted) in batch.iter().zip(counted) {
            let Ok(counted) = counted else { continue };
            // A day that Redis does not have is raised by the next send.
            let Some(messages) = counted[0].as_str() else { continue };
            let spent = counted[1].as_str().unwrap_or_default();
            report.subjects_compared += 1;
            let (more, money) = beyond(open.iter().filter(|hold| hold.subject == *subject && hold.day == day), &ledger);
            let truth = days.iter().find(|row| row.subject == *subject);
            let right = truth.map_or((more, money), |row| (row.messages + more, row.spent_microusd + money));
            if (messages.parse(), spent.parse()) != (Ok(right.0), Ok(right.1)) {
                let args: [Arg; 4] = [messages.into(), spent.into(), right.0.into(), right.1.into()];
                repairs.push(REPAIR_SUBJECT.command(&[&stored::subject_key(subject, day)], &args).idempotent());
            }
        }
        for repaired in app.redis()?.pipeline(&repairs).await? {
            let repaired = repaired.map_err(redis::Error::from)?;
            report.subjects_repaired += usize::from(repaired == 1);
        }
    }
    Ok(())
}

async fn compare_budget(app: &App, day: Date) -> Result<Compared> {
    let (today_key, month_key) = (stored::day_key(day), stored::month_key(day));
    let read = Command::new("MGET").arg(&today_key).arg(&month_key).args(stored::earlier_days(day)).idempotent();
    let known: Vec<Option<String>> = app.redis()?.exec(&read).await?;
    let open = open_now(app).await?;
    let ledger = ledger_of(app, &open).await?;
    let Spending { today, month } = app.db()?.one(&budget::SPENDING, &[&day, &budget::month(day)]).await?;
    let number = |at: usize| known[at].as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
    let Some(known_today) = known[0].clone() else {
        // Lost, or the day has not begun: the next send raises it.
        return Ok(Compared::Right);
    };
    let (_, beyond_today) = beyond(open.iter().filter(|hold| hold.day == day), &ledger);
    let of_month = open.iter().filter(|hold| budget::month(hold.day) == budget::month(day));
    let (_, beyond_month) = beyond(of_month, &ledger);
    let right_today = today + beyond_today;
    let earlier: i64 = (2..known.len()).map(number).sum();
    let right_rest = month + beyond_month - right_today - earlier;
    if (number(0), number(1)) == (right_today, right_rest) {
        return Ok(Compared::Right);
    }
    let args: [Arg; 5] = [
        known_today.into(),
        known[1].clone().unwrap_or_default().into(),
        right_today.into(),
        right_rest.into(),
        KEEP_DAY.as_secs().into(),
    ];
    let repair = REPAIR_BUDGET.command(&[&today_key, &month_key], &args).idempotent();
    match app.redis()?.exec::<i64>(&repair).await? {
        1 => Ok(Compared::Repaired),
        _ => Ok(Compared::Changed),
    }
}

row! {
    struct SubjectDay { subject: String, messages: i64, spent_microusd: i64 }
}

sql! {
    /// Of the runs that could ask Redis: what the others left uncompared is still to be compared.
    read LAST_RUN() -> OffsetDateTime = "
        select started_at from cron_runs where job = 'reconcile' and report ->> 'redis' is null
        order by started_at desc offset 1 limit 1";

    read ACTIVE_SUBJECTS(TIMESTAMPTZ, DATE) -> String = "
        select distinct subject from usage_events
        where created_at >= greatest($1, $2::date::timestamp at time zone 'UTC')";

    read SUBJECT_DAYS(TEXT_ARRAY, DATE) -> SubjectDay = "
        select subject, messages, spent_microusd from subject_days where day = $2 and subject = any($1::text[])";
}
