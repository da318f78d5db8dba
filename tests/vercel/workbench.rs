//! Processes to talk to, and a client that remembers what it asked.

use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    time::{Duration, Instant},
};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The real CLI, pinned in package.json.
pub(crate) fn vercel(folder: &Path) -> Command {
    let program = root().join("node_modules/.bin/vercel");
    assert!(
        program.exists(),
        "the Vercel CLI is not installed: run `cargo local test`"
    );
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("VERCEL_TELEMETRY_DISABLED", "1");
    command
}

/// The functions' source files, by their path from the root.
pub(crate) fn api_files() -> Vec<String> {
    tracked()
        .into_iter()
        .filter(|file| file.starts_with("api/"))
        .collect()
}

fn tracked() -> Vec<String> {
    let mut list = Command::new("git");
    list.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ])
    .current_dir(root());
    let listed = String::from_utf8(list.output().unwrap().stdout).unwrap();
    listed
        .split('\0')
        .filter(|file| !file.is_empty() && root().join(file).exists())
        .map(str::to_owned)
        .collect()
}

/// A copy of what a deployment would upload, below `target`: a build needs a link to a project, which `vercel dev` must
/// not find. Files that did not change keep their time, so that cargo builds only what did.
pub(crate) fn copy_of_the_checkout() -> PathBuf {
    let copy = root().join("target/vercel-build");
    for file in tracked() {
        let (from, to) = (root().join(&file), copy.join(&file));
        let text = fs::read(&from).unwrap();
        if fs::read(&to).ok().as_ref() != Some(&text) {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(&to, text).unwrap();
        }
    }
    copy
}

/// A process that listens; dropping it ends it with all that it started.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) async fn start(mut command: Command, port: u16) -> Self {
        let mut server = Self(command.process_group(0).spawn().unwrap());
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.0.try_wait().unwrap().is_none(), "the server ended");
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the server does not listen"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _already_gone = Command::new("kill").args(["-TERM", "--", &group]).status();
        let _reaped = self.0.wait();
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    pub(crate) token: Option<String>,
    called: Mutex<BTreeSet<String>>,
}

impl Client {
    pub(crate) fn new(port: u16) -> Self {
        let base = format!("http://127.0.0.1:{port}");
        // `vercel dev` builds a function when it is first asked.
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(600))
            .build()
            .unwrap();
        Self {
            http,
            base,
            token: None,
            called: Mutex::default(),
        }
    }

    /// Every route that was asked, its id as in the document.
    pub(crate) fn routes(&self) -> BTreeSet<String> {
        self.called.lock().unwrap().clone()
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self
            .request(Method::GET, path, Value::Null)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "GET {path}");
        response.json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value, status: u16) -> Value {
        let response = self.request(Method::POST, path, body).send().await.unwrap();
        let (got, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(got, status, "POST {path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> u16 {
        let request = self.request(method.parse().unwrap(), path, body);
        request.send().await.unwrap().status().as_u16()
    }

    /// Sends bytes as they were signed.
    pub(crate) async fn webhook(&self, path: &str, payload: String, signature: String) -> u16 {
        let request = self
            .request(Method::POST, path, Value::Null)
            .header("stripe-signature", signature);
        request
            .body(payload)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    /// The events that a message is answered with, or, without a body, those of a reply's stream.
    pub(crate) async fn stream(&self, path: &str, body: Value) -> String {
        let method = if body.is_null() {
            Method::GET
        } else {
            Method::POST
        };
        let request = self
            .request(method, path, body)
            .header("accept", "text/event-stream");
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response.text().await.unwrap()
    }

    fn request(&self, method: Method, path: &str, body: Value) -> RequestBuilder {
        let template = path
            .split('/')
            .map(|part| if part.len() == 36 { "{id}" } else { part })
            .collect::<Vec<_>>();
        self.called
            .lock()
            .unwrap()
            .insert(format!("{method} {}", template.join("/")));
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if body.is_null() {
            request
        } else {
            request.json(&body)
        }
    }
}
