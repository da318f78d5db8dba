//! How far this process has synchronised its Claude keys with Postgres and Redis.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use time::{Duration, OffsetDateTime};

/// Reload a key list older than this before using it. Below the promised minute, to leave time for the reload.
const STALE: Duration = Duration::seconds(45);
/// After a failed load the next one is tried no sooner than this.
const LOAD_AGAIN: Duration = Duration::seconds(5);

/// How far a process follows.
#[derive(Debug, Default)]
pub(crate) struct SyncState {
    /// One at a time asks Postgres which keys there are.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// One at a time asks Redis which are left alone.
    pub(super) sharing: tokio::sync::Mutex<()>,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) loaded: Option<OffsetDateTime>,
    pub(super) load_failed: Option<OffsetDateTime>,
    pub(super) asked: Option<OffsetDateTime>,
    /// Labels of the keys that are in the database.
    pub(super) stored: HashSet<String>,
    /// Rows of which it was said that they do not open.
    pub(super) unreadable: HashSet<String>,
}

impl SyncState {
    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Times {
    pub(super) fn is_stale(&self, now: OffsetDateTime) -> bool {
        is_due(self.loaded, STALE, now) && is_due(self.load_failed, LOAD_AGAIN, now)
    }
}

pub(super) fn is_due(last: Option<OffsetDateTime>, every: Duration, now: OffsetDateTime) -> bool {
    last.is_none_or(|last| now - last >= every)
}
