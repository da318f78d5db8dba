//! `cargo local test`: runs the tests on services of their own.

mod cargo;
mod part;
mod report;

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    process::Command,
};

use anyhow::Result;
use tokio::runtime::Handle;

use self::{
    cargo::Workspace,
    part::{Part, Runner},
    report::Report,
};
use crate::{
    install::{self, Need},
    instance::Instance,
    progress::note,
    services::{OldestServices, Services},
    stack,
};

/// The migrated database that each test's own database is copied from. Postgres cannot copy a
/// database with open connections, so nothing connects to it.
const TEMPLATE_DB: &str = "iconoclash_template";
/// The migrated database that statements are checked against.
const SCHEMA_DB: &str = "iconoclash_test";

/// Tests that run on the pinned services only: they are slow, and execute the same statements and
/// scripts as the other tests of the API.
const PINNED_SERVICES_ONLY: &[&str] = &["ten_thousand_random_steps_keep_every_limit"];

pub(crate) type Environment = BTreeMap<&'static str, String>;

/// Runs all tests, or cargo's tests whose names contain `filter`; true if all passed.
///
/// `arguments` are passed to the test binaries.
pub fn run(
    runtime: &Handle,
    instance: &Instance,
    filter: Option<&str>,
    arguments: &[String],
) -> Result<bool> {
    let workspace = Workspace::read(&instance.paths.root)?;
    let mut report = Report::new();

    let suite = Suite {
        runtime,
        instance,
        workspace: &workspace,
        report: &mut report,
    };
    match filter {
        Some(filter) => suite.run_matching(filter, arguments)?,
        None => suite.run_all(arguments)?,
    }

    instance.close();
    report.print_table();
    writeln!(stdout(), "{}", report.total())?;

    Ok(report.is_success())
}

/// Starts the services that the tests need. The tests find them by the returned environment.
pub fn prepare(runtime: &Handle, instance: &Instance) -> Result<(Services, Environment)> {
    let services = Services::start(instance, Need::Required)?;
    services
        .postgres
        .create_database(TEMPLATE_DB, "template0")?;
    stack::migrate(runtime, &services, TEMPLATE_DB)?;
    services.postgres.create_database(SCHEMA_DB, TEMPLATE_DB)?;

    let environment = BTreeMap::from([
        ("ICONOCLASH_TEST_POSTGRES", services.postgres.base_url()),
        ("ICONOCLASH_TEST_PGBOUNCER", services.pooled_base_url()),
        ("ICONOCLASH_TEST_REDIS", services.redis.address.to_string()),
        ("ICONOCLASH_TEST_DATABASE", services.postgres.url(SCHEMA_DB)),
    ]);

    Ok((services, environment))
}

struct Suite<'a> {
    runtime: &'a Handle,
    instance: &'a Instance,
    workspace: &'a Workspace,
    report: &'a mut Report,
}

impl Suite<'_> {
    /// Builds first, so that nothing is installed or started for tests that do not build or exist.
    fn run_matching(mut self, filter: &str, arguments: &[String]) -> Result<()> {
        let mut runner = Runner::new(self.instance, 2);
        if !self.build(&mut runner, &[])? {
            return Ok(());
        }

        let filters = [&[filter.to_owned()], arguments].concat();
        let matching = cargo::count_tests(self.instance, &self.workspace.tests(), &filters)?;
        if matching == 0 {
            eprintln!("there is no test whose name contains {filter:?}");
            self.report.add_failure("cargo test");
            return Ok(());
        }
        if !install::has_node_modules(&self.instance.paths)? {
            let clients = self.workspace.test_target("vendor");
            if cargo::count_tests(self.instance, &clients, &filters)? > 0 {
                install::node_modules(&self.instance.paths)?;
            }
        }

        let (_services, environment) = prepare(self.runtime, self.instance)?;
        let mut command = self.workspace.tests();
        command.arg("--").args(&filters);
        self.report.add(runner.run(Part {
            label: format!("cargo test {filter}"),
            command,
            environment,
        })?);
        note("a name selects tests of cargo test; without one, the other parts run too");

        Ok(())
    }

    fn run_all(mut self, arguments: &[String]) -> Result<()> {
        let standalone = self.workspace.standalone_test_targets();
        let mut runner = Runner::new(self.instance, 3 + standalone.len());
        if !self.build(&mut runner, &standalone)? {
            return Ok(());
        }

        install::node_modules(&self.instance.paths)?;
        let (services, environment) = prepare(self.runtime, self.instance)?;

        let mut command = self.workspace.cargo_test();
        command.arg("--").args(arguments);
        self.report.add(runner.run(Part {
            label: "cargo test".into(),
            command,
            environment: environment.clone(),
        })?);

        let oldest = OldestServices::start(self.instance, &services.secrets)?;
        if oldest.is_empty() {
            runner.skip("cargo test on the oldest supported servers");
        } else {
            self.report.add(runner.run(Part {
                label: format!("cargo test on {}", oldest.labels()),
                command: self.tests_on_the_oldest(),
                environment: self.environment_of_the_oldest(&oldest, &environment)?,
            })?);
        }

        for target in standalone {
            self.report.add(runner.run(Part {
                label: target.to_owned(),
                command: self.workspace.test_target(target),
                environment: environment.clone(),
            })?);
        }

        Ok(())
    }

    /// Builds the tests; false, and a failure in the report, if they do not build.
    fn build(&mut self, runner: &mut Runner<'_>, standalone: &[&str]) -> Result<bool> {
        let command = self.workspace.build_tests(standalone);
        let outcome = runner.build("build the tests", command)?;
        let is_built = outcome.is_success;
        self.report.add(outcome);

        Ok(is_built)
    }

    /// The tests that use Postgres and Redis most: statements, scripts, and the whole API.
    fn tests_on_the_oldest(&self) -> Command {
        let mut command = self.workspace.cargo_test();
        command.args(["--lib", "--test", "api", "--test", "rest", "--"]);
        for test in PINNED_SERVICES_ONLY {
            command.args(["--skip", test]);
        }

        command
    }

    /// The oldest servers, without a pooler; the pinned ones where there is no oldest one.
    fn environment_of_the_oldest(
        &self,
        oldest: &OldestServices,
        pinned: &Environment,
    ) -> Result<Environment> {
        let mut environment = pinned.clone();
        if let Some(postgres) = &oldest.postgres {
            postgres.create_database(TEMPLATE_DB, "template0")?;
            stack::migrate_url(self.runtime, &postgres.url(TEMPLATE_DB), None)?;
            postgres.create_database(SCHEMA_DB, TEMPLATE_DB)?;
            environment.extend([
                ("ICONOCLASH_TEST_POSTGRES", postgres.base_url()),
                ("ICONOCLASH_TEST_PGBOUNCER", postgres.base_url()),
                ("ICONOCLASH_TEST_DATABASE", postgres.url(SCHEMA_DB)),
            ]);
        }
        if let Some(redis) = &oldest.redis {
            environment.insert("ICONOCLASH_TEST_REDIS", redis.address.to_string());
        }

        Ok(environment)
    }
}
