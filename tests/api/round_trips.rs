//! The number of network round trips for an answer.

use std::time::Duration;

use tokio::time::Instant;

use crate::proxied::{Counts, Proxied};

const UNKNOWN_DISCUSSION: &str = "01890000-0000-7000-8000-000000000000";

#[tokio::test]
async fn a_message_takes_one_round_trip_before_claude_is_called_and_two_redis_requests_in_all() {
    // Long enough that the work of a slow machine cannot pass for a second round trip.
    let delay = Duration::from_millis(100);
    let proxied = Proxied::with_delay(delay).await;
    let app = &proxied.app;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;

    // Warms the instance: connections, keys, the script in Redis.
    assert_eq!(ada.send(&discussion, "Warm up.").await.status, 201);
    proxied.reset_counts();

    let sent_at = Instant::now();
    assert_eq!(ada.send(&discussion, "Why?").await.status, 201);

    let call = app.claude.requests().pop().unwrap();
    let until_call = call.at.duration_since(sent_at);
    let round_trips = until_call.as_secs_f64() / delay.as_secs_f64();
    assert!(
        (1.0..2.0).contains(&round_trips),
        "Claude was called after {round_trips:.2} round trips"
    );
    assert_eq!(proxied.postgres.round_trips().query, 3);
    assert_eq!(proxied.postgres.round_trips().connect, 0);
    assert_eq!(proxied.redis.requests(), 2);

    let usual = Duration::from_millis(20);
    let own = until_call.saturating_sub(delay);
    eprintln!(
        "at {usual:?} per round trip, Claude would be called after {:?}",
        usual + own
    );
}

#[tokio::test]
async fn a_rejected_message_takes_one_more_request_to_refund_the_quota() {
    let proxied = Proxied::start().await;
    let ada = proxied.app.member("ada").await;
    let discussion = ada.discussion().await;
    assert_eq!(ada.send(&discussion, "Warm up.").await.status, 201);

    proxied.reset_counts();
    assert_eq!(ada.send(UNKNOWN_DISCUSSION, "Why?").await.status, 404);
    let expected = Counts {
        postgres: 1,
        redis: 2,
    };
    assert_eq!(proxied.counts(), expected);

    let first = ada.send_with_key(&discussion, "Why?", "k-1").await;
    assert_eq!(first.status, 201);

    proxied.reset_counts();
    let replayed = ada.send_with_key(&discussion, "Why?", "k-1").await;
    assert_eq!(replayed.header("idempotent-replayed"), "true");
    let expected = Counts {
        postgres: 2,
        redis: 2,
    };
    assert_eq!(proxied.counts(), expected);
}

#[tokio::test]
async fn a_message_over_the_quota_is_rejected_after_one_round_trip() {
    let proxied = Proxied::start().await;
    let guest = proxied.app.guest().await;
    let discussion = guest.discussion().await;
    for _ in 0..3 {
        guest.send(&discussion, "Why?").await;
    }

    proxied.reset_counts();
    let refused = guest.send(&discussion, "Why?").await;
    assert_eq!(refused.problem(), (429, "quota_exceeded"));
    let expected = Counts {
        postgres: 1,
        redis: 1,
    };
    assert_eq!(proxied.counts(), expected);
}
