//! `cargo local vercel`: the real `vercel dev` on the local stack.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{install, places::Places, ports, process::Stop, profile::Profile, progress::note};

/// Prepares the checkout for the CLI: its packages are there, and no link to an account is.
pub fn prepare(places: &Places) -> Result<()> {
    let link = places.root.join(".vercel/project.json");
    ensure!(
        !link.exists(),
        "{} links this checkout to a project at Vercel, and `vercel dev --local` would ask the network for it: \
         move it away first",
        link.display()
    );
    install::node_modules(places)
}

/// The command that serves this checkout on `port` with this environment.
pub fn dev(
    root: &Path,
    port: u16,
    environment: &BTreeMap<String, String>,
    arguments: &[String],
) -> Result<Command> {
    let url = format!("http://localhost:{port}");
    let mut command = Command::new(root.join("node_modules/.bin/vercel"));
    command
        .args([
            "dev",
            "--local",
            "--yes",
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
        .current_dir(root);
    // Its other servers have fixed ports by default, which a second one would find taken.
    for server in ["--queue-port", "--runtime-cache-port", "--schedules-port"] {
        command.args([server, &ports::free()?.to_string()]);
    }
    command
        .args(arguments)
        .envs(environment)
        .env("VERCEL_TELEMETRY_DISABLED", "1");
    command
        .env("PUBLIC_URL", &url)
        .env("CORS_ALLOWED_ORIGINS", &url);
    Ok(command)
}

/// Runs `vercel dev` until it ends, as part of a stack of our own.
pub fn run(
    profile: &Profile,
    environment: &BTreeMap<String, String>,
    wanted: u16,
    arguments: &[String],
) -> Result<bool> {
    let port = ports::from(wanted)?;
    note(&format!(
        "vercel dev on http://localhost:{port}; each function is built when it is first asked"
    ));
    let mut command = dev(&profile.places.root, port, environment, arguments)?;
    let mut child = profile.spawn("vercel", &mut command, Stop::Terminate)?;
    Ok(child.wait()?.success())
}
