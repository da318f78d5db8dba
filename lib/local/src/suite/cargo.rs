//! The workspace's test targets, and the cargo commands that run them.

use std::{
    env,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{instance::Instance, process::Stop};

/// The packages of the workspace.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The package at the workspace's root.
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

impl Workspace {
    /// Reads `cargo metadata`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }

        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "cargo metadata failed");

        let Metadata { packages } = serde_json::from_slice(&output.stdout)?;
        let manifest = root.join("Cargo.toml");
        let root = packages
            .iter()
            .find(|package| package.manifest_path == manifest)
            .map(|package| package.name.clone());

        Ok(Self { root, packages })
    }

    /// `cargo test` of all packages but the root: that one has only functions, and no tests.
    ///
    /// Every run of the suite selects the same packages, so that their features and therefore
    /// their builds are the same.
    pub(crate) fn cargo_test(&self) -> Command {
        let mut command = self.command("test");
        command.arg("--no-fail-fast");

        command
    }

    /// Builds what `tests` runs, and these targets. Unlike `cargo test --no-run`, it does not list
    /// the binaries.
    pub(crate) fn build_tests(&self, standalone_targets: &[&str]) -> Command {
        let mut command = self.command("build");
        command.arg("--tests");
        for target in standalone_targets {
            command.args(["--test", target]);
        }

        command
    }

    fn command(&self, name: &str) -> Command {
        let mut command = cargo();
        command.args([name, "--workspace"]);
        if let Some(root) = &self.root {
            command.args(["--exclude", root]);
        }

        command
    }

    /// The same without the examples in the documentation.
    pub(crate) fn tests(&self) -> Command {
        let mut command = self.cargo_test();
        command.arg("--tests");

        command
    }

    /// The integration tests of this name.
    pub(crate) fn test_target(&self, name: &str) -> Command {
        let mut command = self.cargo_test();
        command.args(["--test", name]);

        command
    }

    /// Test targets with `test = false`: they are slow and run after all others.
    pub(crate) fn standalone_test_targets(&self) -> Vec<&str> {
        let targets = self.packages.iter().flat_map(|package| &package.targets);
        let standalone =
            targets.filter(|target| !target.test && target.kind.iter().any(|kind| kind == "test"));

        standalone.map(|target| target.name.as_str()).collect()
    }
}

/// The number of tests that `command` would run with these filters.
pub(crate) fn count_tests(
    instance: &Instance,
    command: &Command,
    filters: &[String],
) -> Result<usize> {
    let mut list = cargo();
    list.args(command.get_args())
        .args(["--quiet", "--", "--list", "--format", "terse"])
        .args(filters)
        .current_dir(&instance.paths.root)
        .stdout(Stdio::piped());
    let mut child = instance.spawn("cargo", &mut list, Stop::Terminate)?;

    let mut text = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut text)?;
    }
    ensure!(
        child.wait()?.success(),
        "cargo test cannot list the tests: see its message above"
    );

    Ok(text.lines().filter(|line| line.ends_with(": test")).count())
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
