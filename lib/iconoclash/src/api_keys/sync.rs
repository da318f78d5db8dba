//! Synchronises the pool of this process: keys with Postgres, cooldowns with Redis.

use std::{collections::HashSet, convert::Infallible};

use claude::{ApiKey, KeyOutcome, Pool};
use time::Duration;

use super::{
    cooldowns,
    seal::Seal,
    store::{KeyState, RecordOutcomes, StoredKeyRow, UsableKeys},
    sync_state::is_due,
};
use crate::{
    app::App,
    http::error::{Error, Result},
};

/// Interval between loads of the key list.
const LOAD_INTERVAL: Duration = Duration::seconds(15);
/// Interval between exchanges of cooldowns with nothing to publish.
const FETCH_INTERVAL: Duration = Duration::seconds(10);
/// Interval between exchanges of cooldowns with something to publish.
const PUBLISH_INTERVAL: Duration = Duration::seconds(1);

/// Synchronises now, and again after each change.
pub(super) async fn keep_synced(app: &App, pool: &Pool) -> Infallible {
    loop {
        sync_if_due(app, pool).await;

        let changed = pool.changed();
        if pool.unpublished().is_empty() {
            changed.await;
        } else {
            // Publish the remaining cooldowns when the interval allows it.
            let _either = tokio::time::timeout(PUBLISH_INTERVAL.unsigned_abs(), changed).await;
        }
    }
}

/// Synchronises keys and cooldowns, each if its interval has passed.
pub(super) async fn sync_if_due(app: &App, pool: &Pool) {
    tokio::join!(
        Box::pin(sync_keys(app, pool)),
        Box::pin(sync_cooldowns(app, pool, PUBLISH_INTERVAL))
    );
}

/// Publishes the remaining cooldowns without regard to the interval.
pub(super) async fn publish_remaining(app: &App, pool: &Pool) {
    if !pool.unpublished().is_empty() {
        sync_cooldowns(app, pool, Duration::ZERO).await;
    }
}

async fn sync_keys(app: &App, pool: &Pool) {
    let sync = app.key_sync();
    let Ok(_turn) = sync.loading.try_lock() else {
        return;
    };

    let load_ended_at = sync.progress().load_ended_at();
    if is_due(load_ended_at, LOAD_INTERVAL, app.now()) {
        load_keys(app, pool).await;
        record_outcomes(app, pool).await;
    }
}

async fn sync_cooldowns(app: &App, pool: &Pool, publish_interval: Duration) {
    let sync = app.key_sync();
    let Ok(_turn) = sync.exchanging.try_lock() else {
        return;
    };

    let now = app.now();
    let unpublished = pool.unpublished();
    let interval = match unpublished.is_empty() {
        true => FETCH_INTERVAL,
        false => publish_interval,
    };
    let exchanged_at = sync.progress().exchanged_at;
    if !is_due(exchanged_at, interval, now) {
        return;
    }

    sync.progress().exchanged_at = Some(now);
    match cooldowns::exchange(app, &unpublished).await {
        Ok(shared) => pool.merge(&unpublished, shared),
        Err(error) => {
            let cause = error.cause();
            tracing::info!(cause, "cooldowns of Claude keys hold in this process only");
            // The next fetch is due after the shorter interval.
            sync.progress().exchanged_at = Some(now - FETCH_INTERVAL + PUBLISH_INTERVAL);
        }
    }
}

/// Loads the key list. After a failure the last known keys stay in use.
pub(super) async fn load_keys(app: &App, pool: &Pool) {
    let started_at = app.now();

    match read_keys(app).await {
        Ok(keys) => {
            pool.replace_keys(keys);
            app.key_sync().progress().loaded_at = Some(started_at);
        }
        Err(error) => {
            // The time of the failure, not of the start: a hanging Postgres takes a whole deadline, and requests that
            // waited for this load must not start another one.
            app.key_sync().progress().load_failed_at = Some(app.now());
            let cause = error.cause();
            tracing::warn!(cause, "the stored Claude keys could not be read");
        }
    }
}

/// The stored keys, and those of the environment whose label is not stored.
async fn read_keys(app: &App) -> Result<Vec<ApiKey>> {
    let rows = app.db()?.all(UsableKeys).await?;
    let stored_labels: HashSet<String> = rows.iter().map(|row| row.label.clone()).collect();

    let mut keys = app.config().claude()?.keys.clone();
    keys.retain(|key| !stored_labels.contains(&key.label));
    keys.extend(open_active(app, &rows)?);

    app.key_sync().progress().stored_labels = stored_labels;
    Ok(keys)
}

fn open_active(app: &App, rows: &[StoredKeyRow]) -> Result<Vec<ApiKey>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let seal = Seal::new(app.config())?;
    let mut keys = Vec::new();

    for row in rows.iter().filter(|row| row.state == KeyState::Active) {
        match row.open(&seal) {
            Some(key) => keys.push(key),
            None => log_unreadable(app, &row.label),
        }
    }
    Ok(keys)
}

/// Logs once per process that a stored key cannot be opened.
fn log_unreadable(app: &App, label: &str) {
    let mut progress = app.key_sync().progress();

    if progress.unreadable_labels.insert(label.to_owned()) {
        tracing::error!(key = label, "no key of CREDENTIALS_KEY opens a stored key");
    }
}

/// Stores the outcomes of the stored keys' calls for operators to read. Best effort.
async fn record_outcomes(app: &App, pool: &Pool) {
    let mut outcomes = pool.take_outcomes();
    outcomes.retain(|label, _| app.key_sync().progress().stored_labels.contains(label));
    if outcomes.is_empty() {
        return;
    }

    let (labels, outcomes): (Vec<String>, Vec<KeyOutcome>) = outcomes.into_iter().unzip();
    let ok_at: Vec<_> = outcomes.iter().map(|outcome| outcome.ok_at).collect();
    let (errors, error_at): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .map(|outcome| outcome.error.unzip())
        .unzip();
    let record = RecordOutcomes {
        labels: &labels,
        ok_at: &ok_at,
        errors: &errors,
        error_at: &error_at,
    };

    let recorded = async {
        app.db()?.execute(record).await?;
        Ok::<_, Error>(())
    };
    if let Err(error) = recorded.await {
        let cause = error.cause();
        tracing::info!(cause, "the outcomes of Claude keys could not be recorded");
    }
}
