//! How far this process has synchronised its Claude keys with Postgres and Redis.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use time::{Duration, OffsetDateTime};

/// Reload a key list older than this before using it. Below the promised minute, to leave time for the reload.
const STALE_AFTER: Duration = Duration::seconds(45);
/// Pause after a failed load.
const LOAD_RETRY_PAUSE: Duration = Duration::seconds(5);

/// The synchronisation of one process.
#[derive(Debug, Default)]
pub(crate) struct SyncState {
    /// Held while the key list is loaded from Postgres.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// Held while cooldowns are exchanged with Redis.
    pub(super) exchanging: tokio::sync::Mutex<()>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) loaded_at: Option<OffsetDateTime>,
    pub(super) load_failed_at: Option<OffsetDateTime>,
    pub(super) exchanged_at: Option<OffsetDateTime>,
    /// Labels of the stored keys.
    pub(super) stored_labels: HashSet<String>,
    /// Labels of stored keys that cannot be opened. Each is logged once.
    pub(super) unreadable_labels: HashSet<String>,
}

impl SyncState {
    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Whether the key list is too old to be used without a reload.
    pub(super) fn is_stale(&self, now: OffsetDateTime) -> bool {
        is_due(self.loaded_at, STALE_AFTER, now)
            && is_due(self.load_failed_at, LOAD_RETRY_PAUSE, now)
    }

    /// The last load, successful or not.
    pub(super) fn load_ended_at(&self) -> Option<OffsetDateTime> {
        self.loaded_at.max(self.load_failed_at)
    }
}

/// Whether the interval has passed since the last time.
pub(super) fn is_due(
    last: Option<OffsetDateTime>,
    interval: Duration,
    now: OffsetDateTime,
) -> bool {
    last.is_none_or(|last| now - last >= interval)
}
