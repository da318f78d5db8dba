//! An app whose way to Postgres and Redis can be counted, delayed and interrupted.

use std::{net::SocketAddr, time::Duration};

use iconoclash_fakes::{proxy, test_services::needed};

use crate::harness::TestApp;

/// An app that reaches its stores through proxies.
pub(crate) struct Proxied {
    pub(crate) app: TestApp,
    pub(crate) postgres: proxy::Tcp,
    pub(crate) redis: proxy::Http,
    /// A second instance, which uses the same stores without the proxies.
    pub(crate) second_instance: TestApp,
}

impl Proxied {
    pub(crate) async fn start() -> Self {
        Self::with_delay(Duration::ZERO).await
    }

    /// With this delay for each round trip.
    pub(crate) async fn with_delay(delay: Duration) -> Self {
        let second_instance = TestApp::start().await;

        let bouncer = needed("ICONOCLASH_TEST_PGBOUNCER");
        let (scheme_and_user, host) = bouncer.rsplit_once('@').unwrap();
        let host: SocketAddr = host.parse().unwrap();
        let postgres = proxy::Tcp::start(host, delay).await.unwrap();
        let redis = proxy::Http::start(second_instance.redis.url(), delay)
            .await
            .unwrap();

        let database = &second_instance.database;
        let address = postgres.addr();
        let database_url = format!("{scheme_and_user}@{address}/{database}?sslmode=disable");
        let redis_url = redis.url();
        let app = TestApp::with(&[
            ("DATABASE_URL", &database_url),
            ("UPSTASH_REDIS_REST_URL", &redis_url),
            ("UPSTASH_REDIS_REST_TOKEN", second_instance.redis.token()),
        ])
        .await;

        Self {
            app,
            postgres,
            redis,
            second_instance,
        }
    }

    /// Starts counting from zero.
    pub(crate) fn reset_counts(&self) {
        self.postgres.reset();
        self.redis.reset();
    }

    /// Statements sent to Postgres and requests sent to Redis since the last reset.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            postgres: self.postgres.round_trips().query,
            redis: self.redis.requests(),
        }
    }
}

/// Round trips to each store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) postgres: u64,
    pub(crate) redis: u64,
}
