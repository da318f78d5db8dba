//! What Redis spares Postgres: values that many requests read and few writes change.
//!
//! | value | key | kept | dropped by |
//! |---|---|---|---|
//! | session: user, token version, revoked sessions | `{c}:s:<user>` | 5 min | sign-out, new password, upgrade of a guest, suspension, change of plan |
//! | discussion counts | `{c}:n:<user>` | 1 min | beginning and deleting a discussion |
//! | plan of a subject | `{rl}:pl:<subject>` | 10 min | change of plan; belongs to `admission`, and Postgres is asked each time |
//!
//! A write first puts a tombstone in the value's place. While it lies there readers load from Postgres and keep
//! nothing, so that what was read before the write cannot be kept after it; it lies there for longer than a write and
//! a load can take together. A value carries a tag of its key and content: what somebody else put there, or half of a
//! value, is a miss.

pub(crate) mod single_flight;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::Sha256;
use std::time::Duration;
use upstash_redis_rs::Command;
use uuid::Uuid;

use pooled_postgres::sql_positional;

use crate::{
    app::App,
    clock::epoch_ms,
    http::{
        error::{Error, Result},
        request_log,
    },
};

const TOMBSTONE: &str = "-";
/// A statement gives up after 5 seconds, and so does a load.
const TOMBSTONE_LIES: Duration = Duration::from_secs(15);

/// A value that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// A user, by id, as a live session shows it.
    Session(Uuid),
    /// How many discussions a user has.
    Counts(Uuid),
}

impl Cached {
    fn key(self) -> String {
        match self {
            Self::Session(user) => format!("{{c}}:s:{user}"),
            Self::Counts(user) => format!("{{c}}:n:{user}"),
        }
    }

    fn kept(self) -> Duration {
        match self {
            Self::Session(_) => Duration::from_secs(300),
            Self::Counts(_) => Duration::from_secs(60),
        }
    }

    /// Asks Redis for it; a pipeline sends it together with other reads.
    pub fn command(self) -> Command {
        Command::new("GET").arg(self.key()).idempotent()
    }

    /// The value that Redis answered with, or else as it is in Postgres now. `fresh` says whether a value still counts.
    pub async fn or_load<T: Serialize + DeserializeOwned>(
        self,
        app: &App,
        found: Option<Value>,
        fresh: impl Fn(&T) -> bool,
        load: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        let found = match found {
            None | Some(Value::Null) => Found::Nothing,
            Some(Value::String(text)) if text == TOMBSTONE => Found::Unusable,
            Some(Value::String(text)) => match self.open(app, &text) {
                Some((value, age_ms)) if fresh(&value) => {
                    request_log::add(|log| log.cache_hit(age_ms));
                    return Ok(value);
                }
                _ => Found::Unusable,
            },
            Some(_) => Found::Unusable,
        };
        request_log::add(|log| log.cache_misses += 1);
        match found {
            // A tombstone, or a value that nobody may keep: others' loads may be older than the write that it tells of.
            Found::Unusable => load().await,
            Found::Nothing => {
                let loaded = app.single_flight().run(self.key(), async || {
                    let text = self.seal(app, &load().await?)?;
                    self.keep(app, &text).await;
                    Ok::<_, Error>(text)
                });
                let (value, _) = self
                    .open(app, &loaded.await?)
                    .ok_or_else(|| Error::Internal("a sealed value does not open".into()))?;
                Ok(value)
            }
        }
    }

    async fn keep(self, app: &App, text: &str) {
        let keep = Command::new("SET")
            .arg(self.key())
            .arg(text)
            .arg("EX")
            .arg(self.kept().as_secs())
            .arg("NX");
        if let Ok(redis) = app.redis()
            && let Err(cause) = redis.exec::<Option<String>>(&keep.idempotent()).await
        {
            request_log::degraded(&cause);
        }
    }

    fn seal<T: Serialize>(self, app: &App, value: &T) -> Result<String> {
        let json = serde_json::to_string(&Kept {
            at: epoch_ms(app.now()),
            value,
        })
        .map_err(|error| Error::Internal(error.into()))?;
        Ok(format!("{}{json}", self.tag(app, &json)?))
    }

    fn open<T: DeserializeOwned>(self, app: &App, text: &str) -> Option<(T, i64)> {
        let (tag, json) = text.split_at_checked(TAG_CHARS)?;
        if self.tag(app, json).ok()? != tag {
            return None;
        }
        let Kept::<T> { at, value } = serde_json::from_str(json).ok()?;
        Some((value, epoch_ms(app.now()) - at))
    }

    fn tag(self, app: &App, json: &str) -> Result<String> {
        let key = app.config().credentials_key.clone()?;
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
        for part in ["cache", &self.key(), json] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        Ok(mac
            .finalize()
            .into_bytes()
            .iter()
            .take(TAG_CHARS / 2)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

const TAG_CHARS: usize = 32;

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    /// When it was read, in epoch milliseconds.
    at: i64,
    value: T,
}

enum Found {
    Nothing,
    Unusable,
}

/// Drops values that the caller is about to change. Whether or not Redis can be told the write may follow: what it
/// could not be told is written down for [`tell_stale`]. `beside` goes along in the same request, best effort.
pub async fn forget(app: &App, stale: &[Cached], beside: Vec<Command>) -> Result<()> {
    let keys: Vec<String> = stale.iter().map(|cached| cached.key()).collect();
    let mut commands: Vec<Command> = keys.iter().map(|key| bury(key)).collect();
    commands.extend(beside);
    let told = async { Ok::<_, Error>(app.redis()?.pipeline(&commands).await?) };
    match told.await {
        Ok(results) if results.iter().all(Result::is_ok) => Ok(()),
        failed => {
            let cause = match failed {
                Err(error) => error.cause(),
                Ok(_) => "a command was refused".to_owned(),
            };
            request_log::add(|log| log.degraded = Some(cause));
            app.db()?
                .old_execute(&NOTE_STALE, &[&keys, &app.now()])
                .await?;
            Ok(())
        }
    }
}

fn bury(key: &str) -> Command {
    Command::new("SET")
        .arg(key)
        .arg(TOMBSTONE)
        .arg("EX")
        .arg(TOMBSTONE_LIES.as_secs())
        .idempotent()
}

/// Tells Redis of writes that it could not be told of when they happened; says of how many values.
pub async fn tell_stale(app: &App) -> Result<usize> {
    let keys = app.db()?.old_all(&STALE, &[]).await?;
    if keys.is_empty() {
        return Ok(0);
    }
    let commands: Vec<Command> = keys.iter().map(|key| bury(key)).collect();
    let results = app.redis()?.pipeline(&commands).await?;
    let told: Vec<String> = keys
        .into_iter()
        .zip(results)
        .filter(|(_, told)| told.is_ok())
        .map(|(key, _)| key)
        .collect();
    app.db()?.old_execute(&FORGET_STALE, &[&told]).await?;
    Ok(told.len())
}

sql_positional! {
    write NOTE_STALE(TEXT_ARRAY, TIMESTAMPTZ) -> () = "
        insert into stale_cache_keys (key, since) select unnest($1::text[]), $2
        on conflict (key) do update set since = excluded.since";

    read STALE() -> String = "select key from stale_cache_keys order by since limit 500";

    write FORGET_STALE(TEXT_ARRAY) -> () = "delete from stale_cache_keys where key = any($1::text[])";
}
