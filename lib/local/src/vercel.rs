//! The Vercel CLI: `cargo local vercel` and the tests run the same commands.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{instance::Instance, ports, process::Stop, progress::note};

type Environment = BTreeMap<String, String>;

/// The pinned CLI in the checkout at `root`, to be run in `folder`.
pub fn cli(root: &Path, folder: &Path) -> Result<Command> {
    let program = root.join("node_modules/.bin/vercel");
    ensure!(
        program.exists(),
        "the Vercel CLI is not installed: run `npm install`"
    );

    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("VERCEL_TELEMETRY_DISABLED", "1");

    Ok(command)
}

/// `vercel dev` of the checkout at `root` on `port`, without an account.
pub fn dev(root: &Path, port: u16) -> Result<Command> {
    let link = root.join(".vercel/project.json");
    ensure!(
        !link.exists(),
        "{} links this checkout to a project at Vercel, so `vercel dev --local` would use the \
         network: move it away first",
        link.display()
    );

    let mut command = cli(root, root)?;
    command
        .args(["dev", "--local", "--yes"])
        .args(["--listen", &format!("127.0.0.1:{port}")]);
    // The default ports of its other servers are fixed, so a second `vercel dev` would fail.
    for server in ["--queue-port", "--runtime-cache-port", "--schedules-port"] {
        command.args([server, &ports::free_port()?.to_string()]);
    }

    Ok(command)
}

/// `vercel build` of the linked checkout in `folder`, by the CLI of the checkout at `root`.
pub fn build(root: &Path, folder: &Path) -> Result<Command> {
    let mut command = cli(root, folder)?;
    command
        .args(["build", "--yes", "--token", "x"])
        .env("VERCEL_BUILD_IMAGE", "1");

    Ok(command)
}

/// Runs `vercel dev` until it ends. It uses the first free port from `first_port` on.
pub fn run_dev(
    instance: &Instance,
    environment: &Environment,
    first_port: u16,
    arguments: &[String],
) -> Result<bool> {
    let port = ports::next_free_port(first_port)?;
    let url = format!("http://localhost:{port}");
    note(&format!(
        "vercel dev at {url}; it builds each function at its first request"
    ));

    let mut command = dev(&instance.paths.root, port)?;
    command
        .args(arguments)
        .envs(environment)
        .env("PUBLIC_URL", &url)
        .env("CORS_ALLOWED_ORIGINS", &url);
    let mut child = instance.spawn("vercel", &mut command, Stop::Terminate)?;

    Ok(child.wait()?.success())
}
