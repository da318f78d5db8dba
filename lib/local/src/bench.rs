//! The command line of `cargo local bench`, and the start of the benchmarks' own program.
//!
//! The benchmarks are another package because they are always built in release mode. Their command
//! line is here, so that `cargo local bench --help` needs no release build.

use std::{env, ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::Error;
use clap::{Args, Subcommand};

use crate::{paths::Paths, process::clear_cargo_environment, progress::note};

/// A benchmark.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Admit messages: time and billed Redis commands per admission
    ///
    /// Starts Redis and the Upstash REST proxy, admits 20,000 messages of 1,000 users, 64 at a
    /// time, and prints admissions per second, processor time, and the commands that Redis bills.
    Admission,
    /// Simulate a day of conversations: cost per message
    ///
    /// Uses the real prompts, plans and prices and a model of Claude's prompt cache; nothing is
    /// sent. Prints the assumptions, the costs, and what each measure saves. Exits with 1 if a
    /// message costs more than $0.01.
    Costs(Costs),
    /// Relay many replies at once: processor time and memory
    ///
    /// Builds the function that sends messages as for a deployment and runs it on a stack of its
    /// own. Needs Linux. Exits with 1 if an event takes more than 25 µs of processor time or the
    /// function more than 80 MB.
    Relay(Relay),
}

/// Options of `cargo local bench costs`.
#[derive(Debug, Args)]
pub struct Costs {
    /// Number of users on that day
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// Seed of the random day; the same seed gives the same day
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Options of `cargo local bench relay`.
#[derive(Debug, Args)]
pub struct Relay {
    /// Number of streams, at 40 events per second, for the measurement of processor time
    #[arg(long, default_value_t = 250)]
    pub busy: usize,
    /// Number of open streams for the measurement of memory
    #[arg(long, default_value_t = 1_000)]
    pub streams: usize,
    /// Seconds of the measurement of processor time
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// Replaces this process with the benchmarks' program, built in release mode. Returns only if that
/// fails.
pub fn exec(paths: &Paths, arguments: impl Iterator<Item = OsString>) -> Error {
    note("building the benchmarks in release mode if they changed; the first build takes minutes");

    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["run", "--release", "--package", "iconoclash-bench", "--"])
        .args(arguments)
        .current_dir(&paths.root);
    clear_cargo_environment(&mut command);

    Error::from(command.exec()).context("cannot start cargo")
}
