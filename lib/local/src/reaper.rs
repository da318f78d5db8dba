//! The reaper: a process that stops the children of an instance when the instance dies.

use std::{
    env,
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    paths::Paths,
    process::clear_cargo_environment,
    record::Record,
    registry::{registry_lock, remove_orphans, stop_leftovers, try_lock},
};

/// The hidden command that runs the reaper.
pub(crate) const COMMAND: &str = "reap";

/// Starts this program again as the reaper of the instance `name`.
pub(crate) fn start(name: &str) -> Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command
        .arg(COMMAND)
        .arg(name)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    clear_cargo_environment(&mut command);

    command.spawn().context("cannot start the reaper")
}

/// Waits until the owner of the instance is gone, then stops the processes that it left.
pub(crate) fn run(paths: &Paths, name: &str) -> Result<()> {
    let dir = paths.local.join(name);
    let owner = Record::load(&dir).map(|record| record.owner);

    // Nothing is ever written: the read returns when the owner's end of the pipe closes.
    let _ = std::io::stdin().read(&mut [0]);

    let _registry = registry_lock(paths)?;
    // After an orderly end the record is gone; a later instance has a record of its own.
    while owner.is_some() && Record::load(&dir).map(|record| record.owner) == owner {
        if let Some(_lock) = try_lock(&dir)? {
            stop_leftovers(&dir);
            break;
        }
        // A dying process closes its files in any order: the pipe may close before the lock.
        thread::sleep(Duration::from_millis(5));
    }

    remove_orphans(paths)
}
