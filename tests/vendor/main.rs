//! The vendors' own clients against their stand-ins.

#![expect(
    clippy::disallowed_methods,
    reason = "a test finds its tools by PATH, and serves what they call"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Json, Router, extract::Request, routing::get};
use iconoclash::{app::App, config::Config, http::serve, routes};
use iconoclash_fakes::{claude, proxy::Http, stripe, upstash::Front};
use tokio::{net::TcpListener, process::Command};
use tower::ServiceExt;

/// Runs `tests/vendor/{name}.mjs`, which imports that package, with nothing but these settings: clients
/// take credentials and options from their surroundings too.
async fn node(name: &str, package: &str, settings: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(
        root.join("node_modules").join(package).is_dir(),
        "the official client is not installed: run `cargo local test`"
    );
    let ran = Command::new("node")
        .args(["--test", &format!("tests/vendor/{name}.mjs")])
        .current_dir(root)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(settings.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

async fn front() -> Front {
    let redis = std::env::var("ICONOCLASH_TEST_REDIS")
        .expect("ICONOCLASH_TEST_REDIS is unset: run these tests with `cargo local test`");
    Front::isolated(redis.parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_official_client_takes_the_stand_in_for_claude() {
    let keys = ["sk-ant-local", "sk-a", "sk-b", "sk-c"]
        .map(str::to_owned)
        .to_vec();
    let stand_in = claude::StandIn::start(claude::Config {
        keys,
        ..claude::Config::default()
    })
    .await
    .unwrap();
    stand_in.belongs("sk-a", "acme");
    stand_in.belongs("sk-b", "acme");
    let settings = [
        ("ANTHROPIC_BASE_URL", stand_in.url()),
        ("ANTHROPIC_API_KEY", "sk-ant-local".to_owned()),
        (
            "ANTHROPIC_API_KEYS_OF_TWO_ORGANISATIONS",
            "sk-a,sk-b,sk-c".to_owned(),
        ),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    node("claude", "@anthropic-ai/sdk", &settings).await;
}

#[tokio::test]
async fn the_official_client_takes_the_front_for_upstash() {
    let front = front().await;
    let settings = [
        ("UPSTASH_REDIS_REST_URL", front.url()),
        ("UPSTASH_REDIS_REST_TOKEN", front.token()),
    ];
    node("upstash", "@upstash/redis", &settings).await;
}

#[tokio::test]
async fn the_official_rate_limiter_takes_the_front_for_upstash() {
    let front = front().await;
    let hanging = Http::start(front.url(), Duration::ZERO).await.unwrap();
    hanging.pause();
    let settings = [
        ("UPSTASH_REDIS_REST_URL", front.url()),
        ("UPSTASH_REDIS_REST_TOKEN", front.token()),
        ("HANGING_URL", &hanging.url()),
    ];
    node("ratelimit", "@upstash/ratelimit", &settings).await;
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
    let config = Config::from_lookup(|name| {
        known
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, v)| v.clone())
    });
    let functions = serve::stack(
        routes::all().into(),
        App::new(config, stripe::Config::default().clock),
    );
    let background = serve::Background::in_process();
    let events = get(async move || {
        let signed = stand_in.take_events().into_iter().map(|event| {
            let signature = stand_in.sign(&event.payload);
            serde_json::json!({"payload": event.payload, "signature": signature})
        });
        Json(signed.collect::<Vec<_>>())
    });
    let router =
        Router::new()
            .route("/events", events)
            .fallback(async move |mut request: Request| {
                request.extensions_mut().insert(background);
                functions.oneshot(request).await
            });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    node("stripe", "stripe", &settings).await;
}
