//! Many sends through a pool of keys, one organisation of which is limited for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use claude::{ApiKey, Deadlines, Pool, Route};
use futures_util::{StreamExt, stream};
use iconoclash_fakes::claude::{Config, Failure, Only, StandIn};
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{prompt, read};

const SENDS: u128 = 1_000;
/// What passes for the pool with each send.
const STEP_MS: i64 = 100;
const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

/// A and B in one organisation, C in another, and a clock that goes on with every send.
async fn pool() -> (StandIn, Pool, Arc<AtomicI64>) {
    let keys = ["sk-a", "sk-b", "sk-c"].map(str::to_owned).to_vec();
    let stand_in = StandIn::start(Config {
        keys,
        ..Config::default()
    })
    .await
    .unwrap();
    stand_in.belongs("sk-a", "acme");
    stand_in.belongs("sk-b", "acme");
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
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let pool = Pool::new(http, stand_in.url(), Deadlines::default(), keys, now);
    (stand_in, pool, passed)
}

/// Sends a second for a thousand conversations, ten at once; each must be answered whole.
async fn send(pool: &Pool, passed: &AtomicI64) -> f64 {
    let begun = Instant::now();
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
    SENDS as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::test]
async fn a_thousand_sends_are_all_answered_while_an_organisation_is_limited_and_it_is_not_asked_before_its_time()
 {
    let (stand_in, pool, passed) = pool().await;
    let usual = send(&pool, &passed).await;
    let before = stand_in.requests().len();

    // Half of the time that the sends take, by the pool's clock.
    let retry_after_secs = 50;
    stand_in.next_for(
        Only::organisation("acme"),
        Failure::RateLimited { retry_after_secs },
    );
    let limited = send(&pool, &passed).await;
    eprintln!(
        "{usual:.0} sends a second with three keys, {limited:.0} with one of two organisations limited"
    );

    let requests = stand_in.requests();
    let keys: Vec<&str> = requests[before..]
        .iter()
        .filter_map(|request| request.key())
        .collect();
    assert_eq!(
        keys.len(),
        1_001,
        "one call met the limit, and its send was answered elsewhere"
    );
    let of_acme: Vec<usize> = (0..keys.len()).filter(|at| keys[*at] != "sk-c").collect();
    // Ten run at once, so that is how exactly a request can be told by its number: those that were under way when
    // the limit was met, then none for 500 sends, then the organisation's share again.
    let met = of_acme[0];
    let back = of_acme
        .iter()
        .copied()
        .find(|at| *at > met + 20)
        .expect("it is asked again");
    assert!(
        (met + 480..met + 520).contains(&back),
        "limited at {met}, asked again at {back}"
    );
    assert!(
        of_acme.iter().filter(|at| **at >= back).count() > 200,
        "{}",
        of_acme.len()
    );
}
