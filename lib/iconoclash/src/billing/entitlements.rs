//! What subscriptions grant and when to ask Stripe about them again: pure, with the time passed in.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::spending::plan::Plan;

/// How long a user stays Pro while a payment is due: long enough to notice a mail and renew a card.
pub const GRACE: Duration = Duration::days(7);

/// Where nothing is heard of a subscription, Stripe is asked every day.
const CONFIRM: Duration = Duration::days(1);
/// Of one that has ended, only somebody at Stripe's dashboard can make more.
const CONFIRM_ENDED: Duration = Duration::days(7);
/// The page of a checkout lives for a day, and what is paid in its last minute may take a while.
const CHECKOUT_LIVES: Duration = Duration::hours(25);
/// Until the first look after a checkout began; the next ones come at ever longer intervals.
const FIRST_LOOK: Duration = Duration::minutes(10);

/// A subscription as we hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// `sub_…`
    pub id: String,
    /// As Stripe names it.
    pub status: String,
    /// What is paid.
    pub price_id: Option<String>,
    /// Whether its end is set: at the period's end or, as Stripe also says it, at a time.
    pub cancel_at_period_end: bool,
    /// When it ends, where a time is set; otherwise when what is paid for ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub current_period_end: Option<OffsetDateTime>,
    /// When a payment was first seen to be due.
    #[serde(with = "time::serde::rfc3339::option")]
    pub past_due_since: Option<OffsetDateTime>,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl Held {
    /// What Stripe answered, with what we alone remember: since when a payment is due.
    pub(super) fn new(fetched: &stripe::Subscription, known: &[Self], now: OffsetDateTime) -> Self {
        let before = known
            .iter()
            .find(|held| held.id == fetched.id)
            .and_then(|held| held.past_due_since);
        Self {
            id: fetched.id.clone(),
            status: fetched.status.clone(),
            price_id: fetched.items.data.first().map(|item| item.price.id.clone()),
            cancel_at_period_end: fetched.cancel_at_period_end || fetched.cancel_at.is_some(),
            current_period_end: fetched.cancel_at().or_else(|| fetched.current_period_end()),
            past_due_since: (fetched.status == "past_due").then(|| before.unwrap_or(now)),
            created_at: OffsetDateTime::from_unix_timestamp(fetched.created).unwrap_or(now),
        }
    }

    /// What it alone grants.
    fn plan(&self, now: OffsetDateTime) -> Plan {
        match self.status.as_str() {
            "trialing" | "active" => Plan::Pro,
            "past_due" if self.grace_ends().is_some_and(|end| end > now) => Plan::Pro,
            // unpaid, canceled, incomplete, incomplete_expired, paused, and whatever Stripe adds.
            _ => Plan::Free,
        }
    }

    /// Until when a payment that is due is waited for.
    pub fn grace_ends(&self) -> Option<OffsetDateTime> {
        self.past_due_since.map(|since| since + GRACE)
    }

    /// Whether it is still there to be managed; a second one beside it would be paid twice.
    pub fn is_live(&self) -> bool {
        !matches!(
            self.status.as_str(),
            "canceled" | "incomplete" | "incomplete_expired"
        )
    }

    /// Whether Stripe will never change it again.
    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "canceled" | "incomplete_expired")
    }
}

/// What all of a customer's subscriptions grant: the best one counts.
pub fn plan(held: &[Held], now: OffsetDateTime) -> Plan {
    if held.iter().any(|held| held.plan(now) == Plan::Pro) {
        Plan::Pro
    } else {
        Plan::Free
    }
}

/// When to ask Stripe again if no event comes before.
pub(super) fn check_at(
    held: &[Held],
    checkout_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let routine = |held: &Held| {
        now + if held.has_ended() {
            CONFIRM_ENDED
        } else {
            CONFIRM
        }
    };
    let grace = held
        .iter()
        .filter_map(Held::grace_ends)
        .filter(|end| *end > now);
    let last_day = held
        .iter()
        .filter(|held| held.cancel_at_period_end && !held.has_ended());
    let last_day = last_day
        .filter_map(|held| held.current_period_end)
        .filter(|end| *end > now);
    let checkout = checkout_at
        .filter(|begun| *begun + CHECKOUT_LIVES > now && !held.iter().any(Held::is_live));
    let checkout = checkout.map(|begun| now + FIRST_LOOK.max(now - begun));
    held.iter()
        .map(routine)
        .chain(grace)
        .chain(last_day)
        .chain(checkout)
        .min()
}

/// When to look first at what became of a checkout.
pub(super) fn first_look(now: OffsetDateTime) -> OffsetDateTime {
    now + FIRST_LOOK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn held(status: &str) -> Held {
        Held {
            id: format!("sub_{status}"),
            status: status.to_owned(),
            price_id: None,
            cancel_at_period_end: false,
            current_period_end: Some(NOW + Duration::days(20)),
            past_due_since: (status == "past_due").then_some(NOW),
            created_at: NOW,
        }
    }

    #[test]
    fn each_status_grants_what_the_table_says() {
        for (status, expected) in [
            ("trialing", Plan::Pro),
            ("active", Plan::Pro),
            ("past_due", Plan::Pro),
            ("unpaid", Plan::Free),
            ("canceled", Plan::Free),
            ("incomplete", Plan::Free),
            ("incomplete_expired", Plan::Free),
            ("paused", Plan::Free),
            ("invented_next_year", Plan::Free),
        ] {
            assert_eq!(plan(&[held(status)], NOW), expected, "{status}");
            let ending = Held {
                cancel_at_period_end: true,
                ..held(status)
            };
            assert_eq!(
                plan(&[ending], NOW),
                expected,
                "{status}, not to be renewed"
            );
        }
        assert_eq!(plan(&[], NOW), Plan::Free);
    }

    #[test]
    fn grace_lasts_seven_days_from_when_a_payment_was_first_seen_to_be_due() {
        let due = held("past_due");
        assert_eq!(
            plan(slice::from_ref(&due), NOW + GRACE - Duration::SECOND),
            Plan::Pro
        );
        assert_eq!(plan(slice::from_ref(&due), NOW + GRACE), Plan::Free);
        let fetched = |status: &str| -> stripe::Subscription {
            let json = serde_json::json!({"id": "sub_past_due", "status": status, "cancel_at_period_end": false,
                "created": 1, "items": {"data": []}});
            serde_json::from_value(json).unwrap()
        };
        let later = NOW + Duration::days(3);
        assert_eq!(
            Held::new(&fetched("past_due"), slice::from_ref(&due), later).past_due_since,
            Some(NOW)
        );
        assert_eq!(
            Held::new(&fetched("past_due"), &[], later).past_due_since,
            Some(later)
        );
        assert_eq!(
            Held::new(&fetched("active"), &[due], later).past_due_since,
            None
        );
    }

    #[test]
    fn an_end_is_set_by_a_time_or_with_the_period() {
        let check = |at_period_end: bool, cancel_at: Option<i64>, expected: (bool, i64)| {
            let json = serde_json::json!({"id": "sub_1", "status": "active", "cancel_at_period_end": at_period_end,
                "cancel_at": cancel_at, "created": 1, "items": {"data": [{"current_period_end": 20, "price": {"id": "a"}}]}});
            let held = Held::new(&serde_json::from_value(json).unwrap(), &[], NOW);
            let last_day = held.current_period_end.unwrap().unix_timestamp();
            assert_eq!(
                (held.cancel_at_period_end, last_day),
                expected,
                "{at_period_end} {cancel_at:?}"
            );
        };
        check(false, None, (false, 20));
        check(true, None, (true, 20));
        check(true, Some(20), (true, 20));
        check(false, Some(20), (true, 20));
        check(false, Some(15), (true, 15));
        check(false, Some(90), (true, 90));
    }

    #[test]
    fn the_best_of_several_counts() {
        assert_eq!(
            plan(&[held("canceled"), held("active"), held("unpaid")], NOW),
            Plan::Pro
        );
        assert_eq!(plan(&[held("canceled"), held("unpaid")], NOW), Plan::Free);
    }

    #[test]
    fn stripe_is_asked_again_when_something_may_have_happened_unheard() {
        let check = |held: &[Held], checkout_at, expected: Option<Duration>| {
            assert_eq!(
                check_at(held, checkout_at, NOW).map(|at| at - NOW),
                expected,
                "{held:?}"
            );
        };
        let ago = |by| Some(NOW - by);
        check(&[], None, None);
        check(&[held("active")], None, Some(Duration::days(1)));
        check(&[held("canceled")], None, Some(Duration::days(7)));
        let due = Held {
            past_due_since: ago(GRACE - Duration::hours(2)),
            ..held("past_due")
        };
        check(&[due], None, Some(Duration::hours(2)));
        let over = Held {
            past_due_since: ago(GRACE),
            ..held("past_due")
        };
        check(&[over], None, Some(Duration::days(1)));
        let soon = Some(NOW + Duration::hours(3));
        let ending = Held {
            cancel_at_period_end: true,
            current_period_end: soon,
            ..held("active")
        };
        check(&[ending], None, Some(Duration::hours(3)));
        check(&[], ago(Duration::ZERO), Some(Duration::minutes(10)));
        check(&[], ago(Duration::hours(5)), Some(Duration::hours(5)));
        check(&[], ago(Duration::hours(25)), None);
        check(
            &[held("canceled")],
            ago(Duration::hours(1)),
            Some(Duration::hours(1)),
        );
        check(
            &[held("active")],
            ago(Duration::ZERO),
            Some(Duration::days(1)),
        );
    }
}
