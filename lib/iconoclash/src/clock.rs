//! The clock, and the UTC days and months that limits are counted in.

use std::sync::Arc;

use time::{Date, Duration, OffsetDateTime, UtcOffset};

/// The source of the time.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// A moment in Unix milliseconds, as Redis scripts count it.
pub(crate) fn epoch_ms(at: OffsetDateTime) -> i64 {
    let ms = at.to_offset(UtcOffset::UTC).unix_timestamp_nanos() / 1_000_000;
    i64::try_from(ms).expect("the range of a date fits")
}

/// The UTC day of a moment.
pub(crate) fn utc_day(at: OffsetDateTime) -> Date {
    at.to_offset(UtcOffset::UTC).date()
}

/// The first day of a day's month.
pub(crate) fn month_start(day: Date) -> Date {
    day.replace_day(1).expect("every month has a first day")
}

/// The moment at which a day's month ends.
pub(crate) fn month_end(day: Date) -> OffsetDateTime {
    let next = month_start(month_start(day) + Duration::days(31));
    next.midnight().assume_utc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::{date, datetime};

    #[test]
    fn days_and_months_are_utc() {
        let late = datetime!(2026-11-30 23:30 -02:00);
        assert_eq!(utc_day(late), date!(2026 - 12 - 01));
        assert_eq!(month_start(date!(2026 - 12 - 31)), date!(2026 - 12 - 01));

        let new_year = datetime!(2027-01-01 0:00 UTC);
        assert_eq!(month_end(date!(2026 - 12 - 31)), new_year);
        let march = datetime!(2026-03-01 0:00 UTC);
        assert_eq!(month_end(date!(2026 - 02 - 01)), march);
    }
}
