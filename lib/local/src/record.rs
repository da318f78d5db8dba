//! The file in which an instance records the processes that it started, so that they can be
//! stopped after a crash.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::{Identity, Stop, stop_all};

/// Time that processes have to stop before they are killed.
pub(crate) const GRACE_PERIOD: Duration = Duration::from_secs(10);

const FILE: &str = "state.json";

/// The state of a running instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The process that runs the instance.
    pub owner: Identity,
    /// The process that stops the children if the owner dies first.
    pub reaper: Option<Identity>,
    /// The processes that were started, oldest first.
    pub children: Vec<StartedProcess>,
    /// The environment of programs that use this instance; empty until it is known.
    pub environment: BTreeMap<String, String>,
}

/// A process that an instance started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartedProcess {
    /// Its name, for messages.
    pub name: String,
    /// The process.
    pub identity: Identity,
    /// The signal that stops it.
    pub stop: Stop,
}

impl Record {
    /// Reads the record in `dir`; `None` if there is none or it is not readable.
    pub(crate) fn load(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// Writes the record to `dir`. It contains passwords, so only its owner can read it.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let draft = dir.join("state.json.new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;

        // Renamed into place, so that no reader sees half a record.
        fs::rename(&draft, dir.join(FILE)).context("cannot record the started processes")
    }

    pub(crate) fn remove(dir: &Path) {
        let _ = fs::remove_file(dir.join(FILE));
    }

    /// Stops all recorded processes, newest first.
    pub(crate) fn stop_children(&self) {
        let newest_first = self.children.iter().rev();
        stop_all(
            newest_first.map(|child| (&child.identity, child.stop)),
            GRACE_PERIOD,
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        env,
        os::unix::{fs::PermissionsExt, process::CommandExt},
        path::PathBuf,
        process::{Child, Command},
    };

    use super::*;

    /// A record of this process.
    pub(crate) fn record(children: Vec<StartedProcess>) -> Record {
        Record {
            owner: Identity::current().unwrap(),
            reaper: None,
            children,
            environment: BTreeMap::new(),
        }
    }

    /// A process that sleeps, as an instance would record it.
    pub(crate) fn sleeping_process() -> (Child, StartedProcess) {
        let child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let started = StartedProcess {
            name: "sleep".into(),
            identity: Identity::from_pid(child.id()).unwrap(),
            stop: Stop::Terminate,
        };

        (child, started)
    }

    /// An empty directory.
    pub(crate) fn scratch_dir(name: &str) -> PathBuf {
        let dir = env::temp_dir().join(format!("iconoclash-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_saved_record_can_be_loaded_and_is_private() {
        let dir = scratch_dir("record");
        let (mut child, started) = sleeping_process();

        record(vec![started.clone()]).save(&dir).unwrap();
        let loaded = Record::load(&dir).unwrap();
        assert_eq!(loaded.children[0].identity, started.identity);

        let mode = fs::metadata(dir.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_damaged_record_is_ignored() {
        let dir = scratch_dir("damaged");
        fs::write(dir.join(FILE), "{half").unwrap();
        assert!(Record::load(&dir).is_none());
        fs::remove_dir_all(&dir).unwrap();
    }
}
