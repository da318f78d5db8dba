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

/// A time as answers show it: RFC 3339 in UTC, always with six decimals.
///
/// Clients compare times as text, and some parse by a fixed pattern; `time::serde::rfc3339` prints as many decimals as a
/// time has. For `#[serde(with = "crate::clock::rfc3339")]`.
pub(crate) mod rfc3339 {
    use serde::{Serializer, ser::Error};
    use time::{
        OffsetDateTime, UtcOffset, format_description::BorrowedFormatItem,
        macros::format_description,
    };

    pub(crate) use time::serde::rfc3339::deserialize;

    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

    /// The time as text.
    pub(crate) fn format(at: OffsetDateTime) -> Result<String, time::error::Format> {
        at.to_offset(UtcOffset::UTC).format(FORMAT)
    }

    pub(crate) fn serialize<S: Serializer>(
        at: &OffsetDateTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = format(*at).map_err(S::Error::custom)?;
        serializer.serialize_str(&text)
    }

    /// The same for a time that may be absent.
    pub(crate) mod option {
        use super::{OffsetDateTime, Serializer};

        pub(crate) fn serialize<S: Serializer>(
            at: &Option<OffsetDateTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => super::serialize(at, serializer),
                None => serializer.serialize_none(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::{date, datetime};

    #[test]
    fn a_time_has_six_decimals_and_is_utc() {
        for (at, expected) in [
            (
                datetime!(2026-11-25 0:00 UTC),
                "2026-11-25T00:00:00.000000Z",
            ),
            (
                datetime!(2026-11-25 1:02:03.5 UTC),
                "2026-11-25T01:02:03.500000Z",
            ),
            (
                datetime!(2026-11-25 1:02:03.12 UTC),
                "2026-11-25T01:02:03.120000Z",
            ),
            (
                datetime!(2026-11-25 1:02:03.123456 UTC),
                "2026-11-25T01:02:03.123456Z",
            ),
            (
                datetime!(2026-11-25 1:02:03.000001 UTC),
                "2026-11-25T01:02:03.000001Z",
            ),
            (
                datetime!(2026-11-25 1:02:03.999999999 UTC),
                "2026-11-25T01:02:03.999999Z",
            ),
            (
                datetime!(2026-11-25 1:30 +02:00),
                "2026-11-24T23:30:00.000000Z",
            ),
            (
                datetime!(2026-12-31 23:30 -01:00),
                "2027-01-01T00:30:00.000000Z",
            ),
        ] {
            assert_eq!(rfc3339::format(at).unwrap(), expected);
        }
    }

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
