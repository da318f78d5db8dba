//! A PgBouncer of a test's own.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tokio_postgres::{Config, config::Host};

use crate::support::{eventually, test_database};

/// Two server connections, whatever the number of clients.
pub(crate) struct Bouncer {
    port: u16,
    database: String,
    folder: PathBuf,
    process: Child,
}

impl Bouncer {
    /// In front of the test database.
    pub(crate) async fn start() -> Self {
        let server: Config = test_database().parse().unwrap();
        let port = server.get_ports().first().copied().unwrap_or(5432);
        Self::start_before(port).await
    }

    /// In front of the test database, for clients that speak TLS and believe this certificate.
    pub(crate) async fn start_with_tls(certificate: &str, key: &str) -> Self {
        let server: Config = test_database().parse().unwrap();
        let port = server.get_ports().first().copied().unwrap_or(5432);
        Self::start_in(port, |folder| {
            for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
                fs::write(folder.join(name), pem).unwrap();
                // PgBouncer gives up root before it reads them.
                fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o644)).unwrap();
            }
            let folder = folder.display();
            format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {folder}/server.crt\n\
                 client_tls_key_file = {folder}/server.key\n"
            )
        })
        .await
    }

    /// In front of whatever listens, or does not, on another port of the test database's host.
    pub(crate) async fn start_before(server_port: u16) -> Self {
        Self::start_in(server_port, |_| String::new()).await
    }

    async fn start_in(server_port: u16, settings: impl FnOnce(&Path) -> String) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let folder = std::env::temp_dir().join(format!(
            "iconoclash-pgbouncer-{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&folder).unwrap();
        // PgBouncer gives up root before it reads its file again.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();

        let server: Config = test_database().parse().unwrap();
        let database = server.get_dbname().unwrap().to_owned();
        let port = free_port().await;
        let ini = ini(&server, server_port, port, &folder) + &settings(&folder);
        fs::write(folder.join("pgbouncer.ini"), ini).unwrap();
        let mut bouncer = Self {
            process: spawn(&folder),
            port,
            database,
            folder,
        };
        bouncer.answers().await;
        bouncer
    }

    pub(crate) fn url(&self) -> String {
        self.url_of(&self.database)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Of another database of the same server.
    pub(crate) fn url_of(&self, database: &str) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{database}", self.port)
    }

    /// Every client and server connection dies; the address stays.
    pub(crate) async fn restart(&mut self) {
        self.process.kill().await.unwrap();
        self.process = spawn(&self.folder);
        self.answers().await;
    }

    async fn answers(&mut self) {
        let port = self.port;
        eventually(Duration::from_secs(10), "PgBouncer listens", || async {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let exited = self.process.try_wait().unwrap();
        assert!(exited.is_none(), "PgBouncer ended at once: {exited:?}");
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

pub(crate) async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn spawn(folder: &Path) -> Child {
    let installed = ["/usr/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"];
    let found = installed
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false));
    Command::new(found.unwrap_or("pgbouncer"))
        .arg("--quiet")
        .arg(folder.join("pgbouncer.ini"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect(
            "pgbouncer is installed (Debian: apt install pgbouncer, macOS: brew install pgbouncer)",
        )
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
    let root = fs::metadata(folder).unwrap().uid() == 0;
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
         {}\n",
        if root { "user = nobody" } else { "" }
    )
}
