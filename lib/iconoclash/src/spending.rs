//! Who may send a message, what it may cost, and the ledger of what it did cost.

pub mod admission;
pub mod budgets;
pub mod plan;
pub mod price;
pub mod quota;
pub mod reconcile;
