//! What every handler can reach: settings, clients, the clock. Each client is made by the first request that needs it,
//! so that a function without a database still answers its health.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use time::OffsetDateTime;
use uuid::{ContextV7, Timestamp, Uuid};

use claude::Pool;
use pooled_postgres::Db;
use stripe::Stripe;

use secrecy::ExposeSecret;

use crate::{
    api_keys::sync_state::SyncState,
    cache::single_flight::SingleFlight,
    clock::Clock,
    config::Config,
    http::error::{Error, Result},
    identity::token::Tokens,
    redis::Redis,
};

/// Time until Redis counts as unreachable.
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
    /// How far this process follows what others know of the keys.
    key_sync: SyncState,
    stripe: OnceLock<Stripe>,
    tokens: OnceLock<Tokens>,
    /// Loads of cached values that are under way in this process.
    single_flight: SingleFlight,
}

impl App {
    /// The app of a process that runs for real.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn from_env() -> Self {
        Self::new(Config::from_env(), Arc::new(OffsetDateTime::now_utc))
    }

    /// An app with its own settings and clock.
    pub fn new(config: Config, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            config,
            clock,
            ids: Mutex::new(ContextV7::new()),
            http: OnceLock::new(),
            db: OnceLock::new(),
            redis: OnceLock::new(),
            claude: OnceLock::new(),
            stripe: OnceLock::new(),
            key_sync: SyncState::default(),
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

    /// A UUIDv7 of now, greater than those made before it in this process.
    pub fn new_id(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        Uuid::new_v7(Timestamp::from_unix(&self.0.ids, seconds, now.nanosecond()))
    }

    /// Postgres, through the pooler.
    pub fn db(&self) -> Result<&Db> {
        once(&self.0.db, || {
            let database = self.0.config.database.clone()?;
            let url = database.url.expose_secret();
            Ok(Db::named("iconoclash", url, database.pool_size)?)
        })
    }

    /// Redis, over REST.
    pub fn redis(&self) -> Result<&Redis> {
        once(&self.0.redis, || {
            let redis = self.0.config.redis.clone()?;
            let client = upstash_redis_rs::Redis::new(
                &redis.url,
                redis.token.expose_secret(),
                self.http()?.clone(),
            );
            Ok(Redis::new(
                client
                    .map_err(Error::unavailable)?
                    .with_deadline(REDIS_DEADLINE),
            ))
        })
    }

    /// Loads of cached values that are under way in this process.
    pub(crate) fn single_flight(&self) -> &SingleFlight {
        &self.0.single_flight
    }

    /// Claude, by the keys that this process knows.
    pub fn claude(&self) -> Result<&Pool> {
        once(&self.0.claude, || {
            let claude = self.0.config.claude.clone()?;
            let clock = Arc::clone(&self.0.clock);
            let http = self.http()?.clone();
            Ok(Pool::new(
                http,
                claude.base_url,
                claude.deadlines,
                claude.keys,
                move || clock(),
            ))
        })
    }

    /// A named step at which a test may stop the process. Does nothing in release builds.
    pub(crate) async fn crash_point(&self, name: &str) {
        let stops = self.0.config.freeze.as_ref();
        if cfg!(debug_assertions) && stops.is_some_and(|freeze| freeze.stops_at(name)) {
            std::future::pending::<()>().await;
        }
    }

    /// Stripe.
    pub fn stripe(&self) -> Result<&Stripe> {
        once(&self.0.stripe, || {
            let stripe = self.0.config.stripe.clone()?;
            Ok(Stripe::new(
                self.http()?.clone(),
                stripe.base_url,
                stripe.key,
            ))
        })
    }

    /// How far this process follows what others know of the keys.
    pub(crate) fn key_sync(&self) -> &SyncState {
        &self.0.key_sync
    }

    /// The keys of session tokens.
    pub fn tokens(&self) -> Result<&Tokens> {
        once(&self.0.tokens, || {
            Tokens::new(&self.0.config.public_url, &self.0.config.jwt_keys.clone()?)
        })
    }

    /// The one HTTP client, whose connections stay warm between requests.
    #[expect(clippy::disallowed_methods, reason = "this is the one client")]
    pub(crate) fn http(&self) -> Result<&reqwest::Client> {
        once(&self.0.http, || {
            let client = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .build();
            client.map_err(|error| Error::Internal(error.into()))
        })
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

/// Two requests may both make the first client; one of them is kept.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}
