//! PgBouncer in transaction mode in front of Postgres, as in production.

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
    install::{self, Need},
    instance::Instance,
    paths::Paths,
    ports,
    postgres::{ROLE, answers, base_url},
    process,
    process::{Stop, wait_until},
    progress::{note, step},
};

/// A running pooler.
#[derive(Debug)]
pub struct PgBouncer {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
}

/// Finds PgBouncer, or installs it if possible.
pub fn program(paths: &Paths, need: Need) -> Result<Option<PathBuf>> {
    const HOW: &str = "install it with `apt-get install pgbouncer`, `dnf install pgbouncer` or \
                       `brew install pgbouncer`";

    if let Some(program) = install::find(&["pgbouncer"]) {
        return Ok(Some(program));
    }
    if install::can_apt() {
        match (install::apt(paths, "pgbouncer"), need) {
            (Ok(()), _) => return Ok(install::find(&["pgbouncer"])),
            (Err(error), Need::Required) => return Err(error),
            (Err(error), Need::Wanted) => note(&format!("{error:#}")),
        }
    }

    match need {
        Need::Required => bail!("the tests need PgBouncer: {HOW}"),
        Need::Wanted => {
            note(&format!(
                "there is no PgBouncer here, so the server uses Postgres directly; \
                 to work as production does, {HOW}"
            ));
            Ok(None)
        }
    }
}

impl PgBouncer {
    /// Starts it in front of the server at `postgres`, for every database there.
    pub fn start(
        instance: &Instance,
        program: &Path,
        postgres: SocketAddr,
        password: &str,
    ) -> Result<Self> {
        let version = install::version(program)?;
        let dir = instance.data.join("pgbouncer");
        let port = instance.data.join("pgbouncer.port");

        step(&format!("{version}: starting"), || {
            instance.paths.create_private_dir(&dir)?;
            ports::start_on_sticky_port(&port, &instance.log("pgbouncer"), |address| {
                Self::start_at(instance, program, postgres, password, address)
            })
        })
    }

    fn start_at(
        instance: &Instance,
        program: &Path,
        postgres: SocketAddr,
        password: &str,
        address: SocketAddr,
    ) -> Result<Self> {
        let dir = instance.data.join("pgbouncer");
        let users = dir.join("users.txt");
        write(instance, &users, &format!("\"{ROLE}\" \"{password}\"\n"))?;
        let config = dir.join("pgbouncer.ini");
        write(instance, &config, &configuration(address, postgres, &users))?;

        let mut command = Command::new(program);
        command.arg(&config).current_dir(&dir);
        let child = instance.spawn_service("pgbouncer", &mut command, Stop::Kill)?;
        let mut pooler = Self { address, child };

        let url = format!("{}/postgres", base_url(address, password));
        wait_until(&mut pooler.child, || answers(&url)).with_context(|| {
            let log = instance.log("pgbouncer");
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
    // - md5: a SCRAM exchange costs an unoptimised test binary 0.1 s per connection.
    // - server_idle_timeout: tests drop databases, which fails while connections to them exist.
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

fn write(instance: &Instance, path: &Path, text: &str) -> Result<()> {
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())?;

    instance.paths.give_to_services(path)
}
