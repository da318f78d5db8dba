//! A PgBouncer in front of the test database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_postgres::{Config, config::Host};

use crate::test_services::needed;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The URL of a migrated database that tests share.
pub fn test_database() -> String {
    needed("ICONOCLASH_TEST_DATABASE")
}

/// A port on which nothing listens.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A PgBouncer in transaction mode, which has two server connections for any number of clients.
pub struct Pooler {
    port: u16,
    database: String,
    folder: PathBuf,
    process: Child,
}

impl Pooler {
    /// Starts in front of the test database.
    pub async fn start() -> Self {
        Self::start_in_front_of(test_server_port()).await
    }

    /// Starts in front of the test database and accepts only clients that use TLS. Takes PEM texts.
    pub async fn start_with_tls(certificate: &str, key: &str) -> Self {
        let folder = create_folder();
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            fs::write(folder.join(name), pem).unwrap();
            make_readable(&folder.join(name), 0o644);
        }

        let path = folder.display();
        let settings = format!(
            "client_tls_sslmode = require\n\
             client_tls_cert_file = {path}/server.crt\n\
             client_tls_key_file = {path}/server.key\n"
        );
        Self::start_in(folder, test_server_port(), &settings).await
    }

    /// Starts in front of another port of the test database's host, which may be closed.
    pub async fn start_in_front_of(server_port: u16) -> Self {
        Self::start_in(create_folder(), server_port, "").await
    }

    async fn start_in(folder: PathBuf, server_port: u16, settings: &str) -> Self {
        let server = test_server();
        let port = free_port();
        let ini = ini(&server, server_port, port, &folder);
        fs::write(folder.join("pgbouncer.ini"), ini + settings).unwrap();

        let mut pooler = Self {
            port,
            database: server.get_dbname().unwrap().to_owned(),
            process: spawn(&folder),
            folder,
        };
        pooler.wait_until_it_listens().await;
        pooler
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the test database through this pooler.
    pub fn url(&self) -> String {
        self.url_of(&self.database)
    }

    /// The URL of another database of the same server.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends every client and server connection, and listens on the same port again.
    pub async fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.folder);
        self.wait_until_it_listens().await;
    }

    async fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .is_err()
        {
            let exited = self.process.try_wait().unwrap();
            assert!(exited.is_none(), "PgBouncer ended: {exited:?}");

            let waited_too_long = Instant::now() > deadline;
            assert!(!waited_too_long, "PgBouncer does not listen");
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn stop(&mut self) {
        // Fails only if the process has ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.stop();
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn test_server() -> Config {
    test_database().parse().unwrap()
}

fn test_server_port() -> u16 {
    test_server().get_ports().first().copied().unwrap_or(5432)
}

fn create_folder() -> PathBuf {
    static CREATED: AtomicUsize = AtomicUsize::new(0);
    let folder = std::env::temp_dir().join(format!(
        "iconoclash-pgbouncer-{}-{}",
        std::process::id(),
        CREATED.fetch_add(1, Ordering::Relaxed)
    ));
    fs::create_dir_all(&folder).unwrap();
    make_readable(&folder, 0o755);
    folder
}

/// For everyone, because PgBouncer stops being root before it reads its files.
fn make_readable(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn spawn(folder: &Path) -> Child {
    let installed = ["/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false));

    Command::new(installed.unwrap_or("pgbouncer"))
        .arg("--quiet")
        .arg(folder.join("pgbouncer.ini"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbouncer is not installed: apt install pgbouncer, or brew install pgbouncer")
}

fn ini(server: &Config, server_port: u16, port: u16, folder: &Path) -> String {
    let host = match server.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "127.0.0.1".to_owned(),
    };
    let user = server.get_user().unwrap_or("postgres");
    let password = server.get_password().map_or_else(String::new, |password| {
        format!(" password='{}'", String::from_utf8_lossy(password))
    });
    let is_root = fs::metadata(folder).unwrap().uid() == 0;
    let run_as = if is_root { "user = nobody" } else { "" };

    format!(
        "[databases]\n\
         * = host={host} port={server_port} user={user}{password}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         pool_mode = transaction\n\
         default_pool_size = 2\n\
         max_client_conn = 200\n\
         server_login_retry = 1\n\
         {run_as}\n"
    )
}
