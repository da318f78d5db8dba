//! Where things lie, and who owns them.
//!
//! Everything is below `target/local` of the checkout, unless we are root: Postgres refuses to run as root,
//! so it runs as another user, and what that user needs must lie where that user may go.

use std::{
    env, fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, User};
use sha2::{Digest, Sha256};

/// The directories of one checkout, and the account its services run as.
#[derive(Clone, Debug)]
pub struct Places {
    /// The checkout.
    pub root: PathBuf,
    /// `target/local`: state and logs of ours, readable by whoever started us.
    pub local: PathBuf,
    /// Programs and data of the services; the same as `local` unless their account may not go there.
    pub store: PathBuf,
    /// Whom the services run as; `None` is whoever we are.
    pub account: Option<Account>,
}

/// A system user that services run as when we are root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name, for messages.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl Places {
    /// Finds the checkout around the current directory and makes its directories.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("the current directory is gone")?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("lib/local/Cargo.toml").is_file())
            .with_context(|| format!("{} is in no Iconoclash checkout", here.display()))?;
        Self::of(root)
    }

    /// The places of the checkout at `root`.
    pub fn of(root: &Path) -> Result<Self> {
        let root = root.canonicalize()?;
        let local = root.join("target/local");
        fs::create_dir_all(&local).with_context(|| format!("cannot make {}", local.display()))?;
        let account = service_account()?;
        let store = match &account {
            Some(account) if !may_enter(account, &local)? => outside(&root, &local)?,
            _ => local.clone(),
        };
        Ok(Self {
            root,
            local,
            store,
            account,
        })
    }

    /// Makes a directory that the services' account owns and nobody else reads.
    pub fn private_dir(&self, dir: &Path) -> Result<()> {
        if !dir.is_dir() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        self.give(dir)
    }

    /// Hands one file or directory to the services' account.
    pub fn give(&self, path: &Path) -> Result<()> {
        if let Some(account) = &self.account {
            chown(path, Some(account.uid), Some(account.gid))
                .with_context(|| format!("cannot give {} to {}", path.display(), account.name))?;
        }
        Ok(())
    }
}

fn service_account() -> Result<Option<Account>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(Account {
                name: name.into(),
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }));
        }
    }
    bail!(
        "Postgres does not run as root, and there is neither a user postgres nor a user nobody to run it as"
    )
}

/// Whether every directory down to `path` lets the account through.
fn may_enter(account: &Account, path: &Path) -> Result<bool> {
    for dir in path.ancestors() {
        let meta = fs::metadata(dir)?;
        let needed = if meta.uid() == account.uid {
            0o100
        } else if meta.gid() == account.gid {
            0o010
        } else {
            0o001
        };
        if meta.mode() & needed == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A directory below /var/tmp whose name follows from the checkout's path, linked from `target/local/store`.
fn outside(root: &Path, local: &Path) -> Result<PathBuf> {
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let name: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let store = Path::new("/var/tmp").join(format!("iconoclash-{name}"));
    match fs::DirBuilder::new().mode(0o755).create(&store) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot make {}", store.display()));
        }
    }
    // Anybody may write to /var/tmp: what another user put there is not ours to trust.
    let meta = fs::symlink_metadata(&store)?;
    ensure!(
        meta.is_dir() && meta.uid() == Uid::effective().as_raw() && meta.mode() & 0o022 == 0,
        "{} is not a directory of ours; remove it and try again",
        store.display()
    );
    let link = local.join("store");
    if fs::read_link(&link).ok().as_ref() != Some(&store) {
        let _ = fs::remove_file(&link);
        symlink(&store, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_closed_directory_on_the_way_is_noticed() {
        let dir = env::temp_dir().join(format!("iconoclash-places-{}", std::process::id()));
        let inner = dir.join("closed/inner");
        fs::create_dir_all(&inner).unwrap();
        let stranger = Account {
            name: "stranger".into(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };
        set(&dir, 0o755);
        set(&inner, 0o755);
        set(&dir.join("closed"), 0o755);
        assert!(may_enter(&stranger, &inner).unwrap());
        set(&dir.join("closed"), 0o700);
        assert!(!may_enter(&stranger, &inner).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
