//! Usage of a process, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// Ticks per second in /proc, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time in user and in system mode: seconds, or microseconds per event.
pub(super) struct Cpu {
    pub(super) user: f64,
    pub(super) system: f64,
}

impl Cpu {
    /// The seconds that a process has used so far.
    pub(super) fn read(process: &str) -> Result<Self> {
        let stat = fs::read_to_string(format!("{process}/stat"))?;
        // The name, in parentheses, may contain spaces.
        let (_, fields) = stat.rsplit_once(')').context("unexpected format of stat")?;
        let mut ticks = fields.split_whitespace().skip(11);
        let mut next_seconds = || {
            let ticks: f64 = ticks.next()?.parse().ok()?;
            Some(ticks / TICKS_PER_SECOND)
        };

        Ok(Self {
            user: next_seconds().context("unexpected format of stat")?,
            system: next_seconds().context("unexpected format of stat")?,
        })
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }

    pub(super) fn micros_per_event(&self, events: usize) -> Self {
        let per_event = |seconds: f64| seconds * 1e6 / events as f64;

        Self {
            user: per_event(self.user),
            system: per_event(self.system),
        }
    }

    pub(super) fn total(&self) -> f64 {
        self.user + self.system
    }
}

/// A size such as `VmRSS:` of a process.
pub(super) fn megabytes(process: &str, size: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(size))
        .context("unexpected format of status")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;

    Ok(kilobytes / 1_000.0)
}
