//! Runs the real program in scratch checkouts: what it starts is stopped, however it ends.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use iconoclash_local::{Record, paths::Paths, ports, running};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn the_reaper_stops_what_a_killed_run_leaves() {
    let checkout = Checkout::new("reaper");
    let mut run = checkout.services();
    let record = checkout.record(&run);
    assert!(
        record.children.len() >= 3,
        "Postgres, PgBouncer and Redis run: {record:?}"
    );

    run.kill();
    eventually("the reaper stops the services", || {
        survivors(&record).is_empty()
    });
    eventually("the reaper removes the run's data", || {
        !checkout.data(&run).exists()
    });
}

#[test]
fn the_next_start_stops_what_a_killed_run_and_its_reaper_leave() {
    let checkout = Checkout::new("next");
    let mut first = checkout.services();
    let left = checkout.record(&first);
    // The reaper first, or it would stop them.
    send(
        left.reaper.as_ref().expect("a reaper runs").pid,
        Signal::SIGKILL,
    );
    first.kill();
    assert_eq!(
        survivors(&left).len(),
        left.children.len(),
        "they still run"
    );

    let mut second = checkout.services();
    assert_eq!(survivors(&left), Vec::<&str>::new());
    assert!(!checkout.data(&first).exists(), "its data is removed too");

    let record = checkout.record(&second);
    send(second.child.id(), Signal::SIGTERM);
    assert_eq!(second.child.wait().unwrap().code(), Some(143));
    assert_eq!(
        survivors(&record),
        Vec::<&str>::new(),
        "an orderly end leaves no process"
    );
    assert!(!checkout.data(&second).exists());
}

#[test]
fn a_checkout_runs_one_application_at_a_time() {
    let checkout = Checkout::new("up");
    let taken = TcpListener::bind(ports::loopback(0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let up = checkout.run(&["up", "--port", &port.to_string()], "Iconoclash is at ");
    let record = running(&checkout.paths, "dev").expect("it has a record");

    let url = &record.environment["PUBLIC_URL"];
    let served: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    assert!(
        served > port,
        "the wanted port was taken, so it uses a later one"
    );
    drop(taken);
    assert!(get(served, "/api/health").starts_with("HTTP/1.1 200"));
    let home = get(served, "/");
    assert!(
        home.starts_with("HTTP/1.1 200") && home.contains(&format!("curl {url}/api/icons")),
        "{home}"
    );

    let again = checkout.command(&["up"]).output().unwrap();
    assert!(!again.status.success());
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        said.contains(&format!(
            "already running here as process {}, at {url}",
            up.child.id()
        )),
        "{said}"
    );

    let printed = checkout.command(&["env", "--export"]).output().unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(
        printed.contains(&format!(
            "export DATABASE_URL='{}'\n",
            record.environment["DATABASE_URL"]
        )),
        "{printed}"
    );

    drop(up);
    eventually("the reaper stops all of them", || {
        survivors(&record).is_empty()
    });
    assert!(
        !checkout
            .command(&["env"])
            .output()
            .unwrap()
            .status
            .success(),
        "no instance runs"
    );
}

/// A checkout with the same sources and another `target/local`.
struct Checkout {
    paths: Paths,
}

impl Checkout {
    fn new(name: &str) -> Self {
        let real =
            Paths::for_checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap();
        let root = env::temp_dir().join(format!("iconoclash-stack-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for source in ["lib", "migrations", "Cargo.toml", "Cargo.lock"] {
            symlink(real.root.join(source), root.join(source)).unwrap();
        }
        let paths = Paths::for_checkout(&root).unwrap();
        // Shares the programs that were installed for the real checkout.
        for programs in ["npm", "python"]
            .iter()
            .filter(|it| real.store.join(it).is_dir())
        {
            symlink(real.store.join(programs), paths.store.join(programs)).unwrap();
        }
        Self { paths }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iconoclash-local"));
        command
            .args(arguments)
            .current_dir(&self.paths.root)
            .stdin(Stdio::null());
        command
    }

    /// Starts the services of a test run and waits until they answer.
    fn services(&self) -> Run {
        self.run(&["services"], "the services are up")
    }

    fn run(&self, arguments: &[&str], until: &str) -> Run {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while !output.contains(until) {
            assert_ne!(
                stderr.read_line(&mut output).unwrap(),
                0,
                "it ended early:\n{output}"
            );
        }
        // Keeps the pipe open and empty for later lines.
        thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        Run { child }
    }

    fn record(&self, run: &Run) -> Record {
        running(&self.paths, &run.instance()).expect("it has a record")
    }

    fn data(&self, run: &Run) -> PathBuf {
        self.paths.store.join(run.instance())
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.paths.store);
        let _ = fs::remove_dir_all(&self.paths.root);
    }
}

struct Run {
    child: Child,
}

impl Run {
    fn instance(&self) -> String {
        format!("test-{}", self.child.id())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn survivors(record: &Record) -> Vec<&str> {
    let alive = record
        .children
        .iter()
        .filter(|child| child.identity.is_alive());
    alive.map(|child| child.name.as_str()).collect()
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(ports::loopback(port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}
