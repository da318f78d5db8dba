//! A day's messages: how many, how many are left, and the headers that say so of this and of any other limit.

use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use time::{Duration, OffsetDateTime, Time};
use utoipa::ToSchema;

use crate::{
    http::{
        error::{Error, Limited},
        rate_limit_status::{RateLimitStatus, in_words, retry_after_secs},
    },
    spending::plan::Plan,
};

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
    #[serde(with = "crate::clock::rfc3339")]
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
        let reset_in_secs = retry_after_secs((reset_at - now).unsigned_abs());
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
    pub(crate) fn status(&self) -> RateLimitStatus {
        let Self {
            limit,
            remaining,
            reset_at,
            reset_in_secs,
            ..
        } = *self;
        RateLimitStatus {
            name: "daily",
            limit,
            window_secs: SECONDS_A_DAY,
            remaining,
            reset_at,
            reset_in_secs,
        }
    }

    /// The same with the burst that refusals tell.
    pub(crate) fn with_burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// The headers of an answer under this limit.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.status().headers()
    }

    /// 429: the day's messages are used up.
    pub(crate) fn exceeded(&self, plan: Plan) -> Error {
        let hint = match plan {
            Plan::Guest => " Sign up for more messages.",
            Plan::Free => " Upgrade to Pro to continue now.",
            Plan::Pro => "",
        };
        let detail = format!(
            "You have used all of today's {} messages. Your quota resets at midnight UTC.{hint}",
            self.limit
        );
        self.limited(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
    }

    /// 402: the subject's spending limit of the day is reached.
    pub(crate) fn spend_limit(&self) -> Error {
        let detail =
            "You have reached your plan's spending limit for today. It resets at midnight UTC.";
        self.limited(StatusCode::PAYMENT_REQUIRED, "spend_limit", detail.into())
    }

    /// 429: the burst limit is reached; the next message may come after `wait`.
    pub(crate) fn burst_exceeded(&self, wait: std::time::Duration) -> Error {
        let detail = format!(
            "You are sending messages too fast. Send the next one in {}.",
            in_words(wait)
        );
        let limited = Limited {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "burst_exceeded",
            detail,
            reset_at: self.asked_at + wait,
            retry_after: wait,
            headers: self.burst_headers(wait),
        };
        limited.into()
    }

    fn limited(&self, status: StatusCode, code: &'static str, detail: String) -> Error {
        let limited = Limited {
            status,
            code,
            detail,
            reset_at: self.reset_at,
            retry_after: std::time::Duration::from_secs(self.reset_in_secs),
            headers: self.headers(),
        };
        limited.into()
    }

    /// The headers of a burst refusal: both policies, and the burst as the one that is used up.
    fn burst_headers(&self, wait: std::time::Duration) -> HeaderMap {
        let reset_in_secs = retry_after_secs(wait);
        let burst = RateLimitStatus {
            name: "burst",
            limit: self.burst,
            window_secs: 60,
            remaining: 0,
            reset_at: self.asked_at + std::time::Duration::from_secs(reset_in_secs),
            reset_in_secs,
        };
        let daily = self.headers();

        let mut headers = burst.headers();
        let [daily, burst] = [&daily, &headers].map(|headers| {
            let policy = headers["ratelimit-policy"].to_str();
            policy
                .expect("digits and quotes are visible ASCII")
                .to_owned()
        });
        let policies = HeaderValue::try_from(format!("{daily}, {burst}"));
        let policies = policies.expect("digits and quotes are visible ASCII");
        headers.insert("ratelimit-policy", policies);
        headers
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
    fn every_header_of_a_burst_refusal_speaks_of_the_burst() {
        for (limit, used, burst, wait_ms, wait, reset) in [
            (10, 3, 5, 12_000, "12", "1795521612"),
            (10, 10, 5, 11_001, "12", "1795521612"),
            (100, 0, 20, 1, "1", "1795521601"),
            (3, 2, 1, 59_999, "60", "1795521660"),
        ] {
            let quota = Quota::new(limit, used, datetime!(2026-11-24 12:00 UTC)).with_burst(burst);
            let headers = quota.burst_headers(std::time::Duration::from_millis(wait_ms));

            let policy = format!(r#""daily";q={limit};w=86400, "burst";q={burst};w=60"#);
            assert_eq!(headers["ratelimit-policy"], policy);
            assert_eq!(headers["ratelimit"], format!(r#""burst";r=0;t={wait}"#));
            assert_eq!(headers["x-ratelimit-limit"], burst.to_string());
            assert_eq!(headers["x-ratelimit-remaining"], "0");
            assert_eq!(headers["x-ratelimit-reset"], reset);
        }
    }

    #[test]
    fn a_lowered_limit_never_shows_less_than_nothing_left() {
        let quota = Quota::new(3, 7, datetime!(2026-11-24 12:00 UTC));
        assert_eq!((quota.used, quota.remaining), (3, 0));
    }
}
