//! Parts of the suite: a command whose output is passed on and whose tests are counted.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write, stdout},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{Environment, report::Outcome};
use crate::{instance::Instance, process::Stop, settings, tally::Tally};

/// A command that runs tests.
pub(crate) struct Part {
    pub(crate) label: String,
    pub(crate) command: Command,
    pub(crate) environment: Environment,
}

/// Runs the parts one after another.
pub(crate) struct Runner<'a> {
    instance: &'a Instance,
    /// Parts that were started so far.
    started: usize,
    total: usize,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(instance: &'a Instance, total: usize) -> Self {
        Self {
            instance,
            started: 0,
            total,
        }
    }

    /// Runs a part that has no tests.
    pub(crate) fn build(&mut self, label: &str, mut command: Command) -> Result<Outcome> {
        self.announce(label);
        let started_at = Instant::now();
        command.current_dir(&self.instance.paths.root);
        let mut child = self
            .instance
            .spawn("cargo", &mut command, Stop::Terminate)?;
        let is_success = child.wait()?.success();

        Ok(Outcome {
            label: label.to_owned(),
            took: started_at.elapsed(),
            tally: Tally {
                passed: 0,
                failed: u64::from(!is_success),
            },
            is_success,
        })
    }

    /// Runs a part to its end and passes on its output.
    pub(crate) fn run(&mut self, mut part: Part) -> Result<Outcome> {
        let label = part.label;
        self.announce(&label);
        let started_at = Instant::now();

        settings::remove_settings(&mut part.command);
        part.command
            .envs(&part.environment)
            .current_dir(&self.instance.paths.root)
            .stdout(Stdio::piped());
        if stdout().is_terminal() {
            part.command.env("CARGO_TERM_COLOR", "always");
        }
        let mut child = self
            .instance
            .spawn(&label, &mut part.command, Stop::Terminate)?;
        let output = child.stdout.take().context("the output is not piped")?;
        // On a thread: a process that a test left behind may keep the pipe open after the end.
        let reader = thread::spawn(move || pass_on(BufReader::new(output)));
        let status = child.wait()?;
        let mut tally = reader.join().unwrap_or_default();

        if tally.is_empty() {
            eprintln!("{label} ran no test");
        }
        if tally.failed == 0 && (tally.is_empty() || !status.success()) {
            // It did not build or it crashed, which must not count as "0 failed".
            eprintln!("{label} failed ({status})");
            tally.failed = 1;
        }

        Ok(Outcome {
            label,
            took: started_at.elapsed(),
            tally,
            is_success: tally.failed == 0,
        })
    }

    /// Leaves out a part.
    pub(crate) fn skip(&mut self, label: &str) {
        self.announce(&format!("{label}: skipped"));
    }

    fn announce(&mut self, label: &str) {
        self.started += 1;
        eprintln!("\n── {}/{} {label}", self.started, self.total);
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
