//! `cargo local bench`: what must be cheap or quick, measured, with the bar that it is held to.

pub mod admission;
pub mod costs;
pub mod relay;

use anyhow::Result;
use clap::Subcommand;
use tokio::runtime::Handle;

use crate::profile::Profile;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Admissions a second, and the commands that Redis bills for each
    Admission,
    /// Simulate a day of conversations and print what it costs, by the real prompts and prices
    Costs(costs::Costs),
    /// Relay many replies at once and print what that takes of processor and memory
    Relay(relay::Relay),
}

/// Measures on services of a profile, and says whether the bars are met.
pub fn run(runtime: &Handle, profile: &Profile, bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Admission => admission::run(runtime, profile).map(|()| true),
        Bench::Costs(costs) => costs::run(costs),
        Bench::Relay(relay) => relay::run(runtime, profile, relay),
    }
}
