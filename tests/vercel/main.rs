//! The functions as Vercel builds and runs them: the real CLI, without an account, and the binaries that it makes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test plays the platform: it has an environment and a client"
)]

mod workbench;

use iconoclash_fakes::stripe::Action;
use iconoclash_fakes::test_services::TestServices;
use serde_json::{Value, json};
use std::{fs, process::Command, time::Duration};

use workbench::{Client, Server, api_files, copy_of_the_checkout, free_port, root, vercel};

#[tokio::test]
async fn vercel_dev_serves_every_route() {
    let surroundings = TestServices::start(Duration::ZERO).await;
    let port = free_port();
    let mut command = vercel(&root());
    command.args([
        "dev",
        "--local",
        "--yes",
        "--listen",
        &format!("127.0.0.1:{port}"),
    ]);
    for server in ["--queue-port", "--runtime-cache-port", "--schedules-port"] {
        command.args([server, &free_port().to_string()]);
    }
    command.envs(&surroundings.settings);
    let _server = Server::start(command, port).await;
    let mut client = Client::new(port);

    let health = client.get("/api/health").await;
    assert_eq!(health["status"], "ok");
    let document = client.get("/api/openapi").await;
    for path in ["/api/jwks", "/api/icons", "/api/plans"] {
        assert!(client.get(path).await.is_object(), "{path}");
    }
    assert!(client.post("/api/auth/guest", json!({}), 201).await["token"].is_string());
    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    client.post("/api/auth/signup", body.clone(), 201).await;
    client.token = client.post("/api/auth/login", body, 200).await["token"]
        .as_str()
        .map(str::to_owned);
    assert_eq!(
        client.get("/api/auth/session").await["user"]["email"],
        "ada@example.org"
    );
    let begun = client
        .post("/api/discussions", json!({"icons": ["socrates"]}), 201)
        .await;
    let path = format!("/api/discussions/{}", begun["id"].as_str().unwrap());
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
    let reply = client.get(&format!("{path}/messages")).await["data"][0].clone();
    assert_eq!(reply["status"], "complete");
    let reply = format!("/api/messages/{}", reply["id"].as_str().unwrap());
    let again = client.stream(&format!("{reply}/events"), Value::Null).await;
    assert!(
        again.contains("event: start\n") && again.contains("event: done\n"),
        "{again}"
    );
    assert_eq!(
        client
            .call("POST", &format!("{reply}/stop"), Value::Null)
            .await,
        409
    );
    assert_eq!(
        client.get("/api/discussions").await["data"][0]["id"],
        begun["id"]
    );
    assert_eq!(client.get("/api/discussions/count").await["total"], 1);
    assert_eq!(client.get(&path).await["message_count"], 2);
    assert_eq!(
        client
            .call("PATCH", &path, json!({"title": "Why not"}))
            .await,
        200
    );
    assert_eq!(client.call("DELETE", &path, Value::Null).await, 204);
    let page = client.post("/api/billing/checkout", json!({}), 200).await;
    let checkout = page["url"].as_str().unwrap().rsplit('/').next().unwrap();
    surroundings.stripe.act(Action::Pay(checkout));
    for event in surroundings.stripe.take_events() {
        let signature = surroundings.stripe.sign(&event.payload);
        assert_eq!(
            client
                .webhook("/api/billing/webhook", event.payload, signature)
                .await,
            200
        );
    }
    assert_eq!(client.get("/api/auth/session").await["user"]["plan"], "pro");
    assert!(client.post("/api/billing/portal", json!({}), 200).await["url"].is_string());
    let user_token = client
        .token
        .replace(surroundings.settings["CRON_SECRET"].clone());
    assert_eq!(client.get("/api/cron/reconcile").await["replies_ended"], 0);
    client.token = user_token;
    assert_eq!(
        client.call("POST", "/api/auth/logout", Value::Null).await,
        204
    );
    assert_eq!(
        client.call("GET", "/api/auth/session", Value::Null).await,
        401
    );

    let called = client.routes();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let route = format!("{} {path}", method.to_uppercase());
            assert!(
                called.contains(&route),
                "{route} was not tried under `vercel dev`"
            );
        }
    }
}

#[tokio::test]
async fn a_vercel_build_has_a_function_a_file_and_its_binary_streams_alone() {
    let copy = copy_of_the_checkout();
    fs::create_dir_all(copy.join(".vercel")).unwrap();
    let project = json!({"projectId": "prj_x", "orgId": "team_x", "settings": {"framework": null}});
    fs::write(copy.join(".vercel/project.json"), project.to_string()).unwrap();
    let mut build = vercel(&copy);
    build
        .args(["build", "--yes", "--token", "x"])
        .env("VERCEL_BUILD_IMAGE", "1");
    assert!(build.status().unwrap().success(), "vercel build failed");

    let output: Value =
        serde_json::from_slice(&fs::read(copy.join(".vercel/output/config.json")).unwrap())
            .unwrap();
    assert_eq!(
        output["crons"],
        json!([{"path": "/api/cron/reconcile", "schedule": "* * * * *"}])
    );
    let functions = copy.join(".vercel/output/functions");
    let mut binaries = Vec::new();
    for file in api_files() {
        let folder = functions
            .join(file.strip_suffix(".rs").unwrap())
            .with_extension("func");
        let config: Value =
            serde_json::from_slice(&fs::read(folder.join(".vc-config.json")).unwrap()).unwrap();
        let binary = copy.join(config["filePathMap"]["executable"].as_str().unwrap());
        let megabytes = fs::metadata(&binary).unwrap().len() as f64 / 1e6;
        eprintln!("{file}: {megabytes:.1} MB");
        binaries.push((file, binary));
    }

    let surroundings = TestServices::start(Duration::ZERO).await;
    let run = async |file: &str| {
        let (_, binary) = binaries.iter().find(|(built, _)| built == file).unwrap();
        let port = free_port();
        let mut command = Command::new(binary);
        command
            .env_clear()
            .envs(&surroundings.settings)
            .env("VERCEL_DEV_PORT", port.to_string());
        (Server::start(command, port).await, Client::new(port))
    };
    let (_accounts, client) = run("api/auth/guest.rs").await;
    let token = client.post("/api/auth/guest", json!({}), 201).await["token"]
        .as_str()
        .map(str::to_owned);
    let (_discussions, mut client) = run("api/discussions.rs").await;
    client.token = token.clone();
    let begun = client
        .post("/api/discussions", json!({"icons": ["socrates"]}), 201)
        .await;
    let (_messages, mut client) = run("api/discussions/[id]/messages.rs").await;
    client.token = token;
    let path = format!(
        "/api/discussions/{}/messages",
        begun["id"].as_str().unwrap()
    );
    let events = tokio::time::timeout(
        Duration::from_secs(30),
        client.stream(&path, json!({"content": "Why?"})),
    );
    let events = events.await.unwrap();
    assert!(
        events.contains("event: start\n") && events.contains("event: done\n"),
        "{events}"
    );
}
