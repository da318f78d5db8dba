//! Finds the programs of the services and installs missing ones: npm and PyPI packages, pinned by
//! hash, into `target/local`; Debian's packages as root only.

mod apt;
mod packages;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::process::tail;

pub use apt::{apt, can_apt, debian_postgres_15};
pub use packages::{has_node_modules, node_modules, postgres_package, valkey_wheel};

/// What to do when a program is missing and cannot be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Continue without it, or with another version.
    Wanted,
    /// Fail: the tests prove something about this program.
    Required,
}

/// The first of these programs on PATH or where Debian and Homebrew install servers.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    const SERVER_DIRS: [&str; 5] = [
        "/usr/sbin",
        "/usr/local/sbin",
        "/opt/homebrew/bin",
        "/opt/homebrew/sbin",
        "/usr/local/bin",
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path)
        .chain(SERVER_DIRS.map(PathBuf::from))
        .collect();

    names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|file| is_program(file))
}

/// The first line that `program --version` prints.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);

    text.lines()
        .next()
        .map(str::to_owned)
        .with_context(|| format!("{} --version prints nothing", program.display()))
}

/// The number in a line like `PgBouncer 1.18.0` or `postgres (PostgreSQL) 18.4`.
pub(crate) fn version_number(line: &str) -> Option<&str> {
    line.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end, with its output in `log`.
fn run(mut command: Command, log: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = fs::File::create(log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {name}: install it, and start again"))?;

    ensure!(
        status.success(),
        "{name} failed; the end of {}:\n{}",
        log.display(),
        tail(log)
    );

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_a_version_line() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(version_number(debian), Some("15.18"));
        assert_eq!(version_number("PgBouncer 1.18.0"), Some("1.18.0"));
        assert_eq!(version_number("no number"), None);
    }
}
