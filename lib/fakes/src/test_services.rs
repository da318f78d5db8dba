//! The services of one test, and the settings that point an app at them.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose services do not start fails"
)]

use crate::{claude, mail, stripe, upstash};
use sqlx::{Connection, Executor, PgConnection};
use std::{collections::HashMap, time::Duration};
use uuid::Uuid;

const CLAUDE_KEY: &str = "sk-ant-test";

/// The services of one test, isolated from those of other tests.
pub struct TestServices {
    /// Claude's API.
    pub claude: claude::FakeClaude,
    /// Stripe's API.
    pub stripe: stripe::FakeStripe,
    /// The mail provider's API.
    pub mail: mail::FakeMail,
    /// Redis behind Upstash's REST API, with a database of its own.
    pub redis: upstash::RestProxy,
    /// The name of the test's own database.
    pub database: String,
    /// The environment of an app that uses these services.
    pub settings: HashMap<String, String>,
}

impl TestServices {
    /// Starts all services. The fake Claude waits `pace` between two words of a reply.
    pub async fn start(pace: Duration) -> Self {
        let redis = needed("ICONOCLASH_TEST_REDIS").parse().unwrap();
        let redis = upstash::RestProxy::isolated(redis).await.unwrap();

        let claude = claude::Config {
            keys: vec![CLAUDE_KEY.to_owned()],
            pace,
            ..claude::Config::default()
        };
        let claude = claude::FakeClaude::start(claude).await.unwrap();
        let stripe = stripe::FakeStripe::start(stripe::Config::default());
        let stripe = stripe.await.unwrap();
        let mail = mail::FakeMail::start("127.0.0.1:0".parse().unwrap());
        let mail = mail.await.unwrap();

        let database = own_database().await;
        let settings = [
            (
                "DATABASE_URL",
                format!("{}/{database}", needed("ICONOCLASH_TEST_PGBOUNCER")),
            ),
            ("UPSTASH_REDIS_REST_URL", redis.url().to_owned()),
            ("UPSTASH_REDIS_REST_TOKEN", redis.token().to_owned()),
            ("ANTHROPIC_API_KEYS", format!("test={CLAUDE_KEY}")),
            ("ANTHROPIC_BASE_URL", claude.url()),
            ("STRIPE_SECRET_KEY", "sk_test_local".to_owned()),
            ("STRIPE_WEBHOOK_SECRET", "whsec_local".to_owned()),
            ("STRIPE_PRICE_PRO", stripe::PRICE.to_owned()),
            ("STRIPE_BASE_URL", stripe.url()),
            ("RESEND_API_KEY", mail::KEY.to_owned()),
            ("RESEND_BASE_URL", mail.url()),
            ("MAIL_FROM", "Iconoclash <hello@iconoclash.test>".to_owned()),
            ("ALERT_EMAIL_TO", "ops@iconoclash.test".to_owned()),
            (
                "JWT_KEYS",
                "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned(),
            ),
            (
                "CREDENTIALS_KEY",
                "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=".to_owned(),
            ),
            ("CRON_SECRET", "a-cron-secret-of-32-characters!!".to_owned()),
            // Tests send faster than people. A test of the burst sets its own limit.
            ("BURST_PER_MINUTE", "6000".to_owned()),
            ("PUBLIC_URL", "https://iconoclash.test".to_owned()),
            (
                "CORS_ALLOWED_ORIGINS",
                "https://app.iconoclash.test".to_owned(),
            ),
        ];
        let settings = settings
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        Self {
            claude,
            stripe,
            mail,
            redis,
            database,
            settings,
        }
    }
}

/// A setting of the test run, such as the address of a service that `cargo local test` started.
pub fn needed(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `cargo local test`"))
}

/// Creates a database from the migrated and seeded template.
async fn own_database() -> String {
    let name = format!("t_{}", Uuid::now_v7().simple());
    let server = format!("{}/postgres", needed("ICONOCLASH_TEST_POSTGRES"));
    let mut connection = PgConnection::connect(&server).await.unwrap();

    let create = format!("create database {name} template iconoclash_template");
    connection
        .execute(sqlx::AssertSqlSafe(create))
        .await
        .unwrap();

    name
}
