//! The functions as Vercel builds and runs them, with the real CLI and without an account.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test plays the platform: it has an environment and a client"
)]

mod workbench;

use iconoclash_fakes::{stripe::Action, test_services::TestServices};
use iconoclash_local::{ports::free_port, vercel};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use workbench::{Client, Server, api_files, build_functions, copy_of_the_checkout, root};

#[tokio::test]
async fn vercel_dev_serves_every_route() {
    let services = TestServices::start(Duration::ZERO).await;
    build_functions(&root(), &[]);
    let port = free_port().unwrap();
    let mut command = vercel::dev(&root(), port).unwrap();
    command.envs(&services.settings);
    let _server = Server::start(command, port);
    let mut client = Client::new(port);

    assert_eq!(client.get("/api/health").await["status"], "ok");
    for path in ["/api/jwks", "/api/icons", "/api/icons/", "/api/plans"] {
        assert!(client.get(path).await.is_object(), "{path}");
    }
    sign_up_and_in(&mut client).await;
    discuss(&client).await;
    subscribe(&client, &services).await;
    run_crons(&mut client, &services).await;
    log_out(&client).await;

    let document = client.get("/api/openapi").await;
    assert_every_route_was_called(&client, &document);
}

async fn sign_up_and_in(client: &mut Client) {
    let guest = client.post("/api/auth/guest", json!({}), 201).await;
    assert!(guest["token"].is_string());

    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    client.post("/api/auth/signup", body.clone(), 201).await;
    let login = client.post("/api/auth/login", body, 200).await;
    client.token = login["token"].as_str().map(str::to_owned);

    let session = client.get("/api/auth/session").await;
    assert_eq!(session["user"]["email"], "ada@example.org");
}

async fn discuss(client: &Client) {
    let discussion = client
        .post("/api/discussions", json!({"icons": ["socrates"]}), 201)
        .await;
    let path = format!("/api/discussions/{}", discussion["id"].as_str().unwrap());
    let events = client
        .stream(&format!("{path}/messages"), json!({"content": "Why?"}))
        .await;
    assert!(
        events.starts_with("id: 1\nevent: start\n") || events.starts_with("event: start\n"),
        "{events}"
    );
    assert!(
        events.contains("event: delta\n") && events.contains("event: done\n"),
        "{events}"
    );
    resume_and_stop(client, &path).await;

    let list = client.get("/api/discussions").await;
    assert_eq!(list["data"][0]["id"], discussion["id"]);
    assert_eq!(client.get("/api/discussions/count").await["total"], 1);
    assert_eq!(client.get(&path).await["message_count"], 2);

    let title = json!({"title": "Why not"});
    assert_eq!(client.call("PATCH", &path, title).await, 200);
    assert_eq!(client.call("DELETE", &path, Value::Null).await, 204);
}

async fn resume_and_stop(client: &Client, discussion: &str) {
    let messages = client.get(&format!("{discussion}/messages")).await;
    let reply = &messages["data"][0];
    assert_eq!(reply["status"], "complete");

    let path = format!("/api/messages/{}", reply["id"].as_str().unwrap());
    let events = client.stream(&format!("{path}/events"), Value::Null).await;
    assert!(
        events.contains("event: start\n") && events.contains("event: done\n"),
        "{events}"
    );

    let stop = format!("{path}/stop");
    assert_eq!(client.call("POST", &stop, Value::Null).await, 409);
}

async fn subscribe(client: &Client, services: &TestServices) {
    let page = client.post("/api/billing/checkout", json!({}), 200).await;
    let checkout = page["url"].as_str().unwrap().rsplit('/').next().unwrap();
    services.stripe.act(Action::Pay(checkout));

    for event in services.stripe.take_events() {
        let signature = services.stripe.sign(&event.payload);
        let status = client
            .webhook("/api/billing/webhook", event.payload, signature)
            .await;
        assert_eq!(status, 200);
    }
    let session = client.get("/api/auth/session").await;
    assert_eq!(session["user"]["plan"], "pro");

    let refreshed = client.post("/api/billing/refresh", json!({}), 200).await;
    assert_eq!(refreshed["user"]["plan"], "pro");
    let portal = client.post("/api/billing/portal", json!({}), 200).await;
    assert!(portal["url"].is_string());
}

async fn run_crons(client: &mut Client, services: &TestServices) {
    let cron_secret = services.settings["CRON_SECRET"].clone();
    let user_token = client.token.replace(cron_secret);
    assert_eq!(client.get("/api/cron/reconcile").await["replies_ended"], 0);
    client.token = user_token;
}

async fn log_out(client: &Client) {
    let logout = client.call("POST", "/api/auth/logout", Value::Null).await;
    assert_eq!(logout, 204);

    let session = client.call("GET", "/api/auth/session", Value::Null).await;
    assert_eq!(session, 401);
}

fn assert_every_route_was_called(client: &Client, document: &Value) {
    let called = client.routes();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let route = format!("{} {path}", method.to_uppercase());
            assert!(
                called.contains(&route),
                "{route} was not called under `vercel dev`"
            );
        }
    }
}

#[tokio::test]
async fn vercel_build_makes_a_function_per_file_and_its_binary_streams() {
    let copy = copy_of_the_checkout();
    fs::create_dir_all(copy.join(".vercel")).unwrap();
    let project = json!({"projectId": "prj_x", "orgId": "team_x", "settings": {"framework": null}});
    fs::write(copy.join(".vercel/project.json"), project.to_string()).unwrap();

    build_functions(&copy, &["--release"]);
    let mut build = vercel::build(&root(), &copy).unwrap();
    assert!(build.status().unwrap().success(), "vercel build failed");

    let config = json_file(&copy.join(".vercel/output/config.json"));
    assert_eq!(
        config["crons"],
        json!([{"path": "/api/cron/reconcile", "schedule": "* * * * *"}])
    );
    for file in api_files() {
        let binary = built_binary(&copy, &file);
        let megabytes = fs::metadata(&binary).unwrap().len() as f64 / 1e6;
        eprintln!("{file}: {megabytes:.1} MB");
    }

    let events = stream_from_binaries(&copy).await;
    assert!(
        events.contains("event: start\n") && events.contains("event: done\n"),
        "{events}"
    );
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The binary that `vercel build` made from a file of `api/`.
fn built_binary(copy: &Path, file: &str) -> PathBuf {
    let folder = copy
        .join(".vercel/output/functions")
        .join(file.strip_suffix(".rs").unwrap())
        .with_extension("func");
    let config = json_file(&folder.join(".vc-config.json"));

    copy.join(config["filePathMap"]["executable"].as_str().unwrap())
}

/// The events of a message, sent to binaries that run without the CLI.
async fn stream_from_binaries(copy: &Path) -> String {
    let services = TestServices::start(Duration::ZERO).await;
    let run = |file: &str| {
        let port = free_port().unwrap();
        let mut command = Command::new(built_binary(copy, file));
        command
            .env_clear()
            .envs(&services.settings)
            .env("VERCEL_DEV_PORT", port.to_string());
        (Server::start(command, port), Client::new(port))
    };

    let (_accounts, client) = run("api/auth/guest.rs");
    let guest = client.post("/api/auth/guest", json!({}), 201).await;
    let token = guest["token"].as_str().map(str::to_owned);

    let (_discussions, mut client) = run("api/discussions.rs");
    client.token = token.clone();
    let discussion = client
        .post("/api/discussions", json!({"icons": ["socrates"]}), 201)
        .await;

    let (_messages, mut client) = run("api/discussions/[id]/messages.rs");
    client.token = token;
    let path = format!(
        "/api/discussions/{}/messages",
        discussion["id"].as_str().unwrap()
    );
    let events = client.stream(&path, json!({"content": "Why?"}));

    tokio::time::timeout(Duration::from_secs(30), events)
        .await
        .unwrap()
}
