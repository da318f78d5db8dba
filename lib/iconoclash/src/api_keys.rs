//! The keys of Claude: those of the environment and those that operators add while everything runs, and what instances
//! tell each other of them.
//!
//! Nothing here is waited for by a message, but by the first of a process, or of one that stood idle: which keys there
//! are, it learns while admission is asked. Everything else happens beside a reply. Without Postgres the keys that were
//! known last go on; without Redis the deadlines hold in this process.

mod seal;
pub mod store;
pub(crate) mod sync_state;

use std::{collections::HashSet, pin::pin};
use time::{Duration, OffsetDateTime};
use upstash_redis_rs::Command;

use self::{seal::Seal, sync_state::is_due};
use claude::{Alarm, ApiKey, Deadline, Outcome, Pool};
use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    clock::epoch_ms,
    http::error::{Error, Result},
    notify::alert::{self, Alert},
};

/// The deadlines that all instances know: a sorted set of scopes by the moment, in epoch milliseconds, that ends each.
pub(crate) const COOLING: &str = "{keys}:cooling";
/// Longer than the month that a spend limit may last.
const KEEP_COOLING_SECS: u32 = 40 * 24 * 3600;
/// Keys are looked for this often.
const LOAD_EVERY: Duration = Duration::seconds(15);
/// Deadlines are asked for this often, and told at most once a second.
const ASK_EVERY: Duration = Duration::seconds(10);
const TELL_EVERY: Duration = Duration::seconds(1);

/// The keys, as they were less than a minute ago.
pub async fn ready(app: &App) -> Result<&Pool> {
    let (pool, following) = (app.claude()?, app.key_sync());
    if following.times().is_stale(app.now()) {
        let _turn = following.loading.lock().await;
        // Whoever had the turn before may have done it.
        if following.times().is_stale(app.now()) {
            Box::pin(load(app, pool)).await;
        }
    }
    Ok(pool)
}

/// The keys as they are now, with what other instances know of them.
pub async fn up_to_date(app: &App) -> Result<&Pool> {
    let pool = ready(app).await?;
    follow(app, pool).await;
    Ok(pool)
}

/// Does the work, and follows beside it: what is due at its beginning, and what is learned on the way.
pub async fn beside<T>(app: &App, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let chores = async {
        let Ok(pool) = app.claude() else {
            return std::future::pending().await;
        };
        loop {
            follow(app, pool).await;
            let news = pool.news();
            if pool.untold().is_empty() {
                news.await;
            } else {
                // What came too early to be told is told as soon as it may.
                let _either = tokio::time::timeout(TELL_EVERY.unsigned_abs(), news).await;
            }
        }
    };
    let done = tokio::select! {
        done = &mut work => done,
        () = chores => unreachable!("chores have no end"),
    };
    if let Ok(pool) = app.claude() {
        if !pool.untold().is_empty() {
            // Nobody may be here to tell it later.
            Box::pin(follow_deadlines(app, pool, Duration::ZERO)).await;
        }
        for alarm in pool.take_alarms() {
            Box::pin(tell_operators(app, alarm)).await;
        }
    }
    done
}

/// Once a day for each key or organisation, however many instances notice: the mail provider knows the alert's key.
async fn tell_operators(
    app: &App,
    Alarm {
        of,
        matter,
        what,
        cause,
    }: Alarm,
) {
    let today = app.now().date();
    let text = format!("{what} It is about {of}: {cause}. `iconoclash keys list` shows all keys.");
    let alert = Alert {
        subject: format!("Claude: {of} needs you"),
        text,
        link: None,
        key: format!("claude/{matter}/{of}/{today}"),
    };
    alert::send(app, alert).await;
}

async fn follow(app: &App, pool: &Pool) {
    tokio::join!(
        Box::pin(follow_keys(app, pool)),
        Box::pin(follow_deadlines(app, pool, TELL_EVERY))
    );
}

async fn follow_keys(app: &App, pool: &Pool) {
    let following = app.key_sync();
    let Ok(_turn) = following.loading.try_lock() else {
        return;
    };
    let last = {
        let times = following.times();
        times.loaded.max(times.load_failed)
    };
    if is_due(last, LOAD_EVERY, app.now()) {
        load(app, pool).await;
        tell_outcomes(app, pool).await;
    }
}

async fn follow_deadlines(app: &App, pool: &Pool, tell_every: Duration) {
    let following = app.key_sync();
    let Ok(_turn) = following.sharing.try_lock() else {
        return;
    };
    let (now, untold, asked) = (app.now(), pool.untold(), following.times().asked);
    if is_due(
        asked,
        if untold.is_empty() {
            ASK_EVERY
        } else {
            tell_every
        },
        now,
    ) {
        following.times().asked = Some(now);
        match share(app, &untold).await {
            Ok(known) => pool.follow(&untold, known),
            Err(error) => {
                tracing::info!(cause = %error, "what keys are left alone is known to this process only");
                // Sooner than after an answer.
                following.times().asked = Some(now - ASK_EVERY + TELL_EVERY);
            }
        }
    }
}

/// Which keys there are, from the database and, where a label is not there, from the environment.
async fn load(app: &App, pool: &Pool) {
    let begun = app.now();
    let cause = match read(app).await {
        Ok(keys) => {
            pool.replace(keys);
            app.key_sync().times().loaded = Some(begun);
            return;
        }
        Err(error) => error.cause(),
    };
    // Counted from the failure, which takes a deadline where Postgres hangs: whoever waited for it does not try again.
    app.key_sync().times().load_failed = Some(app.now());
    tracing::warn!(
        cause,
        "the stored keys could not be read: those known last go on"
    );
}

async fn read(app: &App) -> Result<Vec<ApiKey>> {
    let rows = app.db()?.old_all(&USABLE, &[]).await?;
    let stored: HashSet<String> = rows.iter().map(|row| row.label.clone()).collect();
    let environment = app.config().claude.clone()?.keys;
    let mut keys: Vec<ApiKey> = environment
        .into_iter()
        .filter(|key| !stored.contains(&key.label))
        .collect();
    if !rows.is_empty() {
        let seal = Seal::new(app.config())?;
        for row in rows.into_iter().filter(|row| row.state == "active") {
            match row
                .sealed
                .and_then(|sealed| seal.open(row.id, &row.label, &sealed))
            {
                Some(opened) => keys.push(
                    ApiKey::new(row.label, opened.secret)
                        .within(row.organisation)
                        .weighing(u32::try_from(row.weight).unwrap_or(1)),
                ),
                None => {
                    let is_news = app.key_sync().times().unreadable.insert(row.label.clone());
                    if is_news {
                        tracing::error!(
                            key = row.label,
                            "a stored key opens with no key of CREDENTIALS_KEY"
                        );
                    }
                }
            }
        }
    }
    app.key_sync().times().stored = stored;
    Ok(keys)
}

/// Tells the deadlines that others do not know, and learns those that they do, in one request.
async fn share(app: &App, untold: &[Deadline]) -> Result<Vec<Deadline>> {
    let now_ms = epoch_ms(app.now());
    let mut commands = Vec::new();
    if !untold.is_empty() {
        let add = Command::new("ZADD").arg(COOLING).arg("GT");
        commands.push(
            untold
                .iter()
                .fold(add, |add, (scope, until_ms)| add.arg(*until_ms).arg(scope))
                .idempotent(),
        );
        commands.push(
            Command::new("ZREMRANGEBYSCORE")
                .arg(COOLING)
                .arg("-inf")
                .arg(now_ms)
                .idempotent(),
        );
        commands.push(
            Command::new("EXPIRE")
                .arg(COOLING)
                .arg(KEEP_COOLING_SECS)
                .idempotent(),
        );
    }
    commands.push(cooling_command(now_ms));
    let results = app.redis()?.pipeline(&commands).await?;
    let results: Vec<serde_json::Value> = results
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(crate::redis::Error::from)?;
    deadlines(results.into_iter().next_back().unwrap_or_default())
}

fn cooling_command(now_ms: i64) -> Command {
    Command::new("ZRANGEBYSCORE")
        .arg(COOLING)
        .arg(now_ms)
        .arg("+inf")
        .arg("WITHSCORES")
        .idempotent()
}

/// Scopes and scores in turn.
fn deadlines(words: serde_json::Value) -> Result<Vec<Deadline>> {
    let words: Vec<String> =
        serde_json::from_value(words).map_err(|error| Error::Internal(error.into()))?;
    let pairs = words.chunks_exact(2);
    Ok(pairs
        .filter_map(|pair| Some((pair[0].clone(), pair[1].parse::<f64>().ok()? as i64)))
        .collect())
}

/// Writes down how the stored keys fared, for operators to read. Best effort.
async fn tell_outcomes(app: &App, pool: &Pool) {
    let mut outcomes = pool.take_outcomes();
    outcomes.retain(|label, _| app.key_sync().times().stored.contains(label));
    if outcomes.is_empty() {
        return;
    }
    let (labels, outcomes): (Vec<String>, Vec<Outcome>) = outcomes.into_iter().unzip();
    let ok_at: Vec<Option<OffsetDateTime>> = outcomes.iter().map(|outcome| outcome.ok_at).collect();
    let (error, error_at): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .map(|outcome| outcome.error.unzip())
        .unzip();
    let told = async {
        Ok::<_, Error>(
            app.db()?
                .old_execute(&NOTE, &[&labels, &ok_at, &error, &error_at])
                .await?,
        )
    };
    if let Err(error) = told.await {
        tracing::info!(cause = ?error, "how the keys fared could not be written down");
    }
}

row! {
    struct UsableRow {
        id: uuid::Uuid,
        label: String,
        organisation: Option<String>,
        weight: i32,
        state: String,
        sealed: Option<Vec<u8>>,
    }
}

sql_positional! {
    /// A draining key is there to take the environment's key of the same label out of rotation.
    read USABLE() -> UsableRow = "
        select id, label, organisation, weight, state, sealed from claude_keys where state <> 'revoked' order by label";

    /// Rows are locked in one order, as many instances write about the same keys.
    write NOTE(TEXT_ARRAY, TIMESTAMPTZ_ARRAY, TEXT_ARRAY, TIMESTAMPTZ_ARRAY) -> () = "
        with seen as (
          select k.id, s.ok_at, s.error, s.error_at
          from unnest($1::text[], $2::timestamptz[], $3::text[], $4::timestamptz[]) as s (label, ok_at, error, error_at)
          join claude_keys k on k.label = s.label and k.state <> 'revoked'
          order by k.id for update of k
        )
        update claude_keys k
        set last_ok_at = greatest(k.last_ok_at, seen.ok_at),
          last_error = case when seen.error_at > coalesce(k.last_error_at, '-infinity') then seen.error else k.last_error end,
          last_error_at = greatest(k.last_error_at, seen.error_at)
        from seen where k.id = seen.id";
}
