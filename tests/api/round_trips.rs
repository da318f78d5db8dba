//! How often the network is crossed on the way to an answer.

use iconoclash_fakes::proxy;
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

use crate::harness::TestApp;
use iconoclash_fakes::test_services::needed;

/// An app that reaches Postgres and Redis through proxies that count and delay.
struct Measured {
    app: TestApp,
    postgres: proxy::Tcp,
    redis: proxy::Http,
    /// Whose database and Redis stand behind the proxies.
    _behind: TestApp,
}

impl Measured {
    async fn start(delay: Duration) -> Self {
        let bouncer = needed("ICONOCLASH_TEST_PGBOUNCER");
        let (scheme_and_user, host) = bouncer.rsplit_once('@').unwrap();
        let postgres = proxy::Tcp::start(host.parse::<SocketAddr>().unwrap(), delay)
            .await
            .unwrap();
        let plain = TestApp::start().await;
        let redis = proxy::Http::start(plain.redis.url(), delay).await.unwrap();
        let (database, url) = (&plain.database, redis.url());
        let database_url = format!(
            "{scheme_and_user}@{}/{database}?sslmode=disable",
            postgres.addr()
        );
        let settings = [
            ("DATABASE_URL", database_url.as_str()),
            ("UPSTASH_REDIS_REST_URL", &url),
            ("UPSTASH_REDIS_REST_TOKEN", plain.redis.token()),
        ];
        let app = TestApp::with(&settings).await;
        Self {
            app,
            postgres,
            redis,
            _behind: plain,
        }
    }
}

#[tokio::test]
async fn a_message_crosses_the_network_once_before_claude_is_asked_and_is_settled_once() {
    // Long enough that what this machine does in between cannot pass for a second crossing.
    let delay = Duration::from_millis(100);
    let Measured {
        app,
        postgres,
        redis,
        _behind,
    } = Measured::start(delay).await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    // Warms the instance: connections, keys, the script in Redis.
    assert_eq!(ada.send(&discussion, "Warm up.").await.status, 201);
    postgres.reset();
    redis.reset();
    let asked = Instant::now();
    let answer = ada.send(&discussion, "Why?").await;
    assert_eq!(answer.status, 201);
    let request = app.claude.requests().pop().unwrap();
    let crossings = request.at.duration_since(asked).as_secs_f64() / delay.as_secs_f64();
    assert!(
        (1.0..2.0).contains(&crossings),
        "Claude was asked after {crossings:.2} crossings"
    );
    let (flights, requests) = (postgres.round_trips(), redis.requests());
    assert_eq!((flights.query, flights.connect, requests), (3, 0, 2));
    let usual = Duration::from_millis(20);
    let own = request.at.duration_since(asked).saturating_sub(delay);
    eprintln!(
        "at {usual:?} a crossing, Claude would be asked after {:?}",
        usual + own
    );
}

#[tokio::test]
async fn a_refused_message_crosses_the_network_once_more_to_give_the_message_back() {
    let Measured {
        app,
        postgres,
        redis,
        _behind,
    } = Measured::start(Duration::ZERO).await;
    let ada = app.member("ada").await;
    let nowhere = "01890000-0000-7000-8000-000000000000";
    let discussion = ada.discussion().await;
    assert_eq!(ada.send(&discussion, "Warm up.").await.status, 201);
    postgres.reset();
    redis.reset();
    assert_eq!(ada.send(nowhere, "Why?").await.status, 404);
    assert_eq!((postgres.round_trips().query, redis.requests()), (1, 2));

    assert_eq!(
        ada.send_with_key(&discussion, "Why?", "k-1").await.status,
        201
    );
    postgres.reset();
    redis.reset();
    assert_eq!(
        ada.send_with_key(&discussion, "Why?", "k-1")
            .await
            .header("idempotent-replayed"),
        "true"
    );
    assert_eq!((postgres.round_trips().query, redis.requests()), (2, 2));
}

#[tokio::test]
async fn a_message_over_the_quota_is_refused_in_one_crossing() {
    let Measured {
        app,
        postgres,
        redis,
        _behind,
    } = Measured::start(Duration::ZERO).await;
    let other = app.guest().await;
    let elsewhere = other.discussion().await;
    for _ in 0..3 {
        other.send(&elsewhere, "Why?").await;
    }
    postgres.reset();
    redis.reset();
    assert_eq!(
        other.send(&elsewhere, "Why?").await.problem(),
        (429, "quota_exceeded")
    );
    assert_eq!((postgres.round_trips().query, redis.requests()), (1, 1));
}
