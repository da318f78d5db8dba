//! Many requests through a pool of keys while one organisation is rate limited for a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use claude::{ApiKey, Deadlines, Pool, Route};
use futures_util::{StreamExt, stream};
use iconoclash_fakes::claude::{Config, Failure, FakeClaude, Only};
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{prompt, read};

const SENDS: u128 = 1_000;
/// The pool's clock advances by this with each request.
const STEP_MS: i64 = 100;
const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

/// Keys A and B of one organisation, C of another, and a clock that advances with every request.
async fn pool() -> (FakeClaude, Pool, Arc<AtomicI64>) {
    let keys = ["sk-a", "sk-b", "sk-c"].map(str::to_owned).to_vec();
    let fake = FakeClaude::start(Config {
        keys,
        ..Config::default()
    })
    .await
    .unwrap();
    fake.set_organisation("sk-a", "acme");
    fake.set_organisation("sk-b", "acme");

    let acme = |label: &str, secret: &str| {
        ApiKey::new(label, secret).with_organisation(Some("acme".to_owned()))
    };
    let keys = vec![
        acme("a", "sk-a"),
        acme("b", "sk-b"),
        ApiKey::new("c", "sk-c"),
    ];

    let passed = Arc::new(AtomicI64::new(0));
    let clock = Arc::clone(&passed);
    let now = move || NOW + time::Duration::milliseconds(clock.load(Ordering::Relaxed));

    let http = || reqwest::Client::builder().no_proxy();
    let pool = Pool::new(http, fake.url(), Deadlines::default(), keys, now);
    (fake, pool, passed)
}

/// Sends a request for each of a thousand conversations, ten at once; returns requests per second.
async fn send(pool: &Pool, passed: &AtomicI64) -> f64 {
    let started_at = Instant::now();
    let one = async |conversation: u128| {
        passed.fetch_add(STEP_MS, Ordering::Relaxed);
        let route = Route {
            conversation: Uuid::from_u128(conversation),
            fallback: None,
        };
        let mut reply = pool.ask(&prompt("Why?"), &route).await.unwrap();
        let (_, whole) = read(&mut reply).await;
        whole.unwrap();
    };

    stream::iter(0..SENDS)
        .map(one)
        .buffer_unordered(10)
        .collect::<Vec<()>>()
        .await;

    SENDS as f64 / started_at.elapsed().as_secs_f64()
}

#[tokio::test]
async fn all_requests_are_answered_while_one_organisation_waits_for_its_rate_limit() {
    let (fake, pool, passed) = pool().await;
    let usual = send(&pool, &passed).await;
    let before = fake.requests().len();

    // Half of the time that the requests take on the pool's clock.
    let retry_after_secs = 50;
    fake.next_for(
        Only::organisation("acme"),
        Failure::RateLimited { retry_after_secs },
    );
    let limited = send(&pool, &passed).await;
    eprintln!(
        "{usual:.0} requests a second with three keys, {limited:.0} with one organisation limited"
    );

    let requests = fake.requests();
    let keys: Vec<&str> = requests[before..]
        .iter()
        .filter_map(|request| request.key())
        .collect();
    assert_eq!(
        keys.len(),
        1_001,
        "one call met the limit, and another organisation answered its request"
    );

    let of_acme: Vec<usize> = (0..keys.len()).filter(|at| keys[*at] != "sk-c").collect();
    // Ten requests run at once, which limits the precision: first those under way at the limit,
    // then none for 500 requests, then the organisation's share again.
    let met = of_acme[0];
    let back = of_acme
        .iter()
        .copied()
        .find(|at| *at > met + 20)
        .expect("the organisation is used again");
    assert!(
        (met + 480..met + 520).contains(&back),
        "limited at {met}, used again at {back}"
    );
    assert!(
        of_acme.iter().filter(|at| **at >= back).count() > 200,
        "{}",
        of_acme.len()
    );
}
