//! What admission keeps in Redis: the keys, and the holds that are not settled yet. The constant hash tag would keep the
//! keys of one script together on a cluster.

use std::{sync::LazyLock, time::Duration};
use time::{Date, OffsetDateTime};
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use super::Subject;
use crate::{
    clock::{month_start, utc_day},
    identity::token,
};

static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));

/// Longer than a day, so that a reply that ends after midnight can still be settled.
pub(crate) const KEEP_SUBJECT_DAY: Duration = Duration::from_secs(48 * 3600);
/// Longer than a month, which is the sum of its days.
pub(crate) const KEEP_DAY: Duration = Duration::from_secs(40 * 24 * 3600);
pub(super) const KEEP_PLAN: Duration = Duration::from_secs(600);
/// Every hold that is not settled yet, as `day subject request amount`, and `aside` where it is for no message, by the time of its admission in milliseconds.
pub(crate) const OPEN_HOLDS: &str = "{rl}:open";

/// A hold in Redis that is not settled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenHold {
    pub(crate) day: Date,
    pub(crate) subject: String,
    pub(crate) request: Uuid,
    pub(crate) amount: i64,
    /// Whether it counts as a message of the day.
    pub(crate) is_message: bool,
}

impl std::fmt::Display for OpenHold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_message { "" } else { " aside" };
        write!(
            f,
            "{} {} {} {}{kind}",
            self.day, self.subject, self.request, self.amount
        )
    }
}

impl OpenHold {
    /// What [`OPEN_HOLDS`] has as a member, unless somebody else wrote it.
    pub(crate) fn parse(member: &str) -> Option<Self> {
        let words: Vec<&str> = member.split(' ').collect();
        let (day, subject, request, amount, is_message) = match words[..] {
            [day, subject, request, amount] => (day, subject, request, amount, true),
            [day, subject, request, amount, "aside"] => (day, subject, request, amount, false),
            _ => return None,
        };
        let day = Date::parse(
            day,
            time::macros::format_description!("[year]-[month]-[day]"),
        )
        .ok()?;
        let (request, amount) = (request.parse().ok()?, amount.parse().ok()?);
        Some(Self {
            day,
            subject: subject.to_owned(),
            request,
            amount,
            is_message,
        })
    }

    /// Replaces the hold by a cost; a message that came to nothing no longer counts.
    pub(crate) fn settle(&self, cost_microusd: i64, give_back: bool) -> Command {
        let (subject, day) = (subject_key(&self.subject, self.day), day_key(self.day));
        let args: [Arg; 5] = [
            self.to_string().into(),
            self.amount.into(),
            cost_microusd.into(),
            u8::from(give_back).into(),
            KEEP_SUBJECT_DAY.as_secs().into(),
        ];
        SETTLE
            .command(&[&subject, OPEN_HOLDS, &day], &args)
            .idempotent()
    }
}

/// Reads the messages that Redis counts today; a pipeline sends it together with other reads.
pub fn messages_command(subject: &Subject, now: OffsetDateTime) -> Command {
    Command::new("HGET")
        .arg(subject_key(&subject.0, utc_day(now)))
        .arg("n")
        .idempotent()
}

/// Has the next message of a user refused whose session, or whose older sessions, have ended.
pub(super) fn revoke_commands(
    session: Option<(Uuid, Duration)>,
    user: Uuid,
    version: Option<i32>,
) -> Vec<Command> {
    let session = session.map(|(sid, left)| {
        Command::new("SET")
            .arg(revoked_key(sid))
            .arg(1)
            .arg("EX")
            .arg(left.as_secs().max(1))
            .idempotent()
    });
    let keep = token::LIFETIME.whole_seconds();
    let version = version.map(|version| {
        Command::new("SET")
            .arg(version_key(user))
            .arg(version)
            .arg("EX")
            .arg(keep)
            .idempotent()
    });
    session.into_iter().chain(version).collect()
}

/// Has the next message of a user ask for the plan.
pub(crate) fn forget_plan_command(user: Uuid) -> Command {
    Command::new("DEL")
        .arg(plan_key(&format!("u:{user}")))
        .idempotent()
}

/// A subject's day: a hash.
pub(crate) fn subject_key(subject: &str, day: Date) -> String {
    format!("{{rl}}:{subject}:{day}")
}

/// Everybody's spending of a day.
pub(crate) fn day_key(day: Date) -> String {
    format!("{{rl}}:g:{day}")
}

/// What the days of a month lack of the month's spending.
pub(crate) fn month_key(day: Date) -> String {
    let month = u8::from(day.month());
    format!("{{rl}}:g:{}-{month:02}", day.year())
}

/// Everybody's spending on the days of the month before a day.
pub(crate) fn earlier_days(until: Date) -> impl Iterator<Item = String> {
    std::iter::successors(Some(month_start(until)), |day| day.next_day())
        .take_while(move |it| *it < until)
        .map(day_key)
}

pub(super) fn plan_key(subject: &str) -> String {
    format!("{{rl}}:pl:{subject}")
}

pub(super) fn revoked_key(session: Uuid) -> String {
    format!("{{rl}}:rs:{session}")
}

pub(super) fn version_key(user: Uuid) -> String {
    format!("{{rl}}:tv:{user}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn an_open_hold_is_read_as_it_was_written_and_anything_else_is_not() {
        let open = OpenHold {
            day: date!(2026 - 11 - 24),
            subject: "ip:00ff".to_owned(),
            request: Uuid::from_u128(7),
            amount: 1234,
            is_message: true,
        };
        let member = open.to_string();
        assert_eq!(
            member,
            "2026-11-24 ip:00ff 00000000-0000-0000-0000-000000000007 1234"
        );
        assert_eq!(OpenHold::parse(&member), Some(open.clone()));
        let aside = OpenHold {
            is_message: false,
            ..open
        };
        assert_eq!(
            OpenHold::parse(&format!("{member} aside")),
            Some(aside.clone())
        );
        assert_eq!(aside.to_string(), format!("{member} aside"));
        let strange = format!("{member} x");
        for other in [
            "",
            "x",
            &strange,
            "2026-11-24 u:1 nobody 5",
            "2026-13-24 u:1 00000000-0000-0000-0000-000000000007 1",
        ] {
            assert_eq!(OpenHold::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_month_is_the_sum_of_its_days() {
        let earlier: Vec<_> = earlier_days(date!(2026 - 11 - 03)).collect();
        assert_eq!(earlier, ["{rl}:g:2026-11-01", "{rl}:g:2026-11-02"]);
        assert_eq!(earlier_days(date!(2026 - 12 - 01)).count(), 0);
        assert_eq!(month_key(date!(2026 - 02 - 03)), "{rl}:g:2026-02");
    }
}
