//! PgBouncer in transaction mode before our Postgres: what production has between functions and database.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result, bail};

use crate::{
    install,
    places::Places,
    ports,
    postgres::{ROLE, answers, base_url},
    process,
    process::Stop,
    profile::Profile,
    progress::{note, step},
    services::wait_until,
};

/// A running pooler.
#[derive(Debug)]
pub struct PgBouncer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
}

/// What to do where there is no PgBouncer and none can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Go on without: the application works on Postgres itself too.
    Wanted,
    /// Fail: what the tests prove is that everything works through a pooler.
    Required,
}

/// Finds PgBouncer, or installs it where that is ours to do.
pub fn program(places: &Places, need: Need) -> Result<Option<PathBuf>> {
    const HOW: &str = "install it with `apt-get install pgbouncer`, `dnf install pgbouncer` or `brew install pgbouncer`";
    if let Some(program) = install::find(&["pgbouncer"]) {
        return Ok(Some(program));
    }
    if install::can_apt() {
        match (install::apt(places, "pgbouncer"), need) {
            (Ok(()), _) => return Ok(install::find(&["pgbouncer"])),
            (Err(error), Need::Required) => return Err(error),
            (Err(error), Need::Wanted) => note(&format!("{error:#}")),
        }
    }
    match need {
        Need::Required => bail!("the tests need PgBouncer: {HOW}"),
        Need::Wanted => {
            note(&format!(
                "no PgBouncer here, so the server talks to Postgres directly; to work as production does, {HOW}"
            ));
            Ok(None)
        }
    }
}

impl PgBouncer {
    /// Starts it before the server at `postgres`, for every database there.
    pub fn start(
        profile: &Profile,
        program: &Path,
        postgres: SocketAddr,
        password: &str,
    ) -> Result<Self> {
        step("PgBouncer: starting", || {
            profile
                .places
                .private_dir(&profile.data.join("pgbouncer"))?;
            ports::with_kept(
                &profile.data.join("pgbouncer.port"),
                &profile.log("pgbouncer"),
                |address| Self::start_at(profile, program, postgres, password, address),
            )
        })
    }

    fn start_at(
        profile: &Profile,
        program: &Path,
        postgres: SocketAddr,
        password: &str,
        address: SocketAddr,
    ) -> Result<Self> {
        let dir = profile.data.join("pgbouncer");
        let users = dir.join("users.txt");
        write(profile, &users, &format!("\"{ROLE}\" \"{password}\"\n"))?;
        let config = dir.join("pgbouncer.ini");
        write(profile, &config, &configuration(address, postgres, &users))?;

        let mut command = Command::new(program);
        command.arg(&config).current_dir(&dir);
        let child = profile.spawn_service("pgbouncer", &mut command, Stop::Kill)?;
        let mut pooler = Self { address, child };
        let url = format!("{}/postgres", base_url(address, password));
        wait_until(&mut pooler.child, || answers(&url)).with_context(|| {
            let log = profile.log("pgbouncer");
            format!(
                "PgBouncer did not start; the end of {}:\n{}",
                log.display(),
                process::tail(&log)
            )
        })?;
        Ok(pooler)
    }
}

fn configuration(address: SocketAddr, postgres: SocketAddr, users: &Path) -> String {
    // md5 between client and pooler: it knows the password in clear, and a SCRAM exchange costs an unoptimised
    // test binary a tenth of a second a connection. Databases come and go with the tests, hence the short idle time:
    // one with connections cannot be dropped.
    format!(
        "[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = md5
auth_file = {users}
admin_users = {ROLE}
pool_mode = transaction
default_pool_size = 20
max_db_connections = 20
max_client_conn = 2000
server_idle_timeout = 2
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
",
        host = postgres.ip(),
        port = postgres.port(),
        listen = address.ip(),
        listen_port = address.port(),
        users = users.display(),
    )
}

fn write(profile: &Profile, path: &Path, text: &str) -> Result<()> {
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())?;
    profile.places.give(path)
}
