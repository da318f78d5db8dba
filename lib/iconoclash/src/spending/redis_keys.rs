//! The Redis keys of admission and what they store.
//!
//! | key | value | kept |
//! |---|---|---|
//! | `{rl}:<subject>:<day>` | hash: `n` messages, `c` micro-dollars, `t` burst, `r:<request>` holds | 2 days |
//! | `{rl}:open` | sorted set of open holds by admission time in milliseconds | |
//! | `{rl}:g:<day>` | everybody's micro-dollars of a day | 40 days |
//! | `{rl}:g:<month>` | correction: what the days lack of the month's sum | 40 days |
//! | `{rl}:pl:<subject>` | plan | 10 min |
//! | `{rl}:rs:<session>` | revoked session | until its token expires |
//! | `{rl}:tv:<user>` | lowest valid token version | a token's lifetime |
//!
//! The constant hash tag keeps the keys of one script on one node of a cluster.

use std::time::Duration;

use time::{Date, OffsetDateTime};
use upstash_redis_rs::Command;
use uuid::Uuid;

use super::subject::Subject;
use crate::{
    clock::{month_start, utc_day},
    identity::token,
};

/// Longer than a day, so that a reply that ends after midnight can still be settled.
pub(crate) const SUBJECT_DAY_TTL: Duration = Duration::from_secs(48 * 3600);
/// Longer than a month, which is the sum of its days.
pub(crate) const DAY_TTL: Duration = Duration::from_secs(40 * 24 * 3600);
/// How long a subject's plan is cached.
pub(crate) const PLAN_TTL: Duration = Duration::from_secs(600);
/// The sorted set of holds that are not settled, by the time of their admission in milliseconds.
pub(crate) const OPEN_HOLDS: &str = "{rl}:open";

/// A subject's day.
pub(crate) fn subject_day(subject: &str, day: Date) -> String {
    format!("{{rl}}:{subject}:{day}")
}

/// Everybody's spending of a day.
pub(crate) fn day(day: Date) -> String {
    format!("{{rl}}:g:{day}")
}

/// The correction of a month: what its days lack of the month's sum.
pub(crate) fn month(day: Date) -> String {
    let month = u8::from(day.month());
    format!("{{rl}}:g:{}-{month:02}", day.year())
}

/// Everybody's spending of the days of a month before `until`.
pub(crate) fn earlier_days(until: Date) -> impl Iterator<Item = String> {
    std::iter::successors(Some(month_start(until)), |date| date.next_day())
        .take_while(move |date| *date < until)
        .map(day)
}

/// A subject's cached plan.
pub(crate) fn plan(subject: &str) -> String {
    format!("{{rl}}:pl:{subject}")
}

/// A revoked session.
pub(crate) fn revoked_session(session: Uuid) -> String {
    format!("{{rl}}:rs:{session}")
}

/// A user's lowest valid token version.
pub(crate) fn token_version(user: Uuid) -> String {
    format!("{{rl}}:tv:{user}")
}

/// Reads a subject's messages of today, as Redis counts them.
pub(crate) fn messages_command(subject: &Subject, now: OffsetDateTime) -> Command {
    Command::new("HGET")
        .arg(subject_day(subject.as_str(), utc_day(now)))
        .arg("n")
        .idempotent()
}

/// Drops a user's cached plan, so that the next message asks for it.
pub(crate) fn forget_plan_command(user: Uuid) -> Command {
    Command::new("DEL")
        .arg(plan(&format!("u:{user}")))
        .idempotent()
}

/// Revokes a session for the rest of its token's life, and every token of a user below a version.
pub(crate) fn revoke_commands(
    session: Option<(Uuid, Duration)>,
    user: Uuid,
    version: Option<i32>,
) -> Vec<Command> {
    let session = session.map(|(session, ttl)| {
        Command::new("SET")
            .arg(revoked_session(session))
            .arg(1)
            .arg("EX")
            .arg(ttl.as_secs().max(1))
            .idempotent()
    });
    let version = version.map(|version| {
        Command::new("SET")
            .arg(token_version(user))
            .arg(version)
            .arg("EX")
            .arg(token::LIFETIME.whole_seconds())
            .idempotent()
    });

    session.into_iter().chain(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn a_month_is_the_sum_of_its_days() {
        let earlier: Vec<_> = earlier_days(date!(2026 - 11 - 03)).collect();
        assert_eq!(earlier, ["{rl}:g:2026-11-01", "{rl}:g:2026-11-02"]);
        assert_eq!(earlier_days(date!(2026 - 12 - 01)).count(), 0);
        assert_eq!(month(date!(2026 - 02 - 03)), "{rl}:g:2026-02");
    }
}
