//! A hold that Redis keeps until the call's cost is known.

use std::{fmt, sync::LazyLock};

use time::{Date, macros::format_description};
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use super::redis_keys::{self, OPEN_HOLDS, SUBJECT_DAY_TTL};

static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/settle.lua")));

/// A hold that is not settled yet, as a member of [`OPEN_HOLDS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenHold {
    pub(crate) day: Date,
    pub(crate) subject: String,
    pub(crate) request: Uuid,
    /// Micro-dollars.
    pub(crate) amount: i64,
    /// Whether it counts as one of the day's messages.
    pub(crate) is_message: bool,
}

impl fmt::Display for OpenHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            day,
            subject,
            request,
            amount,
            is_message,
        } = self;
        let suffix = if *is_message { "" } else { " aside" };
        write!(f, "{day} {subject} {request} {amount}{suffix}")
    }
}

impl OpenHold {
    /// Reads a member of [`OPEN_HOLDS`]; `None` if it is malformed.
    pub(crate) fn parse(member: &str) -> Option<Self> {
        let words: Vec<&str> = member.split(' ').collect();
        let (fields, is_message) = match words[..] {
            [day, subject, request, amount] => ([day, subject, request, amount], true),
            [day, subject, request, amount, "aside"] => ([day, subject, request, amount], false),
            _ => return None,
        };
        let [day, subject, request, amount] = fields;

        Some(Self {
            day: Date::parse(day, format_description!("[year]-[month]-[day]")).ok()?,
            subject: subject.to_owned(),
            request: request.parse().ok()?,
            amount: amount.parse().ok()?,
            is_message,
        })
    }

    /// Replaces the hold by the cost.
    pub(crate) fn settle(&self, cost_microusd: i64) -> Command {
        self.settle_command(cost_microusd, false, 0)
    }

    /// Replaces the hold by the cost of a message that does not count, and returns its share of the burst.
    pub(crate) fn settle_uncounted(&self, cost_microusd: i64, burst_ms: i64) -> Command {
        self.settle_command(cost_microusd, true, burst_ms)
    }

    fn settle_command(&self, cost_microusd: i64, uncount: bool, burst_ms: i64) -> Command {
        let subject_day = redis_keys::subject_day(&self.subject, self.day);
        let day = redis_keys::day(self.day);
        let args: [Arg; 6] = [
            self.to_string().into(),
            self.amount.into(),
            cost_microusd.into(),
            u8::from(uncount).into(),
            SUBJECT_DAY_TTL.as_secs().into(),
            burst_ms.into(),
        ];

        SETTLE
            .command(&[&subject_day, OPEN_HOLDS, &day], &args)
            .idempotent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn a_hold_is_read_as_it_was_written() {
        let message = OpenHold {
            day: date!(2026 - 11 - 24),
            subject: "ip:00ff".to_owned(),
            request: Uuid::from_u128(7),
            amount: 1234,
            is_message: true,
        };
        let member = message.to_string();
        assert_eq!(
            member,
            "2026-11-24 ip:00ff 00000000-0000-0000-0000-000000000007 1234"
        );
        assert_eq!(OpenHold::parse(&member), Some(message.clone()));

        let background = OpenHold {
            is_message: false,
            ..message
        };
        let member = format!("{member} aside");
        assert_eq!(OpenHold::parse(&member), Some(background.clone()));
        assert_eq!(background.to_string(), member);
    }

    #[test]
    fn malformed_members_are_ignored() {
        for member in [
            "",
            "x",
            "2026-11-24 ip:00ff 00000000-0000-0000-0000-000000000007 1234 x",
            "2026-11-24 u:1 nobody 5",
            "2026-13-24 u:1 00000000-0000-0000-0000-000000000007 1",
        ] {
            assert_eq!(OpenHold::parse(member), None, "{member}");
        }
    }
}
