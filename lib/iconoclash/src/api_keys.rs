//! The Claude API keys: those of the environment, and those that operators store while the service runs.
//!
//! Instances learn of stored keys from Postgres and exchange cooldowns through Redis while a message is answered.
//! Sending never waits for this module, except the first message after a cold start or a long idle time, which loads the
//! key list in parallel with admission. Without Postgres the last known keys stay in use. Without Redis cooldowns hold
//! in this process only.

mod cooldowns;
mod seal;
pub mod store;
mod sync;
pub(crate) mod sync_state;

use std::pin::pin;

use claude::{Alarm, Pool};

use crate::{
    app::App,
    http::error::Result,
    notify::alert::{self, Alert},
};

/// The cause that the log shows where a call needs a key and there is none.
pub(crate) const NO_KEY: &str =
    "there is no Claude key: set ANTHROPIC_API_KEYS, or add one with `iconoclash keys add`";

/// The pool, with a key list that is less than a minute old.
pub async fn fresh_pool(app: &App) -> Result<&Pool> {
    let pool = app.claude()?;
    let sync = app.key_sync();

    if sync.progress().is_stale(app.now()) {
        let _turn = sync.loading.lock().await;

        // Another request may have loaded the list while this one waited.
        if sync.progress().is_stale(app.now()) {
            Box::pin(sync::load_keys(app, pool)).await;
        }
    }
    Ok(pool)
}

/// The pool after a synchronisation of keys and cooldowns, where one is due.
pub(crate) async fn synced_pool(app: &App) -> Result<&Pool> {
    let pool = fresh_pool(app).await?;
    sync::sync_if_due(app, pool).await;
    Ok(pool)
}

/// Runs `work` and keeps the keys synchronised until it ends.
pub(crate) async fn run_with_key_sync<T>(app: &App, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let Ok(pool) = app.claude() else {
        return work.await;
    };

    let output = tokio::select! {
        output = &mut work => output,
        never = sync::keep_synced(app, pool) => match never {},
    };

    // The platform may freeze the process now, so this is the last chance to publish.
    Box::pin(sync::publish_remaining(app, pool)).await;
    for alarm in pool.take_alarms() {
        Box::pin(notify_operators(app, alarm)).await;
    }
    output
}

/// Alerts once a day per key or organisation, however many instances raise the alarm: the alert's key deduplicates.
async fn notify_operators(app: &App, alarm: Alarm) {
    let Alarm {
        subject,
        kind,
        cause,
    } = alarm;
    let today = app.now().date();

    let alert = Alert {
        text: format!(
            "{} Affected: {subject}. Cause: {cause}. `iconoclash keys list` shows all keys.",
            kind.sentence()
        ),
        link: None,
        key: format!("claude/{}/{subject}/{today}", kind.name()),
        subject: format!("Claude: {subject} needs attention"),
    };
    alert::send(app, alert).await;
}
