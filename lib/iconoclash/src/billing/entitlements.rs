//! What subscriptions grant, and when to refresh them. Pure functions; the time is passed in.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::spending::plan::Plan;

/// How long a user stays Pro while a payment is past due: time to notice a mail and update a card.
pub const GRACE: Duration = Duration::days(7);

/// How often a subscription is refreshed without an event.
const REFRESH_INTERVAL: Duration = Duration::days(1);
/// The same for one that has ended, which changes only if an operator creates another in Stripe's dashboard.
const ENDED_REFRESH_INTERVAL: Duration = Duration::days(7);
/// How long a checkout's result is awaited. Its page lives for a day, and a late payment takes a while to confirm.
const CHECKOUT_LIFETIME: Duration = Duration::hours(25);
/// Time from the start of a checkout to its first check. Later checks follow at growing intervals.
const FIRST_CHECKOUT_CHECK: Duration = Duration::minutes(10);

/// A subscription in the local copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSubscription {
    /// `sub_…`
    pub id: String,
    /// Stripe's name of the status. A string, not an enum: a status that Stripe adds must not stop the copy.
    pub status: String,
    /// The price of its first item.
    pub price_id: Option<String>,
    /// Whether it will end, with the period or at a set time.
    pub cancel_at_period_end: bool,
    /// The time at which it ends, if one is set; otherwise the end of the paid period.
    #[serde(with = "time::serde::rfc3339::option")]
    pub current_period_end: Option<OffsetDateTime>,
    /// When it was first seen to be past due. Stripe does not report this.
    #[serde(with = "time::serde::rfc3339::option")]
    pub past_due_since: Option<OffsetDateTime>,
    /// When it was created at Stripe.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl StoredSubscription {
    /// Stripe's answer, with `past_due_since` taken from the stored copy.
    pub(super) fn new(
        fetched: &stripe::Subscription,
        stored: &[Self],
        now: OffsetDateTime,
    ) -> Self {
        let past_due_since = stored
            .iter()
            .find(|subscription| subscription.id == fetched.id)
            .and_then(|subscription| subscription.past_due_since);
        let is_past_due = fetched.status == "past_due";

        Self {
            id: fetched.id.clone(),
            status: fetched.status.clone(),
            price_id: fetched.items.data.first().map(|item| item.price.id.clone()),
            cancel_at_period_end: fetched.cancel_at_period_end || fetched.cancel_at.is_some(),
            current_period_end: fetched.cancel_at().or_else(|| fetched.current_period_end()),
            past_due_since: is_past_due.then(|| past_due_since.unwrap_or(now)),
            created_at: OffsetDateTime::from_unix_timestamp(fetched.created).unwrap_or(now),
        }
    }

    /// The plan that this subscription grants.
    fn plan(&self, now: OffsetDateTime) -> Plan {
        match self.status.as_str() {
            "trialing" | "active" => Plan::Pro,
            "past_due" if self.grace_ends().is_some_and(|end| end > now) => Plan::Pro,
            // unpaid, canceled, incomplete, incomplete_expired, paused, and any status that Stripe adds.
            _ => Plan::Free,
        }
    }

    /// When the grace period of a past due payment ends.
    pub(crate) fn grace_ends(&self) -> Option<OffsetDateTime> {
        self.past_due_since.map(|since| since + GRACE)
    }

    /// Whether a second subscription would be paid in addition to this one.
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

    /// When it is refreshed without a special reason.
    fn routine_check(&self, now: OffsetDateTime) -> OffsetDateTime {
        if self.has_ended() {
            now + ENDED_REFRESH_INTERVAL
        } else {
            now + REFRESH_INTERVAL
        }
    }

    /// When it ends, if it is going to.
    fn last_day(&self) -> Option<OffsetDateTime> {
        let will_end = self.cancel_at_period_end && !self.has_ended();
        self.current_period_end.filter(|_| will_end)
    }
}

/// The best plan that any of a customer's subscriptions grants.
pub(super) fn plan(subscriptions: &[StoredSubscription], now: OffsetDateTime) -> Plan {
    let is_pro = subscriptions
        .iter()
        .any(|subscription| subscription.plan(now) == Plan::Pro);

    if is_pro { Plan::Pro } else { Plan::Free }
}

/// When to refresh a customer if no event arrives before.
pub(super) fn check_at(
    subscriptions: &[StoredSubscription],
    checkout_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let routine = subscriptions
        .iter()
        .map(|subscription| subscription.routine_check(now));
    let ends_of_grace = subscriptions
        .iter()
        .filter_map(StoredSubscription::grace_ends);
    let last_days = subscriptions
        .iter()
        .filter_map(StoredSubscription::last_day);
    let upcoming_ends = ends_of_grace.chain(last_days).filter(|end| *end > now);

    routine
        .chain(upcoming_ends)
        .chain(next_checkout_check(subscriptions, checkout_at, now))
        .min()
}

/// When to check the result of a checkout next. The interval grows with the checkout's age.
fn next_checkout_check(
    subscriptions: &[StoredSubscription],
    checkout_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let started_at = checkout_at?;
    let is_awaited = started_at + CHECKOUT_LIFETIME > now
        && !subscriptions.iter().any(StoredSubscription::is_live);

    is_awaited.then(|| now + FIRST_CHECKOUT_CHECK.max(now - started_at))
}

/// When to check the result of a checkout that starts now.
pub(super) fn first_checkout_check(now: OffsetDateTime) -> OffsetDateTime {
    now + FIRST_CHECKOUT_CHECK
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::slice;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn with_status(status: &str) -> StoredSubscription {
        StoredSubscription {
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
    fn each_status_grants_the_plan_of_the_table() {
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
            let subscription = with_status(status);
            assert_eq!(plan(&[subscription], NOW), expected, "{status}");

            let ending = StoredSubscription {
                cancel_at_period_end: true,
                ..with_status(status)
            };
            assert_eq!(plan(&[ending], NOW), expected, "{status}, ending");
        }
        assert_eq!(plan(&[], NOW), Plan::Free);
    }

    #[test]
    fn the_grace_period_is_seven_days_from_when_the_payment_was_first_seen_past_due() {
        let past_due = with_status("past_due");
        let granted = |at| plan(slice::from_ref(&past_due), at);
        assert_eq!(granted(NOW + GRACE - Duration::SECOND), Plan::Pro);
        assert_eq!(granted(NOW + GRACE), Plan::Free);

        let later = NOW + Duration::days(3);
        let since = |status: &str, stored: &[StoredSubscription]| {
            let json = json!({
                "id": "sub_past_due", "status": status, "cancel_at_period_end": false,
                "created": 1, "items": {"data": []},
            });
            let fetched = serde_json::from_value(json).unwrap();
            StoredSubscription::new(&fetched, stored, later).past_due_since
        };
        let stored = slice::from_ref(&past_due);
        assert_eq!(since("past_due", stored), Some(NOW));
        assert_eq!(since("past_due", &[]), Some(later));
        assert_eq!(since("active", stored), None);
    }

    #[test]
    fn a_subscription_may_end_at_a_set_time_or_with_its_period() {
        #[track_caller]
        fn check(at_period_end: bool, cancel_at: Option<i64>, expected: (bool, i64)) {
            let json = json!({
                "id": "sub_1", "status": "active", "cancel_at_period_end": at_period_end,
                "cancel_at": cancel_at, "created": 1,
                "items": {"data": [{"current_period_end": 20, "price": {"id": "a"}}]},
            });
            let fetched = serde_json::from_value(json).unwrap();

            let stored = StoredSubscription::new(&fetched, &[], NOW);
            let last_day = stored.current_period_end.unwrap().unix_timestamp();
            assert_eq!((stored.cancel_at_period_end, last_day), expected);
        }
        check(false, None, (false, 20));
        check(true, None, (true, 20));
        check(true, Some(20), (true, 20));
        check(false, Some(20), (true, 20));
        check(false, Some(15), (true, 15));
        check(false, Some(90), (true, 90));
    }

    #[test]
    fn the_best_of_several_subscriptions_counts() {
        let all = ["canceled", "active", "unpaid"].map(with_status);
        assert_eq!(plan(&all, NOW), Plan::Pro);

        let none_paid = ["canceled", "unpaid"].map(with_status);
        assert_eq!(plan(&none_paid, NOW), Plan::Free);
    }

    #[test]
    fn a_customer_is_refreshed_when_an_event_may_have_been_lost() {
        #[track_caller]
        fn check(
            subscriptions: &[StoredSubscription],
            checkout_at: Option<OffsetDateTime>,
            expected: Option<Duration>,
        ) {
            let due_in = check_at(subscriptions, checkout_at, NOW).map(|at| at - NOW);
            assert_eq!(due_in, expected, "{subscriptions:?}");
        }
        let ago = |by| Some(NOW - by);

        check(&[], None, None);
        check(&[with_status("active")], None, Some(Duration::days(1)));
        check(&[with_status("canceled")], None, Some(Duration::days(7)));

        let in_grace = StoredSubscription {
            past_due_since: ago(GRACE - Duration::hours(2)),
            ..with_status("past_due")
        };
        check(&[in_grace], None, Some(Duration::hours(2)));

        let after_grace = StoredSubscription {
            past_due_since: ago(GRACE),
            ..with_status("past_due")
        };
        check(&[after_grace], None, Some(Duration::days(1)));

        let ending = StoredSubscription {
            cancel_at_period_end: true,
            current_period_end: Some(NOW + Duration::hours(3)),
            ..with_status("active")
        };
        check(&[ending], None, Some(Duration::hours(3)));

        check(&[], ago(Duration::ZERO), Some(Duration::minutes(10)));
        check(&[], ago(Duration::hours(5)), Some(Duration::hours(5)));
        check(&[], ago(Duration::hours(25)), None);

        let canceled = with_status("canceled");
        let hour = Duration::hours(1);
        check(&[canceled], ago(hour), Some(hour));

        let active = with_status("active");
        check(&[active], ago(Duration::ZERO), Some(Duration::days(1)));
    }
}
