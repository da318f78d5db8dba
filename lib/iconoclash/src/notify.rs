//! Mail to users and alerts to operators.

pub(crate) mod alert;
pub mod mail;
