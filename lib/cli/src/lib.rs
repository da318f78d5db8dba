//! The commands of the operators' tool, for its binary, for `cargo local` and for tests.
//!
//! Commands neither print nor read the environment: they pass their progress to a function of the caller, line by line.
//! Only `keys::from_terminal` reads from the terminal.

pub mod billing;
pub mod budgets;
pub mod direct;
pub mod doctor;
mod icons;
pub mod keys;
mod migrate;
mod pooled;

pub use self::{direct::Error, migrate::migrate};
