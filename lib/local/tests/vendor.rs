//! The vendors' own clients against their stand-ins.

#![expect(clippy::disallowed_methods, reason = "a test finds its tools by PATH")]

use std::path::Path;

use iconoclash_local::claude::{Config, StandIn};
use tokio::process::Command;

#[tokio::test]
async fn the_official_client_takes_the_stand_in_for_claude() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    assert!(
        root.join("node_modules/@anthropic-ai/sdk").is_dir(),
        "the official client is not installed: run `cargo local test`"
    );
    let stand_in = StandIn::start(Config::default()).await.unwrap();
    let ran = Command::new("node")
        .args(["--test", "tests/vendor/claude.mjs"])
        .current_dir(root)
        // The client takes other credentials and headers from its surroundings too.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("ANTHROPIC_BASE_URL", stand_in.url())
        .env("ANTHROPIC_API_KEY", "sk-ant-local")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
}
