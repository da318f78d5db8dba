//! Which source files changed. Looking at modification times twice a second works on every file system,
//! mounted ones too, and a few hundred files cost less than a millisecond.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The files below some paths, as they were at the last look.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: HashMap<PathBuf, (SystemTime, u64)>,
}

impl Watch {
    /// Remembers what is there now.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen = look(&paths);
        Self { paths, seen }
    }

    /// One file that changed, appeared or went since the last look, if any did.
    pub fn changed(&mut self) -> Option<PathBuf> {
        let now = look(&self.paths);
        let changed = now
            .iter()
            .find(|(path, stamp)| self.seen.get(*path) != Some(stamp))
            .map(|(path, _)| path)
            .or_else(|| self.seen.keys().find(|path| !now.contains_key(*path)))
            .cloned();
        self.seen = now;
        changed
    }
}

fn look(paths: &[PathBuf]) -> HashMap<PathBuf, (SystemTime, u64)> {
    let mut files = HashMap::new();
    for path in paths {
        visit(path, &mut files);
    }
    files
}

fn visit(path: &Path, files: &mut HashMap<PathBuf, (SystemTime, u64)>) {
    // What editors leave beside a file is not source.
    if path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().first() == Some(&b'.'))
    {
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
    fn every_kind_of_change_is_seen_once() {
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
