//! The instances of a checkout: their locks, and the removal of what dead ones left.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::Path,
};

use anyhow::Result;

use crate::{paths::Paths, record::Record};

/// Instances whose names start like this belong to a test run: their data is temporary.
pub(crate) const TEST_PREFIX: &str = "test-";

/// The record of the instance of this name, if it runs.
pub fn running(paths: &Paths, name: &str) -> Option<Record> {
    Record::load(&paths.local.join(name)).filter(|record| record.owner.is_alive())
}

/// Locks the checkout's list of instances. Held while an instance is created or removed, so that
/// no directory disappears from under a new one.
pub(crate) fn registry_lock(paths: &Paths) -> Result<File> {
    let file = open_lock(&paths.local)?;
    file.lock()?;

    Ok(file)
}

/// Locks the instance in `dir`; `None` if another process has the lock.
pub(crate) fn try_lock(dir: &Path) -> Result<Option<File>> {
    let file = open_lock(dir)?;

    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn open_lock(dir: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))?;

    Ok(file)
}

/// Stops the processes of dead test runs and removes their data.
pub(crate) fn remove_orphans(paths: &Paths) -> Result<()> {
    for entry in fs::read_dir(&paths.local)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_test_run = name.starts_with(TEST_PREFIX) && entry.file_type()?.is_dir();

        if is_test_run && try_lock(&entry.path())?.is_some() {
            stop_leftovers(&entry.path());
            remove_data(paths, &name);
        }
    }

    Ok(())
}

/// Removes the state and data of an instance.
pub(crate) fn remove_data(paths: &Paths, name: &str) {
    let _ = fs::remove_dir_all(paths.store.join(name));
    let _ = fs::remove_dir_all(paths.local.join(name));
}

/// Stops the processes that a dead instance recorded in `dir`.
pub(crate) fn stop_leftovers(dir: &Path) {
    let Some(record) = Record::load(dir) else {
        return;
    };
    let children = record.children.iter();
    let left = children.filter(|child| child.identity.is_alive()).count();
    if left > 0 {
        eprintln!(
            "stopping {left} processes that process {} left running",
            record.owner.pid
        );
    }

    record.stop_children();
    Record::remove(dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, scratch_dir, sleeping_process};

    #[test]
    fn orphans_are_removed_and_live_test_runs_are_not() {
        let root = scratch_dir("orphans");
        let paths = Paths {
            local: root.clone(),
            store: root.clone(),
            root,
            account: None,
        };
        let (mut orphan, started) = sleeping_process();
        let dead = paths.local.join("test-1");
        let live = paths.local.join("test-2");
        for dir in [&dead, &live] {
            fs::create_dir(dir).unwrap();
        }
        record(vec![started.clone()]).save(&dead).unwrap();
        let _lock = try_lock(&live).unwrap().unwrap();

        remove_orphans(&paths).unwrap();
        assert!(!dead.exists() && live.exists());
        assert!(!started.identity.is_alive());

        orphan.wait().unwrap();
        fs::remove_dir_all(&paths.root).unwrap();
    }

    #[test]
    fn only_the_recorded_process_is_stopped() {
        let dir = scratch_dir("reuse");
        let (mut other, mut started) = sleeping_process();
        started.identity.started = "an earlier process with this pid".into();
        record(vec![started]).save(&dir).unwrap();

        stop_leftovers(&dir);
        assert_eq!(other.try_wait().unwrap(), None);

        other.kill().unwrap();
        other.wait().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
