//! What every test on a real database needs.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the test run, not of a deployment"
)]
pub(crate) fn test_database() -> String {
    std::env::var("ICONOCLASH_TEST_DATABASE")
        .expect("ICONOCLASH_TEST_DATABASE is not set: run `cargo local test`, which starts a migrated database")
}

/// Waits until the condition holds; a bound that is never met in a healthy run.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    within: Duration,
    what: &str,
    condition: impl Fn() -> F,
) {
    let until = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < until, "not within {within:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
