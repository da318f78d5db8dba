//! The shared state of a process: settings, clients and the clock.
//!
//! Each client is created by the first request that needs it, so a function without a database still answers its
//! health check.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use claude::Pool;
use pooled_postgres::Db;
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use stripe::Stripe;
use time::OffsetDateTime;
use upstash_redis_rs::{Command, Results};
use uuid::{ContextV7, Timestamp, Uuid};

use crate::{
    api_keys::sync_state::SyncState,
    cache::single_flight::SingleFlight,
    clock::Clock,
    config::Config,
    http::error::{Error, Result},
    identity::token::Tokens,
    redis::{self, Redis},
};

/// Time after which Redis counts as unreachable.
const REDIS_DEADLINE: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The process's shared state; cloning is cheap.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    config: Config,
    clock: Clock,
    /// Keeps ids of one millisecond in order: a reply sorts after the message that it answers.
    ids: Mutex<ContextV7>,
    http: OnceLock<reqwest::Client>,
    db: OnceLock<Db>,
    redis: OnceLock<Redis>,
    claude: OnceLock<Pool>,
    key_sync: SyncState,
    stripe: OnceLock<Stripe>,
    tokens: OnceLock<Tokens>,
    single_flight: SingleFlight,
}

impl App {
    /// An app with the settings of the environment and the system's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn from_env() -> Self {
        Self::new(Config::from_env(), Arc::new(OffsetDateTime::now_utc))
    }

    /// An app with these settings and this clock.
    pub fn new(config: Config, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            config,
            clock,
            ids: Mutex::new(ContextV7::new()),
            http: OnceLock::new(),
            db: OnceLock::new(),
            redis: OnceLock::new(),
            claude: OnceLock::new(),
            key_sync: SyncState::default(),
            stripe: OnceLock::new(),
            tokens: OnceLock::new(),
            single_flight: SingleFlight::default(),
        }))
    }

    /// All settings.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The time, to the microsecond that Postgres stores.
    pub fn now(&self) -> OffsetDateTime {
        let now = (self.0.clock)();
        now.replace_microsecond(now.microsecond())
            .expect("a time's own microsecond is in range")
    }

    /// A UUIDv7 of now, greater than every earlier one of this process.
    pub fn new_id(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        Uuid::new_v7(Timestamp::from_unix(&self.0.ids, seconds, now.nanosecond()))
    }

    /// Postgres, through the pooler.
    pub fn db(&self) -> Result<&Db> {
        get_or_create(&self.0.db, || {
            let settings = self.config().database()?;
            Ok(Db::named(
                "iconoclash",
                settings.url.expose_secret(),
                settings.pool_size,
            )?)
        })
    }

    /// Redis, over REST.
    pub fn redis(&self) -> Result<&Redis> {
        get_or_create(&self.0.redis, || {
            let settings = self.config().redis()?;
            let token = settings.token.expose_secret();
            let http = self.http()?.clone();

            let client = upstash_redis_rs::Redis::new(&settings.url, token, http)
                .map_err(Error::unavailable)?;
            Ok(Redis::new(client.with_deadline(REDIS_DEADLINE)))
        })
    }

    /// Runs one Redis command. A missing setting is an error of Redis, too, so that the caller has one fallback.
    pub(crate) async fn redis_exec<T: DeserializeOwned>(
        &self,
        command: &Command,
    ) -> Result<T, redis::Error> {
        self.configured_redis()?.exec(command).await
    }

    /// Runs Redis commands in order in one request, with the errors of [`Self::redis_exec`].
    pub(crate) async fn redis_pipeline(
        &self,
        commands: &[Command],
    ) -> Result<Results, redis::Error> {
        self.configured_redis()?.pipeline(commands).await
    }

    fn configured_redis(&self) -> Result<&Redis, redis::Error> {
        self.redis()
            .map_err(|error| redis::Error::NotConfigured(error.cause()))
    }

    /// Loads of cached values that are running in this process.
    pub(crate) fn single_flight(&self) -> &SingleFlight {
        &self.0.single_flight
    }

    /// Claude, with the API keys that this process has loaded.
    pub fn claude(&self) -> Result<&Pool> {
        get_or_create(&self.0.claude, || {
            let settings = self.config().claude()?.clone();
            let clock = Arc::clone(&self.0.clock);

            Ok(Pool::new(
                http_client,
                settings.base_url,
                settings.deadlines,
                settings.keys,
                move || clock(),
            ))
        })
    }

    /// How far this process has synchronized its Claude keys with Postgres and Redis.
    pub(crate) fn key_sync(&self) -> &SyncState {
        &self.0.key_sync
    }

    /// Stripe.
    pub fn stripe(&self) -> Result<&Stripe> {
        get_or_create(&self.0.stripe, || {
            let settings = self.config().stripe()?.clone();
            let http = self.http()?.clone();
            Ok(Stripe::new(http, settings.base_url, settings.key))
        })
    }

    /// The keys of session tokens.
    pub fn tokens(&self) -> Result<&Tokens> {
        get_or_create(&self.0.tokens, || {
            Tokens::new(&self.config().public_url, self.config().jwt_keys()?)
        })
    }

    /// The HTTP client of the process, which keeps connections warm between requests.
    ///
    /// Claude has clients of its own, because its replies need more than one connection.
    pub(crate) fn http(&self) -> Result<&reqwest::Client> {
        get_or_create(&self.0.http, || {
            http_client().build().map_err(Error::internal)
        })
    }

    /// A named crash point: a test may stop the process here. Does nothing in release builds.
    pub(crate) async fn crash_point(&self, name: &str) {
        let trigger = self.config().crash_trigger.as_ref();
        if cfg!(debug_assertions) && trigger.is_some_and(|trigger| trigger.fires_at(name)) {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "every client of the process is made here"
)]
fn http_client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
}

/// Concurrent first calls may both create a client; one of the two is kept.
fn get_or_create<T>(cell: &OnceLock<T>, create: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(existing) = cell.get() {
        return Ok(existing);
    }
    let created = create()?;
    Ok(cell.get_or_init(|| created))
}
