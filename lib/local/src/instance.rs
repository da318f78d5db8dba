//! A running instance of the stack: its lock, its record, and the processes that it started.
//!
//! `cargo local` runs the instance `dev`, each test run one of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::{
    paths::Paths,
    process::{Identity, Stop, clear_cargo_environment, stop_all},
    reaper,
    record::{GRACE_PERIOD, Record, StartedProcess},
    registry::{
        TEST_PREFIX, registry_lock, remove_data, remove_orphans, running, stop_leftovers, try_lock,
    },
};

/// An instance of the stack. No other process can open it while this exists.
#[derive(Debug)]
pub struct Instance {
    /// The checkout's directories.
    pub paths: Paths,
    /// `dev`, or `test-` and the pid.
    pub name: String,
    /// State and logs.
    pub dir: PathBuf,
    /// Data of the services.
    pub data: PathBuf,
    _lock: File,
    // Its standard input is a pipe from this process, which closes however this process ends.
    _reaper: Child,
    /// `None` once closed: nothing can be started any more.
    record: Mutex<Option<Record>>,
}

impl Instance {
    /// Opens the instance of this name, after stopping what a dead owner left.
    pub fn open(paths: &Paths, name: &str) -> Result<Arc<Self>> {
        let registry = registry_lock(paths)?;
        remove_orphans(paths)?;

        let dir = paths.local.join(name);
        let data = paths.store.join(name);
        fs::create_dir_all(dir.join("logs"))?;
        fs::create_dir_all(&data)?;
        let lock = try_lock(&dir)?.ok_or_else(|| already_running(paths, name))?;
        stop_leftovers(&dir);
        drop(registry);

        let mut record = Record {
            owner: Identity::current().context("cannot read the start time of this process")?,
            reaper: None,
            children: Vec::new(),
            environment: BTreeMap::new(),
        };
        // The reaper reads the record when it starts.
        record.save(&dir)?;
        let reaper = reaper::start(name)?;
        record.reaper = Identity::from_pid(reaper.id());
        record.save(&dir)?;

        Ok(Arc::new(Self {
            paths: paths.clone(),
            name: name.into(),
            dir,
            data,
            _lock: lock,
            _reaper: reaper,
            record: Mutex::new(Some(record)),
        }))
    }

    /// Opens an instance for a test run of this process.
    pub fn open_test(paths: &Paths) -> Result<Arc<Self>> {
        Self::open(paths, &format!("{TEST_PREFIX}{}", std::process::id()))
    }

    /// Whether the data is removed when this closes.
    pub fn is_test(&self) -> bool {
        self.name.starts_with(TEST_PREFIX)
    }

    /// The log file of a service.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a service under the services' account, with its output in its log.
    pub fn spawn_service(&self, name: &str, command: &mut Command, stop: Stop) -> Result<Child> {
        let log = File::create(self.log(name))?;
        if let Some(account) = &self.paths.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.stdout(log.try_clone()?).stderr(log);

        self.spawn(name, command, stop)
    }

    /// Starts a process that is stopped when this instance closes.
    pub fn spawn(&self, name: &str, command: &mut Command, stop: Stop) -> Result<Child> {
        clear_cargo_environment(command);
        let mut guard = self.lock_record();
        let Some(record) = guard.as_mut() else {
            bail!("stopping")
        };

        // In a process group of its own, a process does not get the terminal's Ctrl-C: this
        // program gets it and stops everything in order.
        command.stdin(Stdio::null()).process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;

        record.children.retain(|child| child.identity.is_alive());
        if let Some(identity) = Identity::from_pid(child.id()) {
            record.children.push(StartedProcess {
                name: name.into(),
                identity,
                stop,
            });
        }
        record.save(&self.dir)?;

        Ok(child)
    }

    /// Stops one process that was started here and waits for it.
    pub fn stop(&self, child: &mut Child, stop: Stop) {
        if let Some(identity) = Identity::from_pid(child.id()) {
            stop_all([(&identity, stop)].into_iter(), GRACE_PERIOD);
        }
        let _ = child.wait();
    }

    /// Records the environment, for `cargo local env` and `cargo local vercel`.
    pub fn publish(&self, environment: &BTreeMap<String, String>) -> Result<()> {
        let mut guard = self.lock_record();
        let Some(record) = guard.as_mut() else {
            bail!("stopping")
        };
        record.environment.clone_from(environment);

        record.save(&self.dir)
    }

    /// Stops all processes that were started here, newest first. Nothing can be started later.
    pub fn close(&self) {
        let mut guard = self.lock_record();
        let Some(record) = guard.take() else { return };

        record.stop_children();
        Record::remove(&self.dir);
        if self.is_test() {
            remove_data(&self.paths, &self.name);
        }
    }

    /// Fails if this instance was closed; waits while it is being closed.
    pub fn check_open(&self) -> Result<()> {
        if self.lock_record().is_none() {
            bail!("stopping");
        }

        Ok(())
    }

    fn lock_record(&self) -> MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.close();
    }
}

fn already_running(paths: &Paths, name: &str) -> Error {
    let Some(record) = running(paths, name) else {
        return anyhow!("another process is starting here: try again in a moment");
    };
    let pid = record.owner.pid;
    let url = record.environment.get("PUBLIC_URL");
    let at = url.map(|url| format!(", at {url}")).unwrap_or_default();

    anyhow!("already running here as process {pid}{at}: stop it first with Ctrl-C or `kill {pid}`")
}
