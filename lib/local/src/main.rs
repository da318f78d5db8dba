//! `cargo local`.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use iconoclash_local::{
    places::Places,
    profile::{self, Profile},
    progress::note,
    serve,
    stack::Stack,
    suite, up, vercel, with_profile,
};
use tokio::runtime::{Handle, Runtime};

/// The local Iconoclash: Postgres 18, PgBouncer, Redis behind an Upstash front, stand-ins and the server.
///
/// Without a command it starts all of that and serves the application at http://localhost:3000.
/// Whatever is missing is installed below target/local; nothing needs root, Docker or an account.
#[derive(Debug, Parser)]
#[command(
    name = "cargo local",
    bin_name = "cargo local",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Task>,
    #[command(flatten)]
    up: Up,
}

#[derive(Debug, Args)]
struct Up {
    /// Where the server listens; the next free port if this one is taken
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start the stack and the development server, and run until Ctrl-C (the default)
    Up(Up),
    /// Print the environment of the running stack
    Env {
        /// As `export` lines for a shell: eval "$(cargo local env --export)"
        #[arg(long)]
        export: bool,
    },
    /// Run the real `vercel dev` on the running stack, or on one of its own
    Vercel {
        /// Where it listens; the next free port if this one is taken
        #[arg(long, default_value_t = 3000)]
        port: u16,
        /// Passed on to `vercel dev`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every test on fresh services: cargo's, the vendors' own clients, the Vercel CLI
    Test {
        /// Only cargo's tests whose names contain this
        filter: Option<String>,
        /// After `--`: passed on to the test binaries
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Measure something that must be cheap or quick
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure; `cargo local bench --help` lists it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Start only what the tests need, print where it is, and run until Ctrl-C
    #[command(hide = true)]
    Services,
    /// Serve every route and public/ (the child of `up`)
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        port: u16,
    },
    /// End what the owner of a profile leaves behind when it dies
    #[command(hide = true)]
    Guard { profile: String },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command.unwrap_or(Task::Up(cli.up))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<bool> {
    let places = Places::find()?;
    let runtime = Runtime::new()?;
    let handle = runtime.handle();
    match task {
        Task::Up(Up { port }) => with_profile(handle, Profile::open(&places, "dev")?, |it| {
            up::run(handle, it, port)
        })
        .map(|never| match never {}),
        Task::Env { export } => {
            let record =
                profile::running(&places, "dev").filter(|record| !record.environment.is_empty());
            print(
                &record
                    .context("nothing runs here: start `cargo local` in another terminal")?
                    .environment,
                export,
            )
        }
        Task::Vercel { port, arguments } => run_vercel(handle, &places, port, &arguments),
        Task::Test { filter, arguments } => {
            with_profile(handle, Profile::open_test(&places)?, |it| {
                suite::run(handle, it, filter.as_slice(), &arguments)
            })
        }
        Task::Bench { arguments } => run_bench(&places, &arguments),
        Task::Services => with_profile(handle, Profile::open_test(&places)?, |it| {
            let (mut services, environment) = suite::prepare(handle, it)?;
            print(
                &environment
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
                true,
            )?;
            note("the services are up; Ctrl-C ends them");
            loop {
                std::thread::sleep(std::time::Duration::from_millis(250));
                services.check(it)?;
            }
        }),
        Task::Serve { port } => serve::run(handle, &places.root, port).map(|()| true),
        Task::Guard { profile } => profile::guard(&places, &profile).map(|()| true),
    }
}

/// The benchmarks are a release build of their own.
fn run_bench(places: &Places, arguments: &[String]) -> Result<bool> {
    let status = Command::new("cargo")
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "iconoclash-bench",
            "--",
        ])
        .args(arguments)
        .current_dir(&places.root)
        .status()
        .context("cargo does not start")?;
    Ok(status.success())
}

fn run_vercel(runtime: &Handle, places: &Places, port: u16, arguments: &[String]) -> Result<bool> {
    vercel::prepare(places)?;
    match profile::running(places, "dev") {
        Some(record) => {
            note(&format!(
                "on the running stack of process {}",
                record.owner.pid
            ));
            let own = Profile::open(places, "vercel")?;
            with_profile(runtime, own, |it| {
                vercel::run(it, &record.environment, port, arguments)
            })
        }
        None => with_profile(runtime, Profile::open(places, "dev")?, |it| {
            let stack = Stack::start(runtime, it, port)?;
            vercel::run(it, &stack.environment, port, arguments)
        }),
    }
}

fn print(environment: &BTreeMap<String, String>, export: bool) -> Result<bool> {
    let mut out = stdout().lock();
    for (name, value) in environment {
        if export {
            writeln!(out, "export {name}='{}'", value.replace('\'', r"'\''"))?;
        } else {
            writeln!(out, "{name}={value}")?;
        }
    }
    Ok(true)
}
