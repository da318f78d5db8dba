//! Mail to users and alerts to operators.

pub mod alert;
pub mod mail;
