//! Leave to ask Claude, as the statement that writes the ledger checks it once more.

use std::time::Duration;
use time::OffsetDateTime;

use crate::{
    clock::{month_end, utc_day},
    http::error::Error,
    spending::{budgets, plan::Plan, quota::Quota},
};

/// Leave to ask Claude, within limits that the ledger's statement checks once more.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// The most that the call can cost.
    pub hold: i64,
    /// Messages a day.
    pub messages: i64,
    /// What the subject may spend a day.
    pub spent: i64,
    /// What everybody may spend a day.
    pub day: i64,
    /// What everybody may spend a month.
    pub month: i64,
    /// Milliseconds between two messages in the long run.
    pub burst_every_ms: i64,
    /// Milliseconds of burst, where Redis has not decided over it.
    pub burst_most_ms: Option<i64>,
    /// How long a message that is too early has to wait.
    pub(super) burst_wait: Duration,
    pub(super) burst: u32,
    /// Messages before this one.
    pub(super) taken: i64,
    pub(super) plan: Plan,
    pub(super) now: OffsetDateTime,
}

impl Gate {
    /// Whether Redis could not be asked, so that the ledger's statement alone decides, before Claude is asked.
    pub fn is_degraded(&self) -> bool {
        self.burst_most_ms.is_some()
    }

    /// The outcome that the refusal of the ledger's statement stands for.
    pub fn refused(&self, error: pooled_postgres::Error) -> Error {
        match error.constraint() {
            Some("subject_days_messages") => self.quota(self.messages).exceeded(self.plan),
            Some("subject_days_burst") => self.quota(self.taken).burst_exceeded(self.burst_wait),
            Some("subject_days_spent") => self.quota(self.taken).spend_limit(),
            Some("budget_days_day") => budgets::exhausted(self.quota(0).reset_at, self.now),
            Some("budget_days_month") => budgets::exhausted(month_end(utc_day(self.now)), self.now),
            _ => error.into(),
        }
    }

    /// The day as answers show it.
    pub fn quota(&self, taken: i64) -> Quota {
        let limit = u32::try_from(self.messages).unwrap_or(u32::MAX);
        Quota::new(limit, u32::try_from(taken).unwrap_or_default(), self.now).with_burst(self.burst)
    }

    /// Messages with this one.
    pub fn next(&self) -> i64 {
        self.taken + 1
    }

    /// Who pays how much.
    pub fn plan(&self) -> Plan {
        self.plan
    }
}
