//! What Redis counts, compared with the ledger. A counter is right if it is the ledger's plus the holds that are open in
//! Redis and lower, or not there yet, in the ledger. Redis is read first, then its open holds, then the ledger; a counter
//! that has not changed from its reading to its repair has missed nothing in between. The ledger's sums and its rows of
//! open holds are one statement's, and so of one moment: a message that began between two would be in the sums, and
//! among the holds that the ledger does not know as well.

use std::sync::LazyLock;
use time::{Date, Duration, OffsetDateTime};
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use super::{BATCH, Report, open_holds};
use pooled_postgres::{ToSql, row, sql_positional};

use crate::{
    app::App,
    clock::{month_start, utc_day},
    http::error::{Error, Result},
    redis,
    spending::{
        admission::stored::{self, KEEP_DAY, OpenHold},
        budgets::Spending,
    },
};

static REPAIR_SUBJECT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("repair_subject.lua")));
static REPAIR_BUDGET: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("repair_budget.lua")));

/// How often everybody's spending is read again because somebody spent meanwhile.
const ATTEMPTS: usize = 5;

pub(super) async fn compare(app: &App, now: OffsetDateTime, report: &mut Report) -> Result<()> {
    let day = utc_day(now);
    let subjects = compare_subjects(app, now, day, report).await;
    subjects.and(compare_budget(app, day, report).await)
}

async fn compare_budget(app: &App, day: Date, report: &mut Report) -> Result<()> {
    for _ in 0..ATTEMPTS {
        match compare_budget_once(app, day).await? {
            Compared::Right => return Ok(()),
            Compared::Repaired => {
                report.budget_repaired = true;
                return Ok(());
            }
            Compared::Changed => {}
        }
    }
    tracing::info!(
        "everybody's spending changes too fast to be compared with the ledger; the next run tries again"
    );
    Ok(())
}

enum Compared {
    Right,
    Repaired,
    Changed,
}

/// Every open hold, or none to compare with.
async fn open_now(app: &App) -> Result<Vec<OpenHold>> {
    match open_holds(app).await? {
        (holds, true) => Ok(holds.into_iter().map(|(hold, _)| hold).collect()),
        (_, false) => Err(Error::unavailable(
            "there are more open holds than one run reads",
        )),
    }
}

/// Those who sent something since the run before the last.
async fn compare_subjects(
    app: &App,
    now: OffsetDateTime,
    day: Date,
    report: &mut Report,
) -> Result<()> {
    let since = app
        .db()?
        .old_optional(&LAST_RUN, &[])
        .await?
        .unwrap_or(now - Duration::DAY);
    let since = since.max(now - Duration::DAY) - Duration::minutes(10);
    let subjects = app.db()?.old_all(&ACTIVE_SUBJECTS, &[&since, &day]).await?;
    let mut outcome = Ok(());
    for batch in subjects.chunks(BATCH) {
        let read = batch.iter().map(|subject| {
            Command::new("HMGET")
                .arg(stored::subject_key(subject, day))
                .args(["n", "c"])
                .idempotent()
        });
        let counted = app.redis()?.pipeline(&read.collect::<Vec<_>>()).await?;
        let open: Vec<OpenHold> = open_now(app)
            .await?
            .into_iter()
            .filter(|hold| hold.day == day)
            .collect();
        let whose: Vec<&str> = open.iter().map(|hold| hold.subject.as_str()).collect();
        let requests: Vec<Uuid> = open.iter().map(|hold| hold.request).collect();
        let amounts: Vec<i64> = open.iter().map(|hold| hold.amount).collect();
        let are_messages: Vec<bool> = open.iter().map(|hold| hold.is_message).collect();
        let right = [
            &batch as &(dyn ToSql + Sync),
            &day,
            &whose,
            &requests,
            &amounts,
            &are_messages,
        ];
        let right = app.db()?.old_all(&SUBJECT_DAYS, &right).await?;
        let mut repairs = Vec::new();
        for (subject, counted) in batch.iter().zip(counted) {
            let Ok(counted) = counted else { continue };
            // A day that Redis does not have is raised by the next send.
            let Some(messages) = counted[0].as_str() else {
                continue;
            };
            let spent = counted[1].as_str().unwrap_or_default();
            report.subjects_compared += 1;
            let Some(right) = right.iter().find(|row| row.subject == *subject) else {
                continue;
            };
            if (messages.parse(), spent.parse()) != (Ok(right.messages), Ok(right.spent_microusd)) {
                let args: [Arg; 4] = [
                    messages.into(),
                    spent.into(),
                    right.messages.into(),
                    right.spent_microusd.into(),
                ];
                repairs.push(
                    REPAIR_SUBJECT
                        .command(&[&stored::subject_key(subject, day)], &args)
                        .idempotent(),
                );
            }
        }
        for repaired in app.redis()?.pipeline(&repairs).await? {
            report.subjects_repaired +=
                usize::from(repaired.as_ref().is_ok_and(|repaired| *repaired == 1));
            outcome = outcome.and(repaired.map(drop).map_err(redis::Error::from));
        }
    }
    Ok(outcome?)
}

async fn compare_budget_once(app: &App, day: Date) -> Result<Compared> {
    let (today_key, month_key) = (stored::day_key(day), stored::month_key(day));
    let read = Command::new("MGET")
        .arg(&today_key)
        .arg(&month_key)
        .args(stored::earlier_days(day))
        .idempotent();
    let known: Vec<Option<String>> = app.redis()?.exec(&read).await?;
    let of_month = |hold: &OpenHold| month_start(hold.day) == month_start(day);
    let open: Vec<OpenHold> = open_now(app).await?.into_iter().filter(of_month).collect();
    let days: Vec<Date> = open.iter().map(|hold| hold.day).collect();
    let requests: Vec<Uuid> = open.iter().map(|hold| hold.request).collect();
    let amounts: Vec<i64> = open.iter().map(|hold| hold.amount).collect();
    let right = [
        &day as &(dyn ToSql + Sync),
        &month_start(day),
        &days,
        &requests,
        &amounts,
    ];
    let right: Spending = app.db()?.old_one(&SPENDING, &right).await?;
    let number = |at: usize| {
        known[at]
            .as_deref()
            .and_then(|text| text.parse::<i64>().ok())
            .unwrap_or_default()
    };
    let Some(known_today) = known[0].clone() else {
        // Lost, or the day has not begun: the next send raises it.
        return Ok(Compared::Right);
    };
    let earlier: i64 = (2..known.len()).map(number).sum();
    let right_rest = right.month - right.today - earlier;
    if (number(0), number(1)) == (right.today, right_rest) {
        return Ok(Compared::Right);
    }
    let args: [Arg; 5] = [
        known_today.into(),
        known[1].clone().unwrap_or_default().into(),
        right.today.into(),
        right_rest.into(),
        KEEP_DAY.as_secs().into(),
    ];
    let repair = REPAIR_BUDGET
        .command(&[&today_key, &month_key], &args)
        .idempotent();
    match app.redis()?.exec::<i64>(&repair).await? {
        1 => Ok(Compared::Repaired),
        _ => Ok(Compared::Changed),
    }
}

row! {
    struct SubjectDay { subject: String, messages: i64, spent_microusd: i64 }
}

sql_positional! {
    /// Of the runs that could ask Redis: what the others left uncompared is still to be compared.
    read LAST_RUN() -> OffsetDateTime = "
        select started_at from cron_runs where job = 'reconcile' and report ->> 'redis' is null
        order by started_at desc offset 1 limit 1";

    read ACTIVE_SUBJECTS(TIMESTAMPTZ, DATE) -> String = "
        select distinct subject from usage_events
        where created_at >= greatest($1, $2::date::timestamp at time zone 'UTC')";

    /// What subjects' days come to with the open holds of that day, as far as these are beyond their rows in the ledger:
    /// a row that is not there yet has counted nothing.
    read SUBJECT_DAYS(TEXT_ARRAY, DATE, TEXT_ARRAY, UUID_ARRAY, INT8_ARRAY, BOOL_ARRAY) -> SubjectDay = "
        select who.subject, coalesce(d.messages, 0) + coalesce(o.messages, 0) as messages,
          coalesce(d.spent_microusd, 0) + coalesce(o.money, 0) as spent_microusd
        from unnest($1::text[]) as who (subject)
        left join subject_days d on d.subject = who.subject and d.day = $2
        left join (
          select h.subject, sum(h.amount - coalesce(e.cost_microusd, 0))::bigint as money,
            count(*) filter (where h.is_message and not coalesce(e.counted, false)) as messages
          from unnest($3::text[], $4::uuid[], $5::bigint[], $6::bool[]) as h (subject, request_id, amount, is_message)
          left join usage_events e on e.request_id = h.request_id
          group by h.subject
        ) o on o.subject = who.subject";

    /// What everybody's day and month come to with the month's open holds, likewise.
    read SPENDING(DATE, DATE, DATE_ARRAY, UUID_ARRAY, INT8_ARRAY) -> Spending = "
        select
          coalesce((select spent_microusd from budget_days where day = $1), 0)
            + coalesce(sum(o.money) filter (where o.day = $1), 0)::bigint as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between $2 and $1)
            + coalesce(sum(o.money), 0)::bigint as month
        from (
          select h.day, h.amount - coalesce(e.cost_microusd, 0) as money
          from unnest($3::date[], $4::uuid[], $5::bigint[]) as h (day, request_id, amount)
          left join usage_events e on e.request_id = h.request_id
        ) o";
}
