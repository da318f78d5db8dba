//! What the operators' tool does, for its binary, for `cargo local` and for tests.
//!
//! Nothing here prints or reads the environment: progress goes to a function of the caller's, line by line. Only
//! `keys::from_terminal` asks a person for something.

pub mod billing;
pub mod budgets;
pub mod direct;
pub mod doctor;
mod icons;
pub mod keys;
mod migrate;
mod pooled;

pub use self::{direct::Error, migrate::migrate};
