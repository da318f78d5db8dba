//! The vendors' official clients against their fakes.

#![expect(
    clippy::disallowed_methods,
    reason = "a test finds node by PATH, and serves its requests"
)]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Json, Router, extract::Request, routing::get};
use iconoclash::{app::App, config::Config, http::serve, routes};
use iconoclash_fakes::claude::{self, FakeClaude};
use iconoclash_fakes::proxy::Http;
use iconoclash_fakes::stripe::{self, FakeStripe};
use iconoclash_fakes::test_services::needed;
use iconoclash_fakes::upstash::RestProxy;
use serde_json::json;
use tokio::{net::TcpListener, process::Command};
use tower::ServiceExt;

/// Runs `tests/vendor/{name}.mjs`, which imports this package, with these environment variables only,
/// because the clients also read credentials and options from the environment.
async fn node(name: &str, package: &str, settings: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(
        root.join("node_modules").join(package).is_dir(),
        "the official client is not installed: run `cargo local test`"
    );

    let run = Command::new("node")
        .args(["--test", &format!("tests/vendor/{name}.mjs")])
        .current_dir(root)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(settings.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();

    let stdout = String::from_utf8_lossy(&run.stdout);
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{stdout}\n{stderr}");
}

async fn start_rest_proxy() -> RestProxy {
    let redis = needed("ICONOCLASH_TEST_REDIS").parse().unwrap();

    RestProxy::isolated(redis).await.unwrap()
}

#[tokio::test]
async fn the_official_client_works_with_the_fake_claude() {
    let keys = ["sk-ant-local", "sk-a", "sk-b", "sk-c"];
    let config = claude::Config {
        keys: keys.map(str::to_owned).to_vec(),
        ..claude::Config::default()
    };
    let fake = FakeClaude::start(config).await.unwrap();
    fake.set_organisation("sk-a", "acme");
    fake.set_organisation("sk-b", "acme");

    let url = fake.url();
    let settings = [
        ("ANTHROPIC_BASE_URL", url.as_str()),
        ("ANTHROPIC_API_KEY", "sk-ant-local"),
        ("KEYS_OF_TWO_ORGANISATIONS", "sk-a,sk-b,sk-c"),
    ];
    node("claude", "@anthropic-ai/sdk", &settings).await;
}

#[tokio::test]
async fn the_official_client_works_with_the_rest_proxy_of_redis() {
    let proxy = start_rest_proxy().await;
    let settings = [
        ("UPSTASH_REDIS_REST_URL", proxy.url()),
        ("UPSTASH_REDIS_REST_TOKEN", proxy.token()),
    ];

    node("upstash", "@upstash/redis", &settings).await;
}

#[tokio::test]
async fn the_official_rate_limiter_works_with_the_rest_proxy_of_redis() {
    let proxy = start_rest_proxy().await;
    let hanging = Http::start(proxy.url(), Duration::ZERO).await.unwrap();
    hanging.pause();

    let hanging_url = hanging.url();
    let settings = [
        ("UPSTASH_REDIS_REST_URL", proxy.url()),
        ("UPSTASH_REDIS_REST_TOKEN", proxy.token()),
        ("HANGING_URL", &hanging_url),
    ];
    node("ratelimit", "@upstash/ratelimit", &settings).await;
}

#[tokio::test]
async fn the_official_client_works_with_the_fake_stripe_and_our_webhook_accepts_its_events() {
    let config = stripe::Config::default();
    let key = config.key.clone();
    let secret = config.webhook_secret.clone();
    let fake = Arc::new(FakeStripe::start(config).await.unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let settings = [
        ("STRIPE_BASE_URL", fake.url()),
        ("STRIPE_SECRET_KEY", key),
        ("STRIPE_WEBHOOK_SECRET", secret),
        ("STRIPE_PRICE_PRO", stripe::PRICE.to_owned()),
        ("WEBHOOK_URL", format!("{address}/api/billing/webhook")),
        ("EVENTS_URL", format!("{address}/events")),
    ];

    let router = webhook_and_events(&settings, fake);
    tokio::spawn(async move { axum::serve(listener, router).await });

    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    node("stripe", "stripe", &settings).await;
}

/// Serves the application's webhook, and the signed events of the fake at `/events`.
fn webhook_and_events(settings: &[(&str, String)], fake: Arc<FakeStripe>) -> Router {
    // The webhook needs no other setting as long as no event concerns a user.
    let config = Config::from_lookup(|name| {
        let found = settings.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    });
    let app = App::new(config, stripe::Config::default().clock);
    let functions = serve::stack(routes::all().into(), app);
    let background = serve::Background::in_process();

    let events = get(async move || {
        let signed = fake.take_events().into_iter().map(|event| {
            let signature = fake.sign(&event.payload);
            json!({"payload": event.payload, "signature": signature})
        });
        Json(signed.collect::<Vec<_>>())
    });

    Router::new()
        .route("/events", events)
        .fallback(async move |mut request: Request| {
            request.extensions_mut().insert(background);
            functions.oneshot(request).await
        })
}
