//! The vendors' own clients against their stand-ins.

#![expect(clippy::disallowed_methods, reason = "a test finds its tools by PATH, and serves what they call")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{path::Path, sync::Arc};

use axum::{Json, Router, extract::Request, routing::get};
use iconoclash::{app::App, config::Config, routes, serve};
use iconoclash_local::{claude, stripe};
use tokio::{net::TcpListener, process::Command};
use tower::ServiceExt;

/// Runs a script of `tests/vendor` with these settings and no others.
async fn run(package: &str, script: &str, settings: &[(&str, String)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let installed = root.join("node_modules").join(package).is_dir();
    assert!(installed, "the official client is not installed: run `cargo local test`");
    let ran = Command::new("node")
        .args(["--test", &format!("tests/vendor/{script}")])
        .current_dir(root)
        // The clients take other credentials and headers from their surroundings too.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(settings.iter().map(|(name, value)| (*name, value)))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn the_official_client_takes_the_stand_in_for_claude() {
    let stand_in = claude::StandIn::start(claude::Config::default()).await.unwrap();
    let settings = [("ANTHROPIC_BASE_URL", stand_in.url()), ("ANTHROPIC_API_KEY", "sk-ant-local".to_owned())];
    run("@anthropic-ai/sdk", "claude.mjs", &settings).await;
}

#[tokio::test]
async fn the_official_client_takes_the_stand_in_for_stripe_and_we_take_the_client_for_stripe() {
    let config = stripe::Config::default();
    let (key, secret) = (config.key.clone(), config.webhook_secret.clone());
    let stand_in = Arc::new(stripe::StandIn::start(config).await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let settings = [
        ("STRIPE_BASE_URL", stand_in.url()),
        ("STRIPE_SECRET_KEY", key),
        ("STRIPE_WEBHOOK_SECRET", secret),
        ("STRIPE_PRICE_PRO", stripe::PRICE.to_owned()),
        ("WEBHOOK_URL", format!("{address}/api/billing/webhook")),
        ("EVENTS_URL", format!("{address}/events")),
    ];
    // Of all settings the webhook needs no other, as long as an event concerns nobody.
    let known = settings.clone();
    let config = Config::from_lookup(|name| known.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone()));
    let functions = serve::stack(routes::all().into(), App::new(config, stripe::Config::default().clock));
    let background = serve::Background::in_process();
    let events = get(async move || {
        let signed = stand_in.take_events().into_iter().map(|event| {
            let signature = stand_in.sign(&event.payload);
            serde_json::json!({"payload": event.payload, "signature": signature})
        });
        Json(signed.collect::<Vec<_>>())
    });
    let router = Router::new().route("/events", events).fallback(async move |mut request: Request| {
        request.extensions_mut().insert(background);
        functions.oneshot(request).await
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    run("stripe", "stripe.mjs", &settings).await;
}
