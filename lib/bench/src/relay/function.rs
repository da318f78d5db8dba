//! The function that sends messages, as it is deployed, and a user who calls it.

use std::{
    env,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use iconoclash_local::{
    instance::Instance,
    ports,
    process::{Stop, wait_until},
    progress::long_step,
    stack::Stack,
};
use rand::random;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_postgres::SimpleQueryMessage;

const NAME: &str = "discussions-id-messages";

/// The function's program and what it runs on.
pub(super) struct Function<'a> {
    pub(super) instance: &'a Instance,
    pub(super) stack: &'a Stack,
    pub(super) program: PathBuf,
    pub(super) user: User,
}

/// A user of the application.
pub(super) struct User {
    id: String,
    token: String,
}

/// Builds the function as for a deployment.
pub(super) fn build(instance: &Instance) -> Result<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--release"])
        .args(["--package", "iconoclash-functions", "--bin", NAME])
        .current_dir(&instance.paths.root);

    long_step("the function: building as for a deployment", || {
        let status = instance
            .spawn("cargo", &mut command, Stop::Terminate)?
            .wait()?;
        ensure!(
            status.success(),
            "the function {NAME} does not build ({status})"
        );
        Ok(())
    })?;

    Ok(env::current_exe()?.with_file_name(NAME))
}

/// Creates a user with the help of a temporary development server.
pub(super) fn sign_up(runtime: &Handle, instance: &Instance, stack: &Stack) -> Result<User> {
    let port = ports::next_free_port(3100)?;
    let mut command = Command::new(env::current_exe()?);
    command
        .args(["serve", "--port", &port.to_string()])
        .envs(&stack.environment);
    let mut server = start(instance, port, &mut command)?;

    let url = format!("http://127.0.0.1:{port}/api/auth/signup");
    let body = json!({
        "email": format!("{}@example.org", random::<u64>()),
        "password": "correct horse",
        "name": "Ada",
    });
    let answer = runtime.block_on(async {
        let request = Client::new().post(url).json(&body);
        request
            .send()
            .await?
            .error_for_status()?
            .json::<Value>()
            .await
    });
    instance.stop(&mut server, Stop::Kill);

    let answer = answer?;
    let text = |field: &Value| {
        field
            .as_str()
            .map(str::to_owned)
            .context("the answer to the sign-up has no user")
    };
    Ok(User {
        id: text(&answer["user"]["id"])?,
        token: text(&answer["token"])?,
    })
}

impl Function<'_> {
    /// Starts the function with the Claude at this URL.
    pub(super) fn start(&self, port: u16, claude_url: &str) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .envs(&self.stack.environment)
            .env("VERCEL_DEV_PORT", port.to_string())
            .env("ANTHROPIC_API_KEYS", "local=sk-ant-local")
            .env("ANTHROPIC_BASE_URL", claude_url)
            .env("QUOTA_FREE", "100000")
            .env("BURST_PER_MINUTE", "6000");

        start(self.instance, port, &mut command)
    }

    pub(super) fn send_message(
        &self,
        http: &Client,
        port: u16,
        discussion: &str,
    ) -> RequestBuilder {
        let url = format!("http://127.0.0.1:{port}/api/discussions/{discussion}/messages");

        http.post(url)
            .bearer_auth(&self.user.token)
            .header("accept", "text/event-stream")
            .json(&json!({"content": "Why?"}))
    }

    /// Creates discussions of the user in the database, and lifts the spending limits.
    pub(super) async fn create_discussions(&self, count: usize) -> Result<Vec<String>> {
        let url = self.stack.database_url();
        let user = &self.user.id;
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);

        let rows = client
            .simple_query(&format!(
                "update budgets set limit_microusd = 1000000000000;
                 insert into discussions (id, user_id, title, icons, created_at, updated_at)
                 select gen_random_uuid(), '{user}', 'Relay', '{{socrates}}', now(), now()
                 from generate_series(1, {count})
                 returning id"
            ))
            .await?;
        let ids = rows.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });

        Ok(ids.collect())
    }
}

/// Starts a server and waits until it listens. Its log lines are dropped.
fn start(instance: &Instance, port: u16, command: &mut Command) -> Result<Child> {
    command
        .current_dir(&instance.paths.root)
        .stdout(Stdio::null());
    let mut child = instance.spawn("relay", command, Stop::Terminate)?;

    let address = ports::loopback(port);
    wait_until(&mut child, || Ok(TcpStream::connect(address).map(drop)?))?;

    Ok(child)
}
