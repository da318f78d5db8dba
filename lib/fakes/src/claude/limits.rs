//! The rate limit headers of an organisation.

#![expect(
    clippy::disallowed_methods,
    reason = "a fake provider keeps the wall clock's time, as the provider does"
)]

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Shared;
use crate::sync::lock;

/// The limits of an organisation per minute.
const LIMITS: [(&str, u64); 4] = [
    ("requests", MAX_REQUESTS),
    ("input-tokens", 500_000),
    ("output-tokens", 100_000),
    ("tokens", 600_000),
];
const MAX_REQUESTS: u64 = 1_000;

/// Counts a request of an organisation and adds its limit headers to the answer.
pub(super) fn add_headers(shared: &Shared, organisation: &str, headers: &mut HeaderMap) {
    let remaining = count_request(shared, organisation);

    let reset = (OffsetDateTime::now_utc() + Duration::from_secs(60)).replace_nanosecond(0);
    let reset = reset.ok().and_then(|at| at.format(&Rfc3339).ok());
    let reset = reset.unwrap_or_default();

    for (name, limit) in LIMITS {
        // All limits shrink together, as if every request had the same size.
        let remaining = limit * remaining / MAX_REQUESTS;
        let name = |field: &str| format!("anthropic-ratelimit-{name}-{field}");

        set(headers, &name("limit"), &limit.to_string());
        set(headers, &name("remaining"), &remaining.to_string());
        set(headers, &name("reset"), &reset);
    }
}

fn count_request(shared: &Shared, organisation: &str) -> u64 {
    let mut remaining = lock(&shared.remaining);
    let left = remaining
        .entry(organisation.to_owned())
        .or_insert(MAX_REQUESTS);

    *left = left.saturating_sub(1);
    *left
}

/// Sets a header; a name or value that HTTP does not allow is left out.
pub(super) fn set(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}
