//! `cargo local bench`: what must be cheap or quick, measured, with the bar that it is held to.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads its own environment and the clock"
)]

mod admission;
mod costs;
mod relay;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use iconoclash_local::{places::Places, profile::Profile, with_profile};
use tokio::runtime::{Handle, Runtime};

/// Measures something that must be cheap or quick.
#[derive(Debug, Parser)]
#[command(name = "cargo local bench", bin_name = "cargo local bench")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

/// What is measured.
#[derive(Debug, Subcommand)]
enum Bench {
    /// Admissions a second, and the commands that Redis bills for each
    Admission,
    /// Simulate a day of conversations and print what it costs, by the real prompts and prices
    Costs(costs::Costs),
    /// Relay many replies at once and print what that takes of processor and memory
    Relay(relay::Relay),
}

fn main() -> ExitCode {
    match start(&Cli::parse().bench) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo local bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(bench: &Bench) -> Result<bool> {
    let places = Places::find()?;
    let runtime = Runtime::new()?;
    let handle = runtime.handle();

    with_profile(handle, Profile::open(&places, "bench")?, |profile| {
        run(handle, profile, bench)
    })
}

/// Runs a benchmark on services of its own; true if the bars are met.
fn run(runtime: &Handle, profile: &Profile, bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Admission => admission::run(runtime, profile).map(|()| true),
        Bench::Costs(costs) => costs::run(costs),
        Bench::Relay(relay) => relay::run(runtime, profile, relay),
    }
}
