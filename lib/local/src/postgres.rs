//! A Postgres server of our own on a loopback port.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    ports, process, process::Stop, profile::Profile, progress::step, services::wait_until,
};

/// The only role: it owns everything, as the migrating role does in production.
pub const ROLE: &str = "iconoclash";

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
    password: String,
}

/// Which server to start.
#[derive(Clone, Debug)]
pub struct Version {
    /// The name of its directory, port file and log.
    pub name: &'static str,
    /// For messages.
    pub label: &'static str,
    /// Where `initdb` and `postgres` are.
    pub bin: PathBuf,
    /// How it is told to sort and fold text as production does, which differs by version.
    pub locale: &'static [&'static str],
}

/// The version that we develop on.
pub fn version_18(native: &Path) -> Version {
    Version {
        name: "postgres",
        label: "Postgres 18",
        bin: native.join("bin"),
        locale: &[
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ],
    }
}

/// The oldest version that we promise.
pub fn version_15(bin: &Path) -> Version {
    Version {
        name: "postgres-15",
        label: "Postgres 15",
        bin: bin.into(),
        locale: &["--locale=C.UTF-8"],
    }
}

impl Postgres {
    /// Makes the data directory if there is none, and starts the server on it.
    pub fn start(profile: &Profile, version: &Version, password: &str) -> Result<Self> {
        let data = profile.data.join(version.name);
        if !data.is_dir() {
            step(
                &format!("{}: creating its data directory", version.label),
                || create(profile, version, &data, password),
            )?;
        }
        let port = profile.data.join(format!("{}.port", version.name));
        step(&format!("{}: starting", version.label), || {
            ports::with_kept(&port, &profile.log(version.name), |address| {
                Self::start_at(profile, version, &data, password, address)
            })
        })
    }

    fn start_at(
        profile: &Profile,
        version: &Version,
        data: &Path,
        password: &str,
        address: SocketAddr,
    ) -> Result<Self> {
        let mut command = Command::new(version.bin.join("postgres"));
        command.arg("-D").arg(data).current_dir(data);
        let port = address.port();
        // Development data: a crash of the machine may lose it, and every commit is the faster for it.
        for setting in [
            format!("port={port}").as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=300",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "timezone=UTC",
            "log_timezone=UTC",
        ] {
            command.args(["-c", setting]);
        }
        let stop = if profile.is_test() {
            Stop::Quit
        } else {
            Stop::Interrupt
        };
        let child = profile.spawn_service(version.name, &mut command, stop)?;
        let mut server = Self {
            address,
            child,
            password: password.into(),
        };
        let url = server.url("postgres");
        wait_until(&mut server.child, || answers(&url)).with_context(|| {
            let log = profile.log(version.name);
            format!(
                "{} did not start; the end of {}:\n{}\nif its data is broken, remove {} and start again",
                version.label,
                log.display(),
                process::tail(&log),
                data.display()
            )
        })?;
        Ok(server)
    }

    /// The server's URL, without a database.
    pub fn base_url(&self) -> String {
        base_url(self.address, &self.password)
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("{}/{database}", self.base_url())
    }

    /// Makes a database, unless it exists.
    pub fn create_database(&self, name: &str, template: &str) -> Result<()> {
        let client = Session::open(&self.url("postgres"))?;
        let found = client.run(&format!("select from pg_database where datname = '{name}'"))?;
        if found == 0 {
            client.run(&format!("create database {name} template {template}"))?;
        }
        Ok(())
    }
}

/// The URL of a server or pooler of ours, without a database.
pub fn base_url(address: SocketAddr, password: &str) -> String {
    format!("postgres://{ROLE}:{password}@{address}")
}

/// Whether a server or pooler answers a query.
pub fn answers(url: &str) -> Result<()> {
    Session::open(url)?.run("select 1").map(|_| ())
}

fn create(profile: &Profile, version: &Version, data: &Path, password: &str) -> Result<()> {
    // Made beside its final place, so that an initdb that was killed is never taken for a database.
    let draft = data.with_extension("new");
    let _ = fs::remove_dir_all(&draft);
    profile.places.private_dir(&draft)?;
    let file = profile.data.join(format!("{}.password", version.name));
    let _ = fs::remove_file(&file);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&file)?
        .write_all(password.as_bytes())?;
    profile.places.give(&file)?;

    let log = profile.log("initdb");
    let output = fs::File::create(&log)?;
    let mut command = Command::new(version.bin.join("initdb"));
    command
        .args([
            "--no-sync",
            "--encoding=UTF8",
            "--auth=password",
            "-U",
            ROLE,
        ])
        .args(version.locale);
    command
        .arg("--pwfile")
        .arg(&file)
        .arg("-D")
        .arg(&draft)
        .current_dir(&draft);
    if let Some(account) = &profile.places.account {
        command.uid(account.uid).gid(account.gid);
    }
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .env_remove("LD_LIBRARY_PATH");
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", version.bin.join("initdb").display()))?;
    fs::remove_file(&file)?;
    ensure!(
        status.success(),
        "initdb failed; the end of {}:\n{}",
        log.display(),
        process::tail(&log)
    );
    fs::rename(&draft, data).context("cannot move the data directory into place")
}

/// A blocking connection for the few statements that set a server up.
struct Session {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Session {
    fn open(url: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (client, connection) =
            runtime.block_on(tokio_postgres::connect(url, tokio_postgres::NoTls))?;
        runtime.spawn(connection);
        Ok(Self { runtime, client })
    }

    /// Runs a statement and counts its rows.
    fn run(&self, sql: &str) -> Result<usize> {
        let messages = self.runtime.block_on(self.client.simple_query(sql))?;
        Ok(messages
            .iter()
            .filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_)))
            .count())
    }
}
