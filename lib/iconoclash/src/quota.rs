//! A day's messages: how many, how many are left, and the headers that say so of this and of any other limit.

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
    /// When this was so.
    #[serde(skip)]
    pub(crate) asked_at: OffsetDateTime,
    /// Messages that may come within a minute.
    #[serde(skip)]
    pub(crate) burst: u32,
}

impl Quota {
    /// The state of a day in which `used` messages were taken.
    pub fn new(limit: u32, used: u32, now: OffsetDateTime) -> Self {
        let reset_at = next_day(now);
        let reset_in_secs = wait_secs((reset_at - now).unsigned_abs());
        let used = used.min(limit);
        Self {
            limit,
            used,
            remaining: limit - used,
            reset_at,
            reset_in_secs,
            asked_at: now,
            burst: 0,
        }
    }

    /// As one of the limits of an answer.
    pub fn allowance(&self) -> Allowance {
        let Self {
            limit,
            remaining,
            reset_at,
            reset_in_secs,
            ..
        } = *self;
        Allowance {
            name: "daily",
            limit,
            window_secs: SECONDS_A_DAY,
            remaining,
            reset_at,
            reset_in_secs,
        }
    }

    /// The same with the burst that refusals tell.
    pub fn with_burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// The headers of an answer under this limit.
    pub fn headers(&self) -> HeaderMap {
        self.allowance().headers()
    }

    /// The headers of a message that came too fast: both policies, and of the burst that it is used up.
    pub fn burst_headers(&self, wait: std::time::Duration) -> HeaderMap {
        let mut headers = self.headers();
        let policies = format!(
            r#""daily";q={};w={SECONDS_A_DAY}, "burst";q={};w=60"#,
            self.limit, self.burst
        );
        let left = format!(r#""burst";r=0;t={}"#, wait_secs(wait));
        for (name, value) in [("ratelimit-policy", policies), ("ratelimit", left)] {
            let value = HeaderValue::try_from(value).expect("digits and quotes are visible ASCII");
            headers.insert(HeaderName::from_static(name), value);
        }
        headers
    }
}

/// How much of a limit is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The limit's name in the headers.
    pub name: &'static str,
    /// How much the window holds.
    pub limit: u32,
    /// The window's length.
    pub window_secs: u32,
    /// How much is left.
    pub remaining: u32,
    /// When there is more.
    pub reset_at: OffsetDateTime,
    /// Seconds until then.
    pub reset_in_secs: u64,
}

impl Allowance {
    /// The two fields of draft-ietf-httpapi-ratelimit-headers-10, and the older three that many clients still read.
    /// `X-RateLimit-Reset` is in epoch seconds.
    pub fn headers(&self) -> HeaderMap {
        let Self {
            name,
            limit,
            window_secs,
            remaining,
            reset_at,
            reset_in_secs,
        } = self;
        [
            (
                "ratelimit-policy",
                format!(r#""{name}";q={limit};w={window_secs}"#),
            ),
            (
                "ratelimit",
                format!(r#""{name}";r={remaining};t={reset_in_secs}"#),
            ),
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

/// Whole seconds to wait, never less than one.
pub fn wait_secs(wait: std::time::Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
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
