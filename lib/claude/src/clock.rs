//! Calendar and Unix time. The current time is always passed in.

use std::sync::Arc;

use time::{Duration, OffsetDateTime, UtcOffset};

/// Source of the current time.
pub(crate) type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// A moment in Unix milliseconds.
pub(crate) fn epoch_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).expect("the range of a date fits")
}

/// The moment of a Unix time in milliseconds.
pub(crate) fn from_epoch_ms(epoch_ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(epoch_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The first moment of the next calendar month in UTC.
pub(crate) fn next_month(now: OffsetDateTime) -> OffsetDateTime {
    let today = now.to_offset(UtcOffset::UTC).date();
    let first_day = |date: time::Date| date.replace_day(1).expect("every month has a first day");

    first_day(first_day(today) + Duration::days(31))
        .midnight()
        .assume_utc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn the_next_month_is_counted_in_utc() {
        assert_eq!(
            next_month(datetime!(2026-12-31 23:00 -02:00)),
            datetime!(2027-02-01 0:00 UTC)
        );
    }
}
