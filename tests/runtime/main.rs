//! The contract between the platform and the router, tested on a real process.
//!
//! This binary starts itself again as a function whose routes fail on demand, and plays the
//! platform and the client.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test plays the platform: it has an environment and a client"
)]

mod probe;

use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

fn main() -> ExitCode {
    if env::var_os("ICONOCLASH_PROBE").is_some() {
        return probe::serve();
    }
    let trials = vec![
        trial(
            "an_upload_over_the_limit_is_refused_before_its_body_arrives",
            upload_is_refused_early,
        ),
        trial(
            "a_stream_of_any_content_type_is_sent_as_it_is_produced",
            ndjson_streams,
        ),
        trial(
            "a_panic_is_a_problem_document_and_the_process_continues",
            panic_is_survived,
        ),
        trial(
            "registered_work_outlives_the_response_and_sigterm",
            work_outlives_sigterm,
        ),
        trial(
            "registered_work_continues_when_the_client_disconnects",
            work_outlives_the_client,
        ),
        trial(
            "the_invocation_ends_after_its_registered_work",
            end_message_waits,
        ),
        trial(
            "a_function_without_any_setting_answers",
            bare_function_answers,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: fn() -> Result<(), Failed>) -> Trial {
    Trial::test(name, test)
}

/// This binary again, as a function.
struct Function {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Function {
    fn start(settings: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder =
            env::temp_dir().join(format!("iconoclash-probe-{}-{port}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        // A debug build takes seconds to print a backtrace.
        command
            .env("RUST_BACKTRACE", "0")
            .env("ICONOCLASH_PROBE", &folder)
            .env("VERCEL_DEV_PORT", port.to_string())
            .stdout(Stdio::null());
        let process = command.envs(settings.iter().copied()).spawn().unwrap();
        let function = Self {
            process,
            port,
            folder,
        };
        within("the function listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        function
    }

    fn request(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(stream, "{head}\r\nhost: localhost\r\n\r\n").unwrap();
        stream
    }

    /// Status line, headers and body of an answer that ends the connection.
    fn answer(&self, head: &str) -> String {
        let mut text = String::new();
        self.request(&format!("{head}\r\nconnection: close"))
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn allow(&self, name: &str) {
        fs::write(self.file(name), "").unwrap();
    }

    fn terminate(&self) {
        assert!(
            Command::new("kill")
                .arg(self.process.id().to_string())
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _reaped = self.process.wait();
        let _best_effort = fs::remove_dir_all(&self.folder);
    }
}

fn within(what: &str, mut condition: impl FnMut() -> bool) {
    let started_at = Instant::now();
    while !condition() {
        assert!(
            started_at.elapsed() < Duration::from_secs(20),
            "not within 20 seconds: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn upload_is_refused_early() -> Result<(), Failed> {
    let function = Function::start(&[]);
    // The body is announced and never sent, so the refusal cannot depend on it.
    let mut stream = function.request(
        "POST /echo HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 4000000000",
    );
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    assert_eq!(&head, b"HTTP/1.1 413");
    let answer = function.answer("GET /alive HTTP/1.1");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

fn ndjson_streams() -> Result<(), Failed> {
    let function = Function::start(&[]);
    let mut lines = BufReader::new(function.request("GET /ndjson HTTP/1.1")).lines();
    let first = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.starts_with('{'));
    assert_eq!(first.as_deref(), Some(r#"{"line":1}"#));
    // The second line is produced after the first has arrived.
    function.allow("second");
    let second = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with('{'));
    assert_eq!(second.as_deref(), Some(r#"{"line":2}"#));
    Ok(())
}

fn panic_is_survived() -> Result<(), Failed> {
    let function = Function::start(&[]);
    let answer = function.answer("GET /panic HTTP/1.1");
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(
        answer.contains("application/problem+json") && answer.contains(r#""code":"internal""#),
        "{answer}"
    );
    assert!(!answer.contains("on demand"), "{answer}");
    assert!(
        function
            .answer("GET /alive HTTP/1.1")
            .starts_with("HTTP/1.1 200")
    );
    Ok(())
}

fn work_outlives_sigterm() -> Result<(), Failed> {
    let mut function = Function::start(&[]);
    assert!(
        function
            .answer("POST /work HTTP/1.1")
            .starts_with("HTTP/1.1 200")
    );
    function.terminate();
    within("the signal is received", || {
        function.file("terminating").exists()
    });
    assert!(
        function.process.try_wait()?.is_none(),
        "the process ended before its work"
    );
    function.allow("go");
    assert!(function.process.wait()?.success());
    assert!(function.file("done").exists());
    Ok(())
}

fn work_outlives_the_client() -> Result<(), Failed> {
    let function = Function::start(&[]);
    let mut lines = BufReader::new(function.request("GET /produce HTTP/1.1")).lines();
    assert!(
        lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("started"))
    );
    drop(lines);
    function.allow("go");
    within("the producer ends without its client", || {
        function.file("done").exists()
    });
    Ok(())
}

/// The platform freezes a process once all its invocations have ended.
fn end_message_waits() -> Result<(), Failed> {
    let socket = env::temp_dir().join(format!("iconoclash-ipc-{}.sock", std::process::id()));
    let _left_over = fs::remove_file(&socket);
    let platform = UnixListener::bind(&socket)?;
    let function = Function::start(&[("VERCEL_IPC_PATH", socket.to_str().unwrap_or_default())]);
    let (connection, _) = platform.accept()?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    let invocation = "x-vercel-internal-invocation-id: i-1\r\nx-vercel-internal-request-id: 7";
    assert!(
        function
            .answer(&format!("POST /work HTTP/1.1\r\n{invocation}"))
            .starts_with("HTTP/1.1 200")
    );
    function.allow("go");
    let mut messages = BufReader::new(connection).split(0).map_while(Result::ok);
    let end = messages.find(|message| String::from_utf8_lossy(message).contains(r#""type":"end""#));
    assert!(
        end.is_some(),
        "no message to the platform says that the invocation ended"
    );
    assert!(
        function.file("done").exists(),
        "the invocation ended before its work"
    );
    fs::remove_file(&socket)?;
    Ok(())
}

fn bare_function_answers() -> Result<(), Failed> {
    let function = Function::start(&[]);
    let answer = function.answer("GET /needs-postgres HTTP/1.1");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("application/problem+json"),
        "{answer}"
    );
    assert!(!answer.contains("DATABASE_URL"), "{answer}");
    Ok(())
}
