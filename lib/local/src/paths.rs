//! The directories of a checkout and the account that its services run as.
//!
//! Everything is below `target/local` of the checkout. The exception is a run as root: Postgres
//! refuses to run as root, so the services run as another user, and their data must be in a place
//! that this user can reach.

use std::{
    env, fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, User};
use sha2::{Digest, Sha256};

/// The directories of one checkout, and the account that its services run as.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
    /// `target/local`: state and logs of this program.
    pub local: PathBuf,
    /// Programs and data of the services; equals `local` unless their account cannot reach that.
    pub store: PathBuf,
    /// The user that services run as; `None` is the current user.
    pub account: Option<Account>,
}

/// A system user that services run as when the current user is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name, for messages.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl Paths {
    /// Finds the checkout that contains the current directory and creates its directories.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("the current directory was removed")?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("lib/local/Cargo.toml").is_file())
            .with_context(|| {
                format!(
                    "{} is not in a checkout of Iconoclash: change to one first",
                    here.display()
                )
            })?;

        Self::for_checkout(root)
    }

    /// The directories of the checkout at `root`, created if necessary.
    pub fn for_checkout(root: &Path) -> Result<Self> {
        let root = root.canonicalize()?;
        let local = root.join("target/local");
        fs::create_dir_all(&local).with_context(|| format!("cannot create {}", local.display()))?;

        let account = service_account()?;
        let store = match &account {
            Some(account) if !can_traverse(account, &local)? => store_in_var_tmp(&root, &local)?,
            _ => local.clone(),
        };

        Ok(Self {
            root,
            local,
            store,
            account,
        })
    }

    /// Creates a directory that only the services' account can read.
    pub fn create_private_dir(&self, dir: &Path) -> Result<()> {
        if !dir.is_dir() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }

        self.give_to_services(dir)
    }

    /// Makes the services' account the owner of a file or directory.
    pub fn give_to_services(&self, path: &Path) -> Result<()> {
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
        "Postgres does not run as root, and there is no user `postgres` or `nobody`: \
         create one, or run this as another user"
    )
}

/// Whether the account may enter every directory down to `path`.
fn can_traverse(account: &Account, path: &Path) -> Result<bool> {
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

/// A directory in /var/tmp, named after the checkout's path and linked from `target/local/store`.
fn store_in_var_tmp(root: &Path, local: &Path) -> Result<PathBuf> {
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    let name = hex::encode(&digest[..6]);
    let store = Path::new("/var/tmp").join(format!("iconoclash-{name}"));

    match fs::DirBuilder::new().mode(0o755).create(&store) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot create {}", store.display()));
        }
    }

    // Every user may write to /var/tmp, so a directory of another user is not trusted.
    let meta = fs::symlink_metadata(&store)?;
    ensure!(
        meta.is_dir() && meta.uid() == Uid::effective().as_raw() && meta.mode() & 0o022 == 0,
        "{} does not belong to this user alone: remove it and try again",
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
    fn a_closed_parent_directory_is_noticed() {
        let dir = env::temp_dir().join(format!("iconoclash-paths-{}", std::process::id()));
        let inner = dir.join("closed/inner");
        fs::create_dir_all(&inner).unwrap();
        let other_user = Account {
            name: "other".into(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };

        set(&dir, 0o755);
        set(&inner, 0o755);
        set(&dir.join("closed"), 0o755);
        assert!(can_traverse(&other_user, &inner).unwrap());

        set(&dir.join("closed"), 0o700);
        assert!(!can_traverse(&other_user, &inner).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
