//! Permission to call Claude, with the limits that the ledger re-checks.

use std::time::Duration;

use time::OffsetDateTime;

use crate::{
    clock::{month_end, utc_day},
    http::error::Error,
    spending::{budgets, ledger::Limits, plan::Plan, quota::Quota},
};

/// Permission to call Claude.
#[derive(Clone, Copy, Debug)]
pub struct Permit {
    /// The most that the call can cost, in micro-dollars.
    pub(crate) max_cost: i64,
    /// The limits that the ledger re-checks.
    pub(crate) limits: Limits,
    pub(super) plan: Plan,
    /// The plan's messages a day.
    pub(super) messages_per_day: i64,
    /// The subject's messages today, without this one.
    pub(super) messages_before: i64,
    pub(super) burst_per_minute: u32,
    /// Time until the next message, if the ledger refuses the burst.
    pub(super) burst_wait: Duration,
    pub(super) now: OffsetDateTime,
}

impl Permit {
    /// Whether Redis did not decide, so that the ledger must decide before Claude is called.
    pub(crate) fn is_ledger_only(&self) -> bool {
        self.limits.burst_tolerance_ms.is_some()
    }

    /// The outcome of a limit that the ledger's statement refused.
    pub(crate) fn refusal(&self, error: pooled_postgres::Error) -> Error {
        match error.constraint() {
            Some("subject_days_messages") => self.quota(self.messages_per_day).exceeded(self.plan),
            Some("subject_days_burst") => self
                .quota(self.messages_before)
                .burst_exceeded(self.burst_wait),
            Some("subject_days_spent") => self.quota(self.messages_before).spend_limit(),
            Some("budget_days_day") => budgets::exhausted(self.quota(0).reset_at, self.now),
            Some("budget_days_month") => budgets::exhausted(month_end(utc_day(self.now)), self.now),
            _ => error.into(),
        }
    }

    /// The day's quota when `used` messages are sent.
    pub(crate) fn quota(&self, used: i64) -> Quota {
        let limit = u32::try_from(self.messages_per_day).unwrap_or(u32::MAX);
        let used = u32::try_from(used).unwrap_or_default();
        Quota::new(limit, used, self.now).with_burst(self.burst_per_minute)
    }

    /// The subject's messages today, with this one.
    pub(crate) fn messages_with_this(&self) -> i64 {
        self.messages_before + 1
    }

    /// The plan that the message is sent under.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }
}
