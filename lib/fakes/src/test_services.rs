//! The services of one test, and the settings that point an app at them.

use crate::{claude, mail, stripe, upstash};
use sqlx::{Connection, Executor, PgConnection};
use std::{collections::HashMap, time::Duration};
use uuid::Uuid;

const CLAUDE_KEY: &str = "sk-ant-test";

/// Services that one test has to itself.
pub struct TestServices {
    /// Claude's API.
    pub claude: claude::StandIn,
    /// Stripe's API.
    pub stripe: stripe::StandIn,
    /// The mail provider's API.
    pub mail: mail::StandIn,
    /// Redis behind Upstash's REST API, with a key space of its own.
    pub redis: upstash::Front,
    /// The name of the test's own database.
    pub database: String,
    /// The environment of an app on these services.
    pub settings: HashMap<String, String>,
}

impl TestServices {
    /// Starts all of them. The fake Claude waits `pace` between two pieces of a reply.
    pub async fn start(pace: Duration) -> Self {
        let redis = upstash::Front::isolated(needed("ICONOCLASH_TEST_REDIS").parse().unwrap())
            .await
            .unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let keys = vec![CLAUDE_KEY.to_owned()];
        let claude = claude::StandIn::start(claude::Config { listen, keys, pace })
            .await
            .unwrap();
        let stripe = stripe::StandIn::start(stripe::Config::default())
            .await
            .unwrap();
        let mail = mail::StandIn::start(listen).await.unwrap();
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
            // Tests are quicker than people; those of the burst set their own.
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
