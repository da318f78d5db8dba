//! Processes, told apart for good: a pid alone may belong to a stranger by the time it is looked at again.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::signal, unistd::Pid};
use serde::{Deserialize, Serialize};

/// A process, known by its pid and by when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id, which is its process group's too for all that we start.
    pub pid: u32,
    /// When it started, in whatever words the system has for it.
    pub started: String,
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// SIGTERM: most programs.
    Terminate,
    /// SIGINT: Postgres' "fast" end, which does not wait for clients.
    Interrupt,
    /// SIGQUIT: Postgres' "immediate" end, for data that nobody needs again.
    Quit,
    /// SIGKILL: PgBouncer, which keeps nothing, and whose versions disagree on what any other signal means.
    Kill,
}

impl Identity {
    /// The process that has this pid now, unless it is gone or a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether that very process still runs.
    pub fn alive(&self) -> bool {
        started(self.pid).as_ref() == Some(&self.started)
    }

    /// Signals its process group, if it is still the same process.
    fn signal(&self, stop: Stop) {
        let signal = match stop {
            Stop::Terminate => signal::SIGTERM,
            Stop::Interrupt => signal::SIGINT,
            Stop::Quit => signal::SIGQUIT,
            Stop::Kill => signal::SIGKILL,
        };
        if let Ok(pid) = i32::try_from(self.pid)
            && self.alive()
        {
            // It may end between the look and the signal, which is what we want anyway.
            let _ = signal::killpg(Pid::from_raw(pid), signal);
        }
    }
}

/// Ends these processes, each in its own way first and by force after `patience`.
pub fn end_all<'a>(processes: impl Iterator<Item = (&'a Identity, Stop)>, patience: Duration) {
    let processes: Vec<_> = processes.filter(|(identity, _)| identity.alive()).collect();
    for (identity, stop) in &processes {
        identity.signal(*stop);
    }
    wait_for(&processes, patience);
    for (identity, _) in &processes {
        identity.signal(Stop::Kill);
    }
    wait_for(&processes, Duration::from_secs(2));
}

fn wait_for(processes: &[(&Identity, Stop)], patience: Duration) {
    let deadline = Instant::now() + patience;
    while processes.iter().any(|(identity, _)| identity.alive()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

/// The last lines of a log, for a message about why its program failed.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    if last.is_empty() {
        "(it wrote nothing)".into()
    } else {
        last.join("\n")
    }
}

#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Start times count from boot, so they mean nothing after the next one.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{}-{}", boot.trim(), start_ticks(&stat)?))
}

/// Field 22 of /proc/pid/stat, or nothing for a zombie. The name in field 2 may hold spaces and brackets.
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
fn started(pid: u32) -> Option<String> {
    let output = std::process::Command::new("ps")
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
    use std::{os::unix::process::CommandExt, process::Command};

    use super::*;

    #[test]
    fn a_process_is_itself_until_it_ends() {
        let mut child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.alive());
        end_all(
            [(&identity, Stop::Terminate)].into_iter(),
            Duration::from_secs(5),
        );
        assert!(!identity.alive(), "a zombie counts as ended");
        child.wait().unwrap();
        assert_eq!(Identity::of(identity.pid), None);
    }

    #[test]
    fn a_stranger_with_the_same_pid_is_left_alone() {
        let mut child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let stale = Identity {
            pid: child.id(),
            started: "another time".into(),
        };
        end_all(
            [(&stale, Stop::Kill)].into_iter(),
            Duration::from_millis(50),
        );
        assert_eq!(child.try_wait().unwrap(), None, "it still runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_found_behind_odd_names() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 777 1000";
        assert_eq!(start_ticks(&format!("42 (a) b) (c) S {rest}")), Some("777"));
        assert_eq!(start_ticks(&format!("42 (gone) Z {rest}")), None);
        assert_eq!(start_ticks("nonsense"), None);
    }

    #[test]
    fn a_tail_is_short() {
        let log = std::env::temp_dir().join(format!("iconoclash-tail-{}", std::process::id()));
        fs::write(
            &log,
            (0..100).map(|n| format!("line {n}\n")).collect::<String>(),
        )
        .unwrap();
        assert!(tail(&log).starts_with("line 85\n") && tail(&log).ends_with("line 99"));
        fs::remove_file(&log).unwrap();
        assert_eq!(tail(&log), "(it wrote nothing)");
    }
}
