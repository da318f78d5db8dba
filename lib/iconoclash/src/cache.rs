//! Values cached in Redis, which many requests read and few writes change.
//!
//! | value | key | TTL | invalidated by |
//! |---|---|---|---|
//! | session: user, token version, revoked sessions | `{c}:s:<user>` | 5 min | sign-out, new password, upgrade of a guest, suspension, change of plan |
//! | discussion counts | `{c}:n:<user>` | 1 min | creating and deleting a discussion |
//! | plan of a subject | `{rl}:pl:<subject>` | 10 min | change of plan; owned by `admission`, which verifies it in Postgres each time |
//!
//! Before a write the cached value is replaced by a tombstone. Until it expires, readers load from Postgres and do not
//! fill the cache, so a value that was read before the write cannot be stored after it. The tombstone outlives the
//! longest write and load together. Each value carries a keyed tag of its key and content: a forged or truncated value
//! is a miss.

pub(crate) mod single_flight;

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::Sha256;
use time::OffsetDateTime;
use upstash_redis_rs::Command;
use uuid::Uuid;

use crate::{
    app::App,
    clock::epoch_ms,
    http::{
        error::{Error, Result},
        request_log,
    },
};

const TOMBSTONE: &str = "-";
/// A write and a load take at most 5 seconds each, the deadline of a statement.
const TOMBSTONE_TTL: Duration = Duration::from_secs(15);
/// 16 bytes in hexadecimal.
const TAG_CHARS: usize = 32;

/// A cached value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The session state of a user, by id.
    Session(Uuid),
    /// The discussion counts of a user, by id.
    Counts(Uuid),
}

/// What Redis holds for a value.
enum Lookup<T> {
    Hit(T),
    Absent,
    /// A tombstone, or a value that is forged, truncated or outdated. The cache must not be filled now, because a
    /// running load may have read the state before a write.
    Unusable,
}

/// A value with the time at which it was read, as stored in Redis.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    /// In epoch milliseconds.
    at: i64,
    value: T,
}

impl Cached {
    fn key(self) -> String {
        match self {
            Self::Session(user) => format!("{{c}}:s:{user}"),
            Self::Counts(user) => format!("{{c}}:n:{user}"),
        }
    }

    fn ttl(self) -> Duration {
        match self {
            Self::Session(_) => Duration::from_secs(300),
            Self::Counts(_) => Duration::from_secs(60),
        }
    }

    /// The command that reads the value. Send it in a pipeline together with other reads.
    pub fn command(self) -> Command {
        Command::new("GET").arg(self.key()).idempotent()
    }

    /// Returns the value in Redis's answer if it is valid and `is_fresh` accepts it, else loads it from Postgres.
    pub(crate) async fn get_or_load<T: Serialize + DeserializeOwned>(
        self,
        app: &App,
        answer: Option<Value>,
        is_fresh: impl Fn(&T) -> bool,
        load: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        let lookup = self.lookup(app, answer, is_fresh);
        if !matches!(lookup, Lookup::Hit(_)) {
            request_log::add(|log| log.cache_misses += 1);
        }

        match lookup {
            Lookup::Hit(value) => Ok(value),
            Lookup::Absent => self.load_and_store(app, load).await,
            Lookup::Unusable => load().await,
        }
    }

    fn lookup<T: DeserializeOwned>(
        self,
        app: &App,
        answer: Option<Value>,
        is_fresh: impl Fn(&T) -> bool,
    ) -> Lookup<T> {
        let text = match answer {
            None | Some(Value::Null) => return Lookup::Absent,
            Some(Value::String(text)) if text != TOMBSTONE => text,
            Some(_) => return Lookup::Unusable,
        };

        match self.open(app, &text) {
            Some((value, age_ms)) if is_fresh(&value) => {
                request_log::add(|log| log.cache_hit(age_ms));
                Lookup::Hit(value)
            }
            _ => Lookup::Unusable,
        }
    }

    /// Loads the value once for all concurrent requests of this process.
    async fn load_and_store<T: Serialize + DeserializeOwned>(
        self,
        app: &App,
        load: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        let sealed = app
            .single_flight()
            .run(self.key(), async || {
                let text = self.seal(app, &load().await?)?;
                self.store(app, &text).await;
                Ok::<_, Error>(text)
            })
            .await?;

        let (value, _) = self
            .open(app, &sealed)
            .ok_or_else(|| Error::internal("a sealed value does not open"))?;
        Ok(value)
    }

    /// Stores a sealed value unless the key exists: a tombstone may have been put there since the lookup.
    async fn store(self, app: &App, text: &str) {
        let set = Command::new("SET")
            .arg(self.key())
            .arg(text)
            .arg("EX")
            .arg(self.ttl().as_secs())
            .arg("NX")
            .idempotent();

        // Without Redis nothing is cached, and the lookup has logged that.
        let Ok(redis) = app.redis() else { return };
        if let Err(error) = redis.exec::<Option<String>>(&set).await {
            request_log::degraded(&error);
        }
    }

    fn seal<T: Serialize>(self, app: &App, value: &T) -> Result<String> {
        let at = epoch_ms(app.now());
        let json = serde_json::to_string(&Envelope { at, value }).map_err(Error::internal)?;
        Ok(format!("{}{json}", self.tag(app, &json)?))
    }

    /// The value and its age in milliseconds, or `None` if the tag is not ours.
    fn open<T: DeserializeOwned>(self, app: &App, text: &str) -> Option<(T, i64)> {
        let (tag, json) = text.split_at_checked(TAG_CHARS)?;
        if self.tag(app, json).ok()? != tag {
            return None;
        }

        let Envelope::<T> { at, value } = serde_json::from_str(json).ok()?;
        Some((value, epoch_ms(app.now()) - at))
    }

    fn tag(self, app: &App, json: &str) -> Result<String> {
        let secret = app.config().credentials_key()?;
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
        for part in ["cache", &self.key(), json] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }

        Ok(hex::encode(&mac.finalize().into_bytes()[..TAG_CHARS / 2]))
    }
}

/// Invalidates values that the caller is about to change. `extra_commands` are sent in the same request, best effort.
///
/// The write may proceed whether or not Redis answers: invalidations that failed are stored in Postgres for
/// [`flush_pending_invalidations`].
pub async fn invalidate(app: &App, stale: &[Cached], extra_commands: Vec<Command>) -> Result<()> {
    let keys: Vec<String> = stale.iter().map(|cached| cached.key()).collect();
    let mut commands: Vec<Command> = keys.iter().map(|key| put_tombstone(key)).collect();
    commands.extend(extra_commands);

    let failure = match app.redis_pipeline(&commands).await {
        Ok(results) => match results.into_iter().find_map(Result::err) {
            None => return Ok(()),
            Some(refused) => refused.into(),
        },
        Err(error) => error,
    };

    request_log::degraded(&failure);
    app.db()?
        .execute(AddPendingInvalidations {
            keys: &keys,
            now: app.now(),
        })
        .await?;
    Ok(())
}

fn put_tombstone(key: &str) -> Command {
    Command::new("SET")
        .arg(key)
        .arg(TOMBSTONE)
        .arg("EX")
        .arg(TOMBSTONE_TTL.as_secs())
        .idempotent()
}

/// Sends the invalidations that could not reach Redis when their write happened. Returns how many it sent.
pub(crate) async fn flush_pending_invalidations(app: &App) -> Result<usize> {
    let keys = app.db()?.all(PendingInvalidations).await?;
    if keys.is_empty() {
        return Ok(0);
    }

    let commands: Vec<Command> = keys.iter().map(|key| put_tombstone(key)).collect();
    let results = app.redis_pipeline(&commands).await?;
    let sent: Vec<String> = keys
        .into_iter()
        .zip(results)
        .filter(|(_, result)| result.is_ok())
        .map(|(key, _)| key)
        .collect();

    app.db()?
        .execute(RemovePendingInvalidations { keys: &sent })
        .await?;
    Ok(sent.len())
}

pooled_postgres::sql! {
    write AddPendingInvalidations { keys: &[String], now: OffsetDateTime } -> () = "
        insert into stale_cache_keys (key, since)
        select unnest(:keys::text[]), :now
        on conflict (key) do update set since = excluded.since";

    read PendingInvalidations -> String = "
        select key from stale_cache_keys order by since limit 500";

    write RemovePendingInvalidations { keys: &[String] } -> () = "
        delete from stale_cache_keys where key = any(:keys::text[])";
}
