//! A day's messages: how many, how many are left, and the headers that say so.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use time::{Duration, OffsetDateTime, Time};
use utoipa::ToSchema;

const SECONDS_A_DAY: u32 = 86_400;

/// Messages per UTC day, as answers show them.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Quota {
    /// Messages that the plan allows a day.
    pub limit: u32,
    /// Messages sent today.
    pub used: u32,
    /// Messages left today.
    pub remaining: u32,
    /// When the next day's messages are there.
    #[serde(with = "time::serde::rfc3339")]
    pub reset_at: OffsetDateTime,
    /// Seconds until then.
    #[serde(skip)]
    pub reset_in_secs: u64,
}

impl Quota {
    /// The state of a day in which `used` messages were taken.
    pub fn new(limit: u32, used: u32, now: OffsetDateTime) -> Self {
        let reset_at = next_day(now);
        let left = (reset_at - now).as_seconds_f64().ceil();
        let reset_in_secs = std::time::Duration::from_secs_f64(left.max(1.0)).as_secs();
        let used = used.min(limit);
        Self { limit, used, remaining: limit - used, reset_at, reset_in_secs }
    }

    /// The two fields of draft-ietf-httpapi-ratelimit-headers-10, and the older three that many clients still read.
    /// `X-RateLimit-Reset` is in epoch seconds.
    pub fn headers(&self) -> HeaderMap {
        let Self { limit, remaining, reset_at, reset_in_secs, .. } = self;
        [
            ("ratelimit-policy", format!(r#""daily";q={limit};w={SECONDS_A_DAY}"#)),
            ("ratelimit", format!(r#""daily";r={remaining};t={reset_in_secs}"#)),
            ("x-ratelimit-limit", limit.to_string()),
            ("x-ratelimit-remaining", remaining.to_string()),
            ("x-ratelimit-reset", reset_at.unix_timestamp().to_string()),
        ]
        .into_iter()
        .map(|(name, value)| {
            let value = HeaderValue::try_from(value).expect("digits and quotes are visible ASCII");
            (HeaderName::from_static(name), value)
        })
        .collect()
    }
}

fn next_day(now: OffsetDateTime) -> OffsetDateTime {
    let utc = now.to_offset(time::UtcOffset::UTC);
    utc.replace_time(Time::MIDNIGHT) + Duration::DAY
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn the_day_ends_at_midnight_utc_and_headers_round_up() {
        let quota = Quota::new(10, 3, datetime!(2026-11-24 23:59:58.5 UTC));
        assert_eq!(quota.reset_at, datetime!(2026-11-25 0:00 UTC));
        assert_eq!(quota.headers()["ratelimit"], r#""daily";r=7;t=2"#);
        assert_eq!(quota.headers()["x-ratelimit-reset"], "1795564800");
    }

    #[test]
    fn a_lowered_limit_never_shows_less_than_nothing_left() {
        let quota = Quota::new(3, 7, datetime!(2026-11-24 12:00 UTC));
        assert_eq!((quota.used, quota.remaining), (3, 0));
    }
}
