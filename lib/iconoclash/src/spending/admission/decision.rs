//! The answer of the admission script.

use std::time::Duration;

use super::LedgerSnapshot;
use crate::spending::plan::Plan;

/// What the script decided. The numbers are those of `lua/reserve.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Admitted = 0,
    Revoked = 1,
    Quota = 2,
    Burst = 3,
    Spend = 4,
    Day = 5,
    Month = 6,
    /// Redis lacks something that the caller can provide.
    Unknown = 7,
}

impl Code {
    fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Admitted,
            1 => Self::Revoked,
            2 => Self::Quota,
            3 => Self::Burst,
            4 => Self::Spend,
            5 => Self::Day,
            6 => Self::Month,
            _ => Self::Unknown,
        }
    }
}

/// Redis' decision on one message, and what it knew.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    code: Code,
    plan: Plan,
    /// The prompt's length that the decision is for.
    bytes: usize,
    pub(super) hold: i64,
    pub(super) messages: i64,
    spent: i64,
    today: i64,
    month: i64,
    pub(super) wait: Duration,
}

impl Decision {
    /// Reads the words that the script returns.
    pub(super) fn from_words(
        [code, plan, hold, messages, spent, today, month, wait]: [i64; 8],
        bytes: usize,
    ) -> Self {
        let plan = usize::try_from(plan - 1)
            .ok()
            .and_then(|plan| Plan::ALL.get(plan));

        Self {
            code: Code::from_number(code),
            plan: plan.copied().unwrap_or(Plan::Free),
            bytes,
            hold,
            messages,
            spent,
            today,
            month,
            wait: Duration::from_millis(u64::try_from(wait).unwrap_or_default()),
        }
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// Whether Redis knew everything that it decided by, and no less than the ledger.
    pub(super) fn agrees_with(&self, ledger: &LedgerSnapshot) -> bool {
        let same_plan = self.plan == ledger.plan;
        match self.code {
            Code::Revoked => true,
            Code::Admitted => {
                same_plan && self.bytes >= ledger.prompt_bytes && !self.is_behind(ledger)
            }
            Code::Quota | Code::Burst => same_plan,
            // A shorter prompt may have room.
            Code::Spend | Code::Day | Code::Month => same_plan && self.bytes <= ledger.prompt_bytes,
            Code::Unknown => false,
        }
    }

    fn is_behind(&self, ledger: &LedgerSnapshot) -> bool {
        let is_admitted = self.code == Code::Admitted;
        let own_message = i64::from(is_admitted);
        let own_hold = if is_admitted { self.hold } else { 0 };
        // Concurrent admissions may be counted in one store and not yet in the other. Tolerate 1 %, because the ledger
        // re-checks exactly.
        let day_tolerance = ledger.budgets.day / 100;
        let month_tolerance = ledger.budgets.month / 100;

        self.messages - own_message < ledger.messages
            || self.spent - own_hold < ledger.spent
            || self.today - own_hold < ledger.today - day_tolerance
            || self.month - own_hold < ledger.month - month_tolerance
    }
}
