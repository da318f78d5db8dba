//! Who may send a message, what it may cost, and the ledger of what it did cost.
//!
//! A message goes through [`admission`], which reserves a *hold*: the most that the reply can cost. The [`ledger`]
//! re-checks every limit in the statement that begins the call, and *settles* the hold to the real cost when the call
//! ends. Postgres is the source of truth; [`reconcile`] repairs what crashes and outages leave behind.

pub mod admission;
pub mod budgets;
pub(crate) mod current_session;
pub mod ledger;
pub(crate) mod open_hold;
pub mod plan;
pub mod price;
pub mod quota;
pub mod reconcile;
pub(crate) mod redis_keys;
pub mod subject;
pub(crate) mod usage;
