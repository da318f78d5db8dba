//! Servers, and a client that remembers the routes it called.

use iconoclash_local::{
    ports::loopback,
    process::{Identity, Stop, stop_all, wait_until},
};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    time::Duration,
};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Builds the functions before the CLI builds them one by one: on all processors, and to the same
/// files.
pub(crate) fn build_functions(folder: &Path, arguments: &[&str]) {
    let mut build = Command::new("cargo");
    build
        .args(["build", "--quiet", "--bins"])
        .args(arguments)
        .current_dir(folder)
        // The CLI sets this, and cargo builds again for other flags.
        .env("RUSTFLAGS", std::env::var("RUSTFLAGS").unwrap_or_default());
    assert!(build.status().unwrap().success(), "cargo build failed");
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

/// Copies the files of a deployment to a folder in `target`: `vercel build` needs a link to a
/// project, which `vercel dev` must not find.
///
/// Unchanged files keep their modification times, so that cargo builds only what changed.
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

/// A process that listens on a port. Dropping it stops its process group.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(mut command: Command, port: u16) -> Self {
        let mut server = Self(command.process_group(0).spawn().unwrap());
        let address = loopback(port);
        wait_until(&mut server.0, || Ok(TcpStream::connect(address).map(drop)?)).unwrap();

        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(identity) = Identity::from_pid(self.0.id()) {
            stop_all(
                [(&identity, Stop::Terminate)].into_iter(),
                Duration::from_secs(20),
            );
        }
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
        // `vercel dev` builds a function at its first request.
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

    /// Every route that was called, with `{id}` for ids, as in the OpenAPI document.
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

    /// Sends a signed payload unchanged.
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

    /// The events of the answer to a message or, without a body, of a reply's stream.
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
