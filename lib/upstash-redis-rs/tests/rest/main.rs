//! The client against the local REST front over a real Redis, and against servers that misbehave.
//!
//! Each test has a database of its own. `cargo local test` starts the Redis and names it.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

mod answers;
mod faults;
mod front;
mod stand_in;

use std::{net::SocketAddr, time::Duration};

use iconoclash_fakes::upstash::RestProxy;
use upstash_redis_rs::Redis;

#[expect(
    clippy::disallowed_methods,
    reason = "the runner tells the tests where it started Redis"
)]
fn redis_addr() -> SocketAddr {
    let addr = std::env::var("ICONOCLASH_TEST_REDIS")
        .expect("ICONOCLASH_TEST_REDIS is unset: run these tests with `cargo local test`");
    addr.parse()
        .expect("ICONOCLASH_TEST_REDIS is an address and port")
}

async fn front() -> RestProxy {
    RestProxy::isolated(redis_addr()).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test is an app of its own")]
fn http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy()
}

/// A client with time enough for a busy machine: these tests are about answers, not speed.
fn client_of(url: &str, token: &str) -> Redis {
    Redis::new(url, token, http().build().unwrap())
        .unwrap()
        .with_deadline(Duration::from_secs(20))
}

fn client(front: &RestProxy) -> Redis {
    client_of(front.url(), front.token())
}
