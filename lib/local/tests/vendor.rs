//! The vendors' own clients against their stand-ins.

#![expect(clippy::disallowed_methods, reason = "a test finds its tools by PATH")]
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{path::Path, time::Duration};

use iconoclash_local::{
    claude::{Config, StandIn},
    proxy::Http,
    upstash::Front,
};
use tokio::process::Command;

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
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
}

async fn front() -> Front {
    let redis = std::env::var("ICONOCLASH_TEST_REDIS")
        .expect("ICONOCLASH_TEST_REDIS is unset: run these tests with `cargo local test`");
    Front::isolated(redis.parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_official_client_takes_the_stand_in_for_claude() {
    let keys = ["sk-ant-local", "sk-a", "sk-b", "sk-c"].map(str::to_owned).to_vec();
    let stand_in = StandIn::start(Config { keys, ..Config::default() }).await.unwrap();
    stand_in.belongs("sk-a", "acme");
    stand_in.belongs("sk-b", "acme");
    let settings = [
        ("ANTHROPIC_BASE_URL", stand_in.url()),
        ("ANTHROPIC_API_KEY", "sk-ant-local".to_owned()),
        ("ANTHROPIC_API_KEYS_OF_TWO_ORGANISATIONS", "sk-a,sk-b,sk-c".to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    node("claude", "@anthropic-ai/sdk", &settings).await;
}

#[tokio::test]
async fn the_official_client_takes_the_front_for_upstash() {
    let front = front().await;
    let settings = [("UPSTASH_REDIS_REST_URL", front.url()), ("UPSTASH_REDIS_REST_TOKEN", front.token())];
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
