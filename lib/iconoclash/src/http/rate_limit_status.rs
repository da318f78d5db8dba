//! The state of any limit as HTTP headers, and waits in words.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use time::OffsetDateTime;

/// How much of a limit is left, as the headers of a response report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitStatus {
    /// The limit's name in the headers.
    pub name: &'static str,
    /// Units that one window allows.
    pub limit: u32,
    /// Length of the window.
    pub window_secs: u32,
    /// Units that are left.
    pub remaining: u32,
    /// When units are available again.
    pub reset_at: OffsetDateTime,
    /// Seconds until `reset_at`.
    pub reset_in_secs: u64,
}

impl RateLimitStatus {
    /// The two fields of draft-ietf-httpapi-ratelimit-headers-10, and the three older ones that many clients read.
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

        let fields = [
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
        ];

        let headers = fields.map(|(name, value)| {
            let value = HeaderValue::try_from(value).expect("digits and quotes are visible ASCII");
            (HeaderName::from_static(name), value)
        });
        headers.into_iter().collect()
    }
}

/// A wait in whole seconds, rounded up and at least one.
pub fn retry_after_secs(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// A wait in words, such as "2 minutes", rounded up.
pub(crate) fn in_words(wait: Duration) -> String {
    let seconds = retry_after_secs(wait);
    let (count, unit) = match seconds {
        0..=90 => (seconds, "second"),
        91..=5_400 => (seconds.div_ceil(60), "minute"),
        5_401..=129_600 => (seconds.div_ceil(3_600), "hour"),
        _ => (seconds.div_ceil(86_400), "day"),
    };

    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_written_in_units_that_people_use() {
        for (seconds, expected) in [
            (0, "1 second"),
            (45, "45 seconds"),
            (91, "2 minutes"),
            (5_400, "90 minutes"),
            (5_401, "2 hours"),
            (86_400, "24 hours"),
            (200_000, "3 days"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(in_words(Duration::from_millis(1_001)), "2 seconds");
    }
}
