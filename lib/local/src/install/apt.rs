//! Debian's packages, which only root can install.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use nix::unistd::Uid;

use super::{find, is_program, run};
use crate::{paths::Paths, progress::long_step};

/// Whether this process may run `apt-get install`.
pub fn can_apt() -> bool {
    Uid::effective().is_root() && find(&["apt-get"]).is_some()
}

/// Installs a package without starting its service.
pub fn apt(paths: &Paths, package: &str) -> Result<()> {
    long_step(&format!("apt-get install {package}"), || {
        let _policy = NoServices::declare();
        let log = paths.local.join(format!("apt-{package}.log"));
        let install = ["install", "-y", "--no-install-recommends", package];

        if run(apt_get(&install), &log).is_err() {
            // The package lists may be missing or old.
            run(apt_get(&["update"]), &log)?;
            run(apt_get(&install), &log)?;
        }

        Ok(())
    })
}

/// The programs of Debian's Postgres 15, installed if possible.
pub fn debian_postgres_15(paths: &Paths) -> Result<PathBuf> {
    let bin = PathBuf::from("/usr/lib/postgresql/15/bin");
    if !is_program(&bin.join("postgres")) {
        ensure!(
            can_apt(),
            "it is Debian 12's package: apt-get install postgresql-15"
        );
        apt(paths, "postgresql-15")?;
    }

    Ok(bin)
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");

    command
}

/// Debian's packages run this program before they start a service. An existing one is left alone.
struct NoServices {
    is_created: bool,
}

impl NoServices {
    const PATH: &str = "/usr/sbin/policy-rc.d";

    fn declare() -> Self {
        let is_created = !Path::new(Self::PATH).exists()
            && fs::write(Self::PATH, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(Self::PATH, Permissions::from_mode(0o755)).is_ok();

        Self { is_created }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_created {
            let _ = fs::remove_file(Self::PATH);
        }
    }
}
