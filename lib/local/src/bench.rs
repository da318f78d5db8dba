//! `cargo local bench`: what must be cheap or quick, measured, with the bar that it is held to.

pub mod costs;

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Simulate a day of conversations and print what it costs, by the real prompts and prices
    Costs(costs::Costs),
}

/// Measures, and says whether the bars are met.
pub fn run(bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Costs(costs) => costs::run(costs),
    }
}
