//! The benchmarks: each prints its figures and the bar that they must keep.

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
use iconoclash_local::{Internal, bench::Bench, instance::Instance, paths::Paths, with_instance};
use tokio::runtime::{Handle, Runtime};

/// Measure what must be fast or cheap
#[derive(Debug, Parser)]
#[command(name = "cargo local bench", bin_name = "cargo local bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    #[command(flatten)]
    Bench(Bench),
    #[command(flatten)]
    Internal(Internal),
}

fn main() -> ExitCode {
    match run(&Cli::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo local bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<bool> {
    let paths = Paths::find()?;
    let runtime = Runtime::new()?;
    let handle = runtime.handle();

    match task {
        Task::Internal(command) => command.run(handle, &paths).map(|()| true),
        Task::Bench(bench) => with_instance(handle, Instance::open(&paths, "bench")?, |instance| {
            run_bench(handle, instance, bench)
        }),
    }
}

/// Runs a benchmark on services of its own; true if it keeps its bars.
fn run_bench(runtime: &Handle, instance: &Instance, bench: &Bench) -> Result<bool> {
    match bench {
        Bench::Admission => admission::run(runtime, instance).map(|()| true),
        Bench::Costs(options) => costs::run(options),
        Bench::Relay(options) => relay::run(runtime, instance, options),
    }
}
