//! A Postgres server on a loopback port.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    install,
    instance::Instance,
    ports, process,
    process::{Stop, wait_until},
    progress::step,
};

/// The only role. It owns everything, as the migrating role does in production.
pub const ROLE: &str = "iconoclash";

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Its process.
    pub child: Child,
    /// Product and version, for messages: `Postgres 18.4`.
    pub label: String,
    password: String,
}

/// A server program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The name of its data directory, port file and log.
    pub name: &'static str,
    /// Product and version, for messages.
    pub label: String,
    /// The directory of `initdb` and `postgres`.
    pub bin: PathBuf,
    /// Options of `initdb` for production's sorting and case folding; they differ by version.
    pub locale: &'static [&'static str],
}

/// The pinned version, from the npm package at `native`.
pub fn pinned(native: &Path) -> Result<Program> {
    let bin = native.join("bin");

    Ok(Program {
        name: "postgres",
        label: label(&bin)?,
        bin,
        locale: &[
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ],
    })
}

/// The oldest supported version, Postgres 15, whose programs are in `bin`.
pub fn oldest(bin: PathBuf) -> Result<Program> {
    Ok(Program {
        name: "postgres-oldest",
        label: label(&bin)?,
        bin,
        locale: &["--locale=C.UTF-8"],
    })
}

fn label(bin: &Path) -> Result<String> {
    let version = install::version(&bin.join("postgres"))?;
    let number = install::version_number(&version).unwrap_or("of unknown version");

    Ok(format!("Postgres {number}"))
}

impl Postgres {
    /// Starts the server; its data directory is created if there is none.
    pub fn start(instance: &Instance, program: &Program, password: &str) -> Result<Self> {
        let data = instance.data.join(program.name);
        let label = &program.label;
        if !data.is_dir() {
            step(&format!("{label}: creating its data directory"), || {
                create_data_directory(instance, program, &data, password)
            })?;
        }

        let port = instance.data.join(format!("{}.port", program.name));
        step(&format!("{label}: starting"), || {
            ports::start_on_sticky_port(&port, &instance.log(program.name), |address| {
                Self::start_at(instance, program, &data, password, address)
            })
        })
    }

    fn start_at(
        instance: &Instance,
        program: &Program,
        data: &Path,
        password: &str,
        address: SocketAddr,
    ) -> Result<Self> {
        let mut command = server_command(program, data, address);
        let stop = if instance.is_test() {
            Stop::Quit
        } else {
            Stop::Interrupt
        };
        let child = instance.spawn_service(program.name, &mut command, stop)?;
        let mut server = Self {
            address,
            child,
            label: program.label.clone(),
            password: password.into(),
        };

        let url = server.url("postgres");
        wait_until(&mut server.child, || answers(&url)).with_context(|| {
            let log = instance.log(program.name);
            format!(
                "{} did not start; the end of {}:\n{}\n\
                 if its data is damaged, remove {} and start again",
                program.label,
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

    /// Creates a database, unless it exists.
    pub fn create_database(&self, name: &str, template: &str) -> Result<()> {
        let session = Session::open(&self.url("postgres"))?;
        let found =
            session.execute(&format!("select from pg_database where datname = '{name}'"))?;
        if found == 0 {
            session.execute(&format!("create database {name} template {template}"))?;
        }

        Ok(())
    }
}

fn server_command(program: &Program, data: &Path, address: SocketAddr) -> Command {
    let port = format!("port={}", address.port());
    let mut command = Command::new(program.bin.join("postgres"));
    command.arg("-D").arg(data).current_dir(data);

    // Development data may be lost in a crash of the machine, which makes commits faster.
    for setting in [
        port.as_str(),
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

    command
}

/// The URL of a server or pooler, without a database.
pub fn base_url(address: SocketAddr, password: &str) -> String {
    format!("postgres://{ROLE}:{password}@{address}")
}

/// Checks that a server or pooler answers a query.
pub fn answers(url: &str) -> Result<()> {
    Session::open(url)?.execute("select 1").map(|_| ())
}

fn create_data_directory(
    instance: &Instance,
    program: &Program,
    data: &Path,
    password: &str,
) -> Result<()> {
    // Renamed into place at the end, so that an interrupted initdb leaves no half directory.
    let draft = data.with_extension("new");
    let _ = fs::remove_dir_all(&draft);
    instance.paths.create_private_dir(&draft)?;

    let password_file = instance.data.join(format!("{}.password", program.name));
    let _ = fs::remove_file(&password_file);
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&password_file)?
        .write_all(password.as_bytes())?;
    instance.paths.give_to_services(&password_file)?;

    let log = instance.log("initdb");
    let status = initdb(instance, program, &draft, &password_file, &log)?
        .status()
        .with_context(|| format!("cannot run initdb of {}", program.label))?;
    fs::remove_file(&password_file)?;
    ensure!(
        status.success(),
        "initdb failed; the end of {}:\n{}",
        log.display(),
        process::tail(&log)
    );

    fs::rename(&draft, data).context("cannot move the data directory into place")
}

fn initdb(
    instance: &Instance,
    program: &Program,
    directory: &Path,
    password_file: &Path,
    log: &Path,
) -> Result<Command> {
    let output = File::create(log)?;
    let mut command = Command::new(program.bin.join("initdb"));
    command
        .args(["--no-sync", "--encoding=UTF8", "--auth=password"])
        .args(["-U", ROLE])
        .args(program.locale)
        .arg("--pwfile")
        .arg(password_file)
        .arg("-D")
        .arg(directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .env_remove("LD_LIBRARY_PATH");

    if let Some(account) = &instance.paths.account {
        command.uid(account.uid).gid(account.gid);
    }

    Ok(command)
}

/// A blocking connection for the few statements that set up a server.
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

    /// Executes a statement and returns its number of rows.
    fn execute(&self, sql: &str) -> Result<usize> {
        let messages = self.runtime.block_on(self.client.simple_query(sql))?;
        let rows = messages
            .iter()
            .filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_)));

        Ok(rows.count())
    }
}
