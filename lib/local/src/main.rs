//! The command line of `cargo local`.

use std::{
    env,
    io::{Write, stdout},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use iconoclash_local::{
    Internal,
    bench::{self, Bench},
    instance::Instance,
    paths::Paths,
    progress::note,
    running,
    stack::Stack,
    suite, up, vercel, with_instance,
};
use tokio::runtime::{Handle, Runtime};

/// The name of the instance that `cargo local` runs.
const DEV: &str = "dev";

/// Run Iconoclash on this machine: Postgres, PgBouncer, Redis, fake vendors and every route
///
/// Without a command it starts all of that and serves the application at http://localhost:3000.
/// Missing programs are installed into target/local. It needs Rust, Node and Python 3, but no
/// root, no Docker and no account.
#[derive(Debug, Parser)]
#[command(
    name = "cargo local",
    bin_name = "cargo local",
    args_conflicts_with_subcommands = true,
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Task>,
    #[command(flatten)]
    up: Up,
}

const AFTER_HELP: &str = "\
Settings come from the shell and from .env; .env.example lists them all. Without keys of Claude,
Stripe and Resend, fake vendors answer. Databases and secrets are never taken from the shell.

Data and logs are in target/local/dev; data of root may be in target/local/store/dev. Remove them to
start with an empty database.";

#[derive(Debug, Args)]
struct Up {
    /// Where the server listens; the next free port if this one is taken
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start the stack and the development server, until Ctrl-C (the default)
    Up(Up),
    /// Print the environment of the running stack
    Env {
        /// As `export` lines for a shell: eval "$(cargo local env --export)"
        #[arg(long)]
        export: bool,
    },
    /// Run the real `vercel dev`, on the running stack or on one of its own
    Vercel {
        /// Where it listens; the next free port if this one is taken
        #[arg(long, default_value_t = 3000)]
        port: u16,
        /// Passed on to `vercel dev`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the tests on pinned services of their own
    ///
    /// Without a name all of them: cargo's tests, with the vendors' own clients; a part of them
    /// on the oldest supported Postgres and Redis; the Vercel CLI. The last line counts them.
    Test {
        /// Only cargo's tests whose names contain this
        name: Option<String>,
        /// After `--`: passed on to the test binaries
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Measure what must be fast or cheap, in release mode
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Start the services of the tests, print their environment, and run until Ctrl-C
    #[command(hide = true)]
    Services,
    #[command(flatten)]
    Internal(Internal),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let task = cli.command.unwrap_or(Task::Up(cli.up));

    match run(task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<bool> {
    let paths = Paths::find()?;
    if let Task::Bench { .. } = task {
        // Checked by this program's parser, and passed on as they are.
        return Err(bench::exec(&paths, env::args_os().skip(2)));
    }

    let runtime = Runtime::new()?;
    let handle = runtime.handle();
    match task {
        Task::Up(Up { port }) => run_up(handle, &paths, port),
        Task::Env { export } => print_environment(&paths, export),
        Task::Vercel { port, arguments } => run_vercel(handle, &paths, port, &arguments),
        Task::Test { name, arguments } => {
            with_instance(handle, Instance::open_test(&paths)?, |instance| {
                suite::run(handle, instance, name.as_deref(), &arguments)
            })
        }
        Task::Services => run_services(handle, &paths),
        Task::Internal(command) => command.run(handle, &paths).map(|()| true),
        Task::Bench { .. } => unreachable!("the benchmarks replaced this process"),
    }
}

fn run_up(runtime: &Handle, paths: &Paths, port: u16) -> Result<bool> {
    with_instance(runtime, Instance::open(paths, DEV)?, |instance| {
        up::run(runtime, instance, port)
    })
    .map(|never| match never {})
}

fn print_environment(paths: &Paths, export: bool) -> Result<bool> {
    let record = running(paths, DEV)
        .filter(|record| !record.environment.is_empty())
        .context("nothing runs here: start `cargo local` in another terminal")?;
    print(&record.environment, export)?;

    Ok(true)
}

fn run_vercel(runtime: &Handle, paths: &Paths, port: u16, arguments: &[String]) -> Result<bool> {
    iconoclash_local::install::node_modules(paths)?;

    match running(paths, DEV) {
        Some(record) => {
            note(&format!(
                "on the running stack of process {}",
                record.owner.pid
            ));
            let own = Instance::open(paths, "vercel")?;
            with_instance(runtime, own, |instance| {
                vercel::run_dev(instance, &record.environment, port, arguments)
            })
        }
        None => with_instance(runtime, Instance::open(paths, DEV)?, |instance| {
            let stack = Stack::start(runtime, instance, port)?;
            vercel::run_dev(instance, &stack.environment, port, arguments)
        }),
    }
}

fn run_services(runtime: &Handle, paths: &Paths) -> Result<bool> {
    with_instance(runtime, Instance::open_test(paths)?, |instance| {
        let (mut services, environment) = suite::prepare(runtime, instance)?;
        print(&environment, true)?;
        note("the services are up; Ctrl-C stops them");

        loop {
            thread::sleep(Duration::from_millis(250));
            services.check(instance)?;
        }
    })
}

fn print<'a, N: std::fmt::Display + 'a>(
    environment: impl IntoIterator<Item = (&'a N, &'a String)>,
    export: bool,
) -> Result<()> {
    let mut out = stdout().lock();

    for (name, value) in environment {
        if export {
            writeln!(out, "export {name}='{}'", value.replace('\'', r"'\''"))?;
        } else {
            writeln!(out, "{name}={value}")?;
        }
    }

    Ok(())
}
