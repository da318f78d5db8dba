//! `cargo local test`: every test there is, on services of its own.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io::{BufRead, BufReader, IsTerminal, Write, stdout},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::{
    install, postgres::Postgres, process::Stop, profile::Profile, progress::note,
    services::Services, stack, summary::Tally,
};

/// Copied for each test, so nothing may be connected to it.
const TEMPLATE: &str = "iconoclash_template";
/// A migrated database to check statements against.
const CHECKED: &str = "iconoclash_test";

/// Runs the tests whose names contain a filter, or all of them; true if all passed.
pub fn run(
    runtime: &Handle,
    profile: &Profile,
    filters: &[String],
    arguments: &[String],
) -> Result<bool> {
    let begun = Instant::now();
    // The vendors' own clients and Vercel's own CLI, which some tests run.
    install::node_modules(&profile.places)?;
    let (services, environment) = prepare(runtime, profile)?;

    let suite = Suite {
        profile,
        environment,
        members: Members::read(&profile.places.root)?,
    };
    let mut total = Tally::default();
    let mut all_well = true;
    let mut count = |name: &str, command: Command| -> Result<()> {
        let (tally, well) = suite.run(name, command)?;
        total += tally;
        all_well &= well;
        Ok(())
    };

    count("cargo test", suite.cargo_test(filters, arguments))?;
    if filters.is_empty() {
        if let Some(oldest) = &services.postgres_15 {
            let mut again = suite.cargo(&[
                "test",
                "--package",
                "iconoclash",
                "--lib",
                "--test",
                "api",
                "--no-fail-fast",
            ]);
            again.envs(on_the_oldest(runtime, oldest)?);
            count("cargo test on Postgres 15", again)?;
        }
        for (package, target) in suite.members.apart() {
            count(
                target,
                suite.cargo(&["test", "--package", package, "--test", target]),
            )?;
        }
    } else {
        note("filters are for cargo test, so the other runners are left out");
    }
    note(&format!("all in {:.0} s", begun.elapsed().as_secs_f32()));
    profile.close();
    writeln!(stdout(), "{total}")?;
    Ok(all_well)
}

/// Starts what the tests need and says where it is, as they read it from their environment.
pub fn prepare(
    runtime: &Handle,
    profile: &Profile,
) -> Result<(Services, BTreeMap<&'static str, String>)> {
    let services = Services::start_for_tests(profile)?;
    services.postgres.create_database(TEMPLATE, "template0")?;
    stack::migrate(runtime, &services, TEMPLATE)?;
    services.postgres.create_database(CHECKED, TEMPLATE)?;
    let environment = BTreeMap::from([
        ("ICONOCLASH_TEST_POSTGRES", services.postgres.base_url()),
        ("ICONOCLASH_TEST_PGBOUNCER", services.pooled_base_url()),
        ("ICONOCLASH_TEST_REDIS", services.redis.address.to_string()),
        ("ICONOCLASH_TEST_DATABASE", services.postgres.url(CHECKED)),
    ]);
    Ok((services, environment))
}

/// The oldest Postgres that is promised, without a pooler.
fn on_the_oldest(runtime: &Handle, server: &Postgres) -> Result<BTreeMap<&'static str, String>> {
    server.create_database(TEMPLATE, "template0")?;
    stack::migrate_url(runtime, &server.url(TEMPLATE), None)?;
    server.create_database(CHECKED, TEMPLATE)?;
    Ok(BTreeMap::from([
        ("ICONOCLASH_TEST_POSTGRES", server.base_url()),
        ("ICONOCLASH_TEST_PGBOUNCER", server.base_url()),
        ("ICONOCLASH_TEST_DATABASE", server.url(CHECKED)),
    ]))
}

struct Suite<'a> {
    profile: &'a Profile,
    environment: BTreeMap<&'static str, String>,
    members: Members,
}

impl Suite<'_> {
    fn cargo_test(&self, filters: &[String], arguments: &[String]) -> Command {
        let mut command = self.cargo(&["test", "--workspace", "--no-fail-fast"]);
        // The root package is nothing but functions: its tests would link every one of them.
        if let Some(root) = &self.members.root {
            command.args(["--exclude", root]);
        }
        command.arg("--").args(filters).args(arguments);
        command
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args);
        command
    }

    /// Runs one runner to its end, its output passed on as it comes.
    fn run(&self, name: &str, mut command: Command) -> Result<(Tally, bool)> {
        eprintln!("\n── {name}");
        let mut settings: BTreeMap<OsString, OsString> = BTreeMap::new();
        settings.extend(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name.into(), value?.into()))),
        );
        stack::forget_settings(&mut command);
        command
            .envs(&self.environment)
            .envs(settings)
            .current_dir(&self.profile.places.root);
        if stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        let mut child =
            self.profile
                .spawn(name, command.stdout(Stdio::piped()), Stop::Terminate)?;
        let output = child.stdout.take().context("its output is piped")?;
        // On a thread, so that something a test left behind with the pipe open does not hold us.
        let reader = thread::spawn(move || pass_on(BufReader::new(output)));
        let status = child.wait()?;
        let mut tally = reader.join().unwrap_or_default();
        if tally.is_empty() {
            eprintln!("{name} ran no test");
        }
        if tally.failed == 0 && (tally.is_empty() || !status.success()) {
            // It did not build, or it crashed: that is not "0 failed".
            eprintln!("{name} failed ({status})");
            tally.failed = 1;
        }
        Ok((tally, tally.failed == 0))
    }
}

fn pass_on(mut output: impl BufRead) -> Tally {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while output
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        let _ = stdout().write_all(&line).and_then(|()| stdout().flush());
        tally.read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    tally
}

/// What cargo says of the workspace.
#[derive(Debug)]
struct Members {
    root: Option<String>,
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    test: bool,
}

impl Members {
    fn read(root: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "cargo metadata failed");
        let Metadata { packages } = serde_json::from_slice(&output.stdout)?;
        let manifest = root.join("Cargo.toml");
        let root = packages
            .iter()
            .find(|package| package.manifest_path == manifest)
            .map(|it| it.name.clone());
        Ok(Self { root, packages })
    }

    /// Test targets with `test = false`: slow or of another kind, they run by name, after all others.
    fn apart(&self) -> impl Iterator<Item = (&str, &str)> {
        self.packages.iter().flat_map(|package| {
            let tests = package
                .targets
                .iter()
                .filter(|it| !it.test && it.kind.iter().any(|kind| kind == "test"));
            tests.map(|target| (package.name.as_str(), target.name.as_str()))
        })
    }
}
