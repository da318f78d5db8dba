//! Finds changed source files by polling modification times, which works on every file system,
//! mounted ones too. A few hundred files take less than a millisecond.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Modification time and length of every file.
type Snapshot = HashMap<PathBuf, (SystemTime, u64)>;

/// The files under some paths, as of the last poll.
#[derive(Debug)]
pub(crate) struct Watch {
    paths: Vec<PathBuf>,
    seen: Snapshot,
}

impl Watch {
    /// Watches these files and directories from now on.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let seen = snapshot(&paths);
        Self { paths, seen }
    }

    /// A file that was changed, added or removed since the last poll, if any was.
    pub(crate) fn changed(&mut self) -> Option<PathBuf> {
        let now = snapshot(&self.paths);

        let changed = now
            .iter()
            .find(|(path, stamp)| self.seen.get(*path) != Some(stamp))
            .map(|(path, _)| path);
        let removed = self.seen.keys().find(|path| !now.contains_key(*path));
        let first = changed.or(removed).cloned();

        self.seen = now;
        first
    }
}

fn snapshot(paths: &[PathBuf]) -> Snapshot {
    let mut files = HashMap::new();
    for path in paths {
        visit(path, &mut files);
    }

    files
}

fn visit(path: &Path, files: &mut Snapshot) {
    // Editors write hidden temporary files next to the source.
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'.'));
    if is_hidden {
        return;
    }

    let Ok(meta) = fs::metadata(path) else { return };
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            visit(&entry.path(), files);
        }
    } else if let Ok(modified) = meta.modified() {
        files.insert(path.into(), (modified, meta.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_reported_once() {
        let dir = std::env::temp_dir().join(format!("iconoclash-watch-{}", std::process::id()));
        fs::create_dir_all(dir.join("inner")).unwrap();
        let file = dir.join("inner/a.rs");
        let mut watch = Watch::new(vec![dir.clone()]);
        assert_eq!(watch.changed(), None);

        for text in ["one", "longer"] {
            fs::write(&file, text).unwrap();
            assert_eq!(watch.changed().as_ref(), Some(&file));
            assert_eq!(watch.changed(), None);
        }

        fs::write(dir.join("inner/.a.rs.swp"), "").unwrap();
        assert_eq!(watch.changed(), None);

        fs::remove_file(&file).unwrap();
        assert_eq!(watch.changed(), Some(file));
        fs::remove_dir_all(dir).unwrap();
    }
}
