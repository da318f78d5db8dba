//! One running stack: its lock, the record of what it started, and the end of all of that.
//!
//! `cargo local` has the profile `dev`, each test run one of its own. The record names every process by
//! pid and start time, so that whoever comes after a crash ends exactly those that are left.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    places::Places,
    process::{Identity, Stop, end_all},
};

const PATIENCE: Duration = Duration::from_secs(10);
const TEST_PREFIX: &str = "test-";

/// What a stack writes down about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The process that started it all.
    pub owner: Identity,
    /// The process that ends what the owner started, should the owner die first.
    pub guard: Option<Identity>,
    /// What it started, oldest first.
    pub children: Vec<Started>,
    /// The environment that programs on this stack get, once it is known.
    pub environment: BTreeMap<String, String>,
}

/// A process that a stack started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// What it is, for messages.
    pub name: String,
    /// Which process it is.
    pub identity: Identity,
    /// How it is asked to end.
    pub stop: Stop,
}

/// A stack of ours: nobody else has it while this lives.
#[derive(Debug)]
pub struct Profile {
    /// The checkout's directories.
    pub places: Places,
    /// `dev`, or `test-` and the pid.
    pub name: String,
    /// State and logs.
    pub dir: PathBuf,
    /// Data of the services.
    pub data: PathBuf,
    _lock: File,
    /// It sees its standard input close when we die, however we die.
    _guard: Child,
    /// None once closed: nothing may be started any more.
    record: Mutex<Option<Record>>,
}

impl Profile {
    /// Takes the profile, after ending whatever a dead owner left behind.
    pub fn open(places: &Places, name: &str) -> Result<Arc<Self>> {
        let door = door(places)?;
        sweep(places)?;
        let dir = places.local.join(name);
        let data = places.store.join(name);
        fs::create_dir_all(dir.join("logs"))?;
        fs::create_dir_all(&data)?;
        let Some(lock) = lock(&dir)? else {
            match running(places, name) {
                Some(record) => bail!(
                    "already running here as process {}{}: end that one first (Ctrl-C there, or kill {})",
                    record.owner.pid,
                    record
                        .environment
                        .get("PUBLIC_URL")
                        .map(|url| format!(", at {url}"))
                        .unwrap_or_default(),
                    record.owner.pid
                ),
                None => bail!("already starting here in another process"),
            }
        };
        end_leftovers(&dir);
        drop(door);

        let owner = Identity::own().context("cannot tell when this process started")?;
        let mut record = Record {
            owner,
            guard: None,
            children: Vec::new(),
            environment: BTreeMap::new(),
        };
        // The guard reads the record when it starts.
        save(&dir, &record)?;
        let guard = start_guard(name)?;
        record.guard = Identity::of(guard.id());
        save(&dir, &record)?;
        Ok(Arc::new(Self {
            places: places.clone(),
            name: name.into(),
            dir,
            data,
            _lock: lock,
            _guard: guard,
            record: Mutex::new(Some(record)),
        }))
    }

    /// The profile of a test run of this process.
    pub fn open_test(places: &Places) -> Result<Arc<Self>> {
        Self::open(places, &format!("{TEST_PREFIX}{}", std::process::id()))
    }

    /// Whether the data is gone with this run.
    pub fn is_test(&self) -> bool {
        self.name.starts_with(TEST_PREFIX)
    }

    /// The log of a service of this profile.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a service: as the services' account, in its data directory, writing to its log.
    pub fn spawn_service(&self, name: &str, command: &mut Command, stop: Stop) -> Result<Child> {
        let log = File::create(self.log(name))?;
        if let Some(account) = &self.places.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.stdout(log.try_clone()?).stderr(log);
        self.spawn(name, command, stop)
    }

    /// Starts a process that ends with this profile.
    pub fn spawn(&self, name: &str, command: &mut Command, stop: Stop) -> Result<Child> {
        forget_cargo(command);
        let mut guard = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = guard.as_mut() else {
            bail!("stopping")
        };
        // A group of its own: the terminal's Ctrl-C is for us, who end things in order.
        command.stdin(Stdio::null()).process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        record.children.retain(|child| child.identity.alive());
        if let Some(identity) = Identity::of(child.id()) {
            record.children.push(Started {
                name: name.into(),
                identity,
                stop,
            });
        }
        save(&self.dir, record)?;
        Ok(child)
    }

    /// Ends one process that was started here, and waits for it.
    pub fn end(&self, child: &mut Child, stop: Stop) {
        if let Some(identity) = Identity::of(child.id()) {
            end_all([(&identity, stop)].into_iter(), PATIENCE);
        }
        let _ = child.wait();
    }

    /// Publishes the environment, for `cargo local env` and `cargo local vercel`.
    pub fn publish(&self, environment: &BTreeMap<String, String>) -> Result<()> {
        let mut guard = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = guard.as_mut() else {
            bail!("stopping")
        };
        record.environment.clone_from(environment);
        save(&self.dir, record)
    }

    /// Ends all that was started here, newest first; from now on nothing can be started.
    pub fn close(&self) {
        let mut guard = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = guard.take() else { return };
        end_children(&record);
        let _ = fs::remove_file(self.dir.join("state.json"));
        if self.is_test() {
            remove(&self.places, &self.name);
        }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.close();
    }
}

/// The record of the stack that runs under this name, if one does.
pub fn running(places: &Places, name: &str) -> Option<Record> {
    load(&places.local.join(name)).filter(|record| record.owner.alive())
}

/// What the guard process does: waits until its owner is gone, and ends what the owner left.
pub fn guard(places: &Places, name: &str) -> Result<()> {
    let owner = load(&places.local.join(name)).map(|record| record.owner);
    // Nothing is ever written: the read returns when the owner's end of the pipe closes.
    let _ = std::io::stdin().read(&mut [0]);
    let _door = door(places)?;
    let dir = places.local.join(name);
    // An orderly end removed the record, and a successor removes it before it lets go of the door.
    while owner.is_some() && load(&dir).map(|record| record.owner) == owner {
        if let Some(_lock) = lock(&dir)? {
            end_leftovers(&dir);
            break;
        }
        // A dying process closes its files in no promised order: the pipe may go before the lock.
        thread::sleep(Duration::from_millis(5));
    }
    sweep(places)
}

fn start_guard(name: &str) -> Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("guard").arg(name).process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    forget_cargo(&mut command);
    command.spawn().context("cannot start the guard")
}

/// `cargo run` describes its package to us; in a nested cargo that would make build scripts run again.
fn forget_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || [
                "LD_LIBRARY_PATH",
                "DYLD_FALLBACK_LIBRARY_PATH",
                "CARGO_BIN_NAME",
            ]
            .contains(&name.as_ref())
        {
            command.env_remove(name.as_ref());
        }
    }
}

/// Held only while profiles are made and removed, so that no directory vanishes under a newcomer.
fn door(places: &Places) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(places.local.join("lock"))?;
    file.lock()?;
    Ok(file)
}

fn lock(dir: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Ends and removes what dead test runs left.
fn sweep(places: &Places) -> Result<()> {
    for entry in fs::read_dir(&places.local)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEST_PREFIX)
            && entry.file_type()?.is_dir()
            && lock(&entry.path())?.is_some()
        {
            end_leftovers(&entry.path());
            remove(places, &name);
        }
    }
    Ok(())
}

fn remove(places: &Places, name: &str) {
    let _ = fs::remove_dir_all(places.store.join(name));
    let _ = fs::remove_dir_all(places.local.join(name));
}

fn end_leftovers(dir: &Path) {
    let Some(record) = load(dir) else { return };
    let left = record
        .children
        .iter()
        .filter(|child| child.identity.alive())
        .count();
    if left > 0 {
        eprintln!(
            "ending {left} processes that process {} left behind",
            record.owner.pid
        );
    }
    end_children(&record);
    let _ = fs::remove_file(dir.join("state.json"));
}

fn end_children(record: &Record) {
    end_all(
        record
            .children
            .iter()
            .rev()
            .map(|child| (&child.identity, child.stop)),
        PATIENCE,
    );
}

fn load(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()
}

fn save(dir: &Path, record: &Record) -> Result<()> {
    // It holds passwords. Renamed into place, so that no reader meets half a record.
    let draft = dir.join("state.json.new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    fs::rename(&draft, dir.join("state.json")).context("cannot record what was started")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(children: Vec<Started>) -> Record {
        Record {
            owner: Identity::own().unwrap(),
            guard: None,
            children,
            environment: BTreeMap::new(),
        }
    }

    fn scratch(name: &str) -> Places {
        let root =
            env::temp_dir().join(format!("iconoclash-profile-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        Places {
            local: root.clone(),
            store: root.clone(),
            root,
            account: None,
        }
    }

    fn sleeper() -> (Child, Started) {
        let child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        (
            child,
            Started {
                name: "sleep".into(),
                identity,
                stop: Stop::Terminate,
            },
        )
    }

    #[test]
    fn a_record_survives_the_disk_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let places = scratch("record");
        let (mut child, started) = sleeper();
        save(&places.local, &record(vec![started.clone()])).unwrap();
        assert_eq!(
            load(&places.local).unwrap().children[0].identity,
            started.identity
        );
        let mode = fs::metadata(places.local.join("state.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(places.local.join("state.json"), "{half").unwrap();
        assert!(
            load(&places.local).is_none(),
            "a broken record is no record"
        );
        fs::remove_dir_all(&places.root).unwrap();
    }

    #[test]
    fn a_dead_test_run_is_swept_and_a_live_one_is_not() {
        let places = scratch("sweep");
        let (mut orphan, started) = sleeper();
        let (dead, live) = (places.local.join("test-1"), places.local.join("test-2"));
        for dir in [&dead, &live] {
            fs::create_dir(dir).unwrap();
        }
        save(&dead, &record(vec![started.clone()])).unwrap();
        let _held = lock(&live).unwrap().unwrap();

        sweep(&places).unwrap();
        assert!(!dead.exists() && live.exists());
        assert!(!started.identity.alive());
        orphan.wait().unwrap();
        fs::remove_dir_all(&places.root).unwrap();
    }

    #[test]
    fn only_the_recorded_process_is_ended() {
        let places = scratch("reuse");
        let (mut stranger, mut started) = sleeper();
        started.identity.started = "an earlier life of this pid".into();
        save(&places.local, &record(vec![started])).unwrap();
        end_leftovers(&places.local);
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        fs::remove_dir_all(&places.root).unwrap();
    }
}
