//! Processes that are identified by pid and start time, because a pid alone may be reused.

use std::{
    env, fs,
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::{sys::signal, unistd::Pid};
use serde::{Deserialize, Serialize};

/// Time that a process has to start answering.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);

/// A process, identified by its pid and its start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id. Every process that we start also leads a process group of this id.
    pub pid: u32,
    /// When it started, in the system's own notation.
    pub started: String,
}

/// The signal that stops a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// SIGTERM: most programs.
    Terminate,
    /// SIGINT: Postgres' fast shutdown, which disconnects its clients.
    Interrupt,
    /// SIGQUIT: Postgres' immediate shutdown, for data that is thrown away.
    Quit,
    /// SIGKILL: PgBouncer, which stores nothing and whose versions disagree on the other signals.
    Kill,
}

impl Identity {
    /// The process that has this pid now; `None` if there is none or it is a zombie.
    pub fn from_pid(pid: u32) -> Option<Self> {
        start_time(pid).map(|started| Self { pid, started })
    }

    /// This process.
    pub fn current() -> Option<Self> {
        Self::from_pid(std::process::id())
    }

    /// Whether this process still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).as_ref() == Some(&self.started)
    }

    /// Signals its process group if it still runs.
    fn signal(&self, stop: Stop) {
        let signal = match stop {
            Stop::Terminate => signal::SIGTERM,
            Stop::Interrupt => signal::SIGINT,
            Stop::Quit => signal::SIGQUIT,
            Stop::Kill => signal::SIGKILL,
        };

        if let Ok(pid) = i32::try_from(self.pid)
            && self.is_alive()
        {
            // An error means that it ended since the check, which is the goal.
            let _ = signal::killpg(Pid::from_raw(pid), signal);
        }
    }
}

/// Stops these processes: first each with its own signal, after `grace_period` with SIGKILL.
pub fn stop_all<'a>(processes: impl Iterator<Item = (&'a Identity, Stop)>, grace_period: Duration) {
    let processes: Vec<_> = processes
        .filter(|(identity, _)| identity.is_alive())
        .collect();

    for (identity, stop) in &processes {
        identity.signal(*stop);
    }
    wait_for_end(&processes, grace_period);

    for (identity, _) in &processes {
        identity.signal(Stop::Kill);
    }
    wait_for_end(&processes, Duration::from_secs(2));
}

fn wait_for_end(processes: &[(&Identity, Stop)], timeout: Duration) {
    let deadline = Instant::now() + timeout;

    while processes.iter().any(|(identity, _)| identity.is_alive()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Polls `ready` until it succeeds. Fails if the process ends first or does not answer in time.
pub fn wait_until(child: &mut Child, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + STARTUP_TIMEOUT;

    loop {
        let Err(error) = ready() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("the process ended ({status})");
        }
        if Instant::now() > deadline {
            return Err(error.context("the process does not answer after a minute"));
        }

        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the variables that `cargo run` sets: a nested cargo would run build scripts again.
pub(crate) fn clear_cargo_environment(command: &mut Command) {
    const PREFIXES: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];
    const NAMES: [&str; 3] = [
        "LD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH",
        "CARGO_BIN_NAME",
    ];

    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_of_cargo = PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        if is_of_cargo || NAMES.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
}

/// The last lines of a log, for error messages.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];

    if last.is_empty() {
        "(empty)".into()
    } else {
        last.join("\n")
    }
}

#[cfg(target_os = "linux")]
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Start times count from boot, so the boot id is part of the identity.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;

    Some(format!("{}-{}", boot.trim(), start_ticks(&stat)?))
}

/// Field 22 of /proc/pid/stat; `None` for a zombie. The name in field 2 may contain spaces and
/// brackets.
#[cfg(target_os = "linux")]
fn start_ticks(stat: &str) -> Option<&str> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;

    if matches!(state, "Z" | "X") {
        None
    } else {
        fields.nth(18)
    }
}

#[cfg(not(target_os = "linux"))]
fn start_time(pid: u32) -> Option<String> {
    let output = Command::new("ps")
        .args(["-o", "stat=,lstart=", "-p", &pid.to_string()])
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (state, started) = text.trim().split_once(' ')?;

    (!state.starts_with('Z')).then(|| started.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn an_identity_is_alive_until_its_process_ends() {
        let mut child = sleep();
        let identity = Identity::from_pid(child.id()).unwrap();
        assert!(identity.is_alive());

        stop_all(
            [(&identity, Stop::Terminate)].into_iter(),
            Duration::from_secs(5),
        );
        assert!(!identity.is_alive(), "a zombie counts as ended");

        child.wait().unwrap();
        assert_eq!(Identity::from_pid(identity.pid), None);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_stopped() {
        let mut child = sleep();
        let stale = Identity {
            pid: child.id(),
            started: "another time".into(),
        };

        stop_all(
            [(&stale, Stop::Kill)].into_iter(),
            Duration::from_millis(50),
        );
        assert_eq!(child.try_wait().unwrap(), None, "it still runs");

        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn waiting_ends_when_the_process_ends() {
        let mut child = Command::new("true").spawn().unwrap();
        let error = wait_until(&mut child, || bail!("not ready")).unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_found_after_names_with_brackets() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 777 1000";
        assert_eq!(start_ticks(&format!("42 (a) b) (c) S {rest}")), Some("777"));
        assert_eq!(start_ticks(&format!("42 (gone) Z {rest}")), None);
        assert_eq!(start_ticks("nonsense"), None);
    }

    #[test]
    fn a_tail_has_fifteen_lines() {
        let log = std::env::temp_dir().join(format!("iconoclash-tail-{}", std::process::id()));
        let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, lines).unwrap();
        assert!(tail(&log).starts_with("line 85\n") && tail(&log).ends_with("line 99"));

        fs::remove_file(&log).unwrap();
        assert_eq!(tail(&log), "(empty)");
    }

    fn sleep() -> Child {
        Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap()
    }
}
