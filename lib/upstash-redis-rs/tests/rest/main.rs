//! The client against the local REST front over a real Redis, and against servers that misbehave.
//!
//! Each test has its own database. `cargo local test` starts the Redis and passes its address.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod answers;
mod fake_server;
mod faults;
mod front;

use std::{net::SocketAddr, time::Duration};

use iconoclash_fakes::upstash::RestProxy;
use upstash_redis_rs::Redis;

#[expect(
    clippy::disallowed_methods,
    reason = "the runner passes the address of Redis"
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

#[expect(clippy::disallowed_methods, reason = "a test is its own application")]
fn http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy()
}

/// A client with a long deadline, because these tests run on busy machines.
fn client_of(url: &str, token: &str) -> Redis {
    Redis::new(url, token, http().build().unwrap())
        .unwrap()
        .with_deadline(Duration::from_secs(20))
}

fn client(front: &RestProxy) -> Redis {
    client_of(front.url(), front.token())
}
