//! Facts about the current request that its log line or its headers report.
//!
//! Any module adds to the log with [`add`]; [`super::observe`] reads it when the response is ready.

use std::{cell::RefCell, error::Error};

use super::rate_limit_status::RateLimitStatus;

/// What happened while a request was handled.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLog {
    /// Requests to Redis.
    pub(crate) redis_requests: u32,
    /// Requests to Redis that got no answer.
    pub(crate) redis_failures: u32,
    /// Cached values that were used.
    pub(crate) cache_hits: u32,
    /// Cached values that were missing or invalid.
    pub(crate) cache_misses: u32,
    /// Age of the oldest cached value that was used.
    pub(crate) cache_age_ms: Option<i64>,
    /// Why a slower fallback was used.
    pub(crate) degraded: Option<String>,
    /// The limit that the response's headers report.
    pub(crate) rate_limit: Option<RateLimitStatus>,
}

impl RequestLog {
    /// Counts a cached value that was used.
    pub(crate) fn cache_hit(&mut self, age_ms: i64) {
        self.cache_hits += 1;
        self.cache_age_ms = self.cache_age_ms.max(Some(age_ms));
    }
}

tokio::task_local! {
    static REQUEST_LOG: RefCell<RequestLog>;
}

/// Adds to the log of the current request or background task. Outside of both it does nothing.
pub(crate) fn add(write: impl FnOnce(&mut RequestLog)) {
    // The closure neither awaits nor adds, so the cell is never borrowed twice.
    let _outside = REQUEST_LOG.try_with(|log| write(&mut log.borrow_mut()));
}

/// Records that a slower fallback was used, and why.
pub(crate) fn degraded(cause: &(dyn Error + 'static)) {
    add(|log| log.degraded = Some(error_chain(cause)));
}

/// Runs a request or a background task with a log of its own.
///
/// Not an `async fn`: that would store the inner future twice.
pub(crate) fn with_request_log<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    REQUEST_LOG.scope(RefCell::default(), work)
}

/// A copy of the log so far.
pub(crate) fn snapshot() -> RequestLog {
    REQUEST_LOG
        .try_with(|log| log.borrow().clone())
        .unwrap_or_default()
}

/// An error and its sources in one line.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();

    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
