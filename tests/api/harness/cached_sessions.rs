//! After every write of an actor, each cached session must show its user as Postgres has it.
//!
//! The app caches in Redis what a session shows: a write that changes it must first invalidate the cached value. The
//! check reads the test's own Redis, so it finds nothing where a test points its app at a proxy of another test app.

use std::{any::type_name_of_val, collections::BTreeMap};

use iconoclash::identity::session_cache;
use serde_json::Value;
use upstash_redis_rs::Command;

use super::TestApp;

/// The key of a session is this prefix and the user's id.
const PREFIX: &str = "{c}:s:";
/// A value is a tag of this length, then JSON.
const TAG_CHARS: usize = 32;
/// The fields that change after sign-up.
const FIELDS: [&str; 4] = ["email", "name", "plan", "role"];

/// A cached session that differs from its user.
struct Stale {
    key: String,
    text: String,
    cached: Value,
    stored: Option<Value>,
}

impl TestApp {
    /// Fails if a cached session differs from its user after `write`.
    pub(super) async fn check_cached_sessions(&self, write: &str) {
        let stale = self.stale_sessions().await;
        let excused = self.excused.lock().unwrap();

        if let Some(stale) = stale.iter().find(|stale| !excused.contains(&stale.text)) {
            panic!(
                "after {write} the cached session {} shows {}, but Postgres has {}: \
                 call `{}` before the write",
                stale.key,
                stale.cached,
                stale
                    .stored
                    .as_ref()
                    .map_or("no active user".to_owned(), Value::to_string),
                type_name_of_val(&session_cache::invalidate),
            );
        }
    }

    /// Excuses the sessions that are stale now, because a test has changed users past the app.
    pub(super) async fn excuse_stale_sessions(&self) {
        let stale = self.stale_sessions().await;
        let texts = stale.into_iter().map(|stale| stale.text);
        self.excused.lock().unwrap().extend(texts);
    }

    async fn stale_sessions(&self) -> Vec<Stale> {
        let sessions = self.cached_sessions().await;
        if sessions.is_empty() {
            return Vec::new();
        }

        let users = self.stored_users().await;
        let mut stale: Vec<Stale> = sessions
            .into_iter()
            .filter_map(|(key, text)| {
                let cached = shown(&text)?;
                let stored = users.get(key.strip_prefix(PREFIX)?).cloned();
                (stored.as_ref() != Some(&cached)).then_some(Stale {
                    key,
                    text,
                    cached,
                    stored,
                })
            })
            .collect();

        if !stale.is_empty() {
            // A concurrent request may have invalidated the value since it was read, and then changed the user.
            let sessions = self.cached_sessions().await;
            // Invalidations that did not reach Redis wait in Postgres.
            let pending = self.column("select key from stale_cache_keys").await;
            stale.retain(|stale| {
                sessions.get(&stale.key) == Some(&stale.text) && !pending.contains(&stale.key)
            });
        }
        stale
    }

    /// The cached sessions by key, without tombstones.
    async fn cached_sessions(&self) -> BTreeMap<String, String> {
        let list = Command::new("KEYS").arg(format!("{PREFIX}*"));
        let keys: Vec<String> = self.redis_client.exec(&list).await.unwrap();
        if keys.is_empty() {
            return BTreeMap::new();
        }

        let read = Command::new("MGET").args(keys.iter().map(String::as_str));
        let values: Vec<Option<String>> = self.redis_client.exec(&read).await.unwrap();
        keys.into_iter()
            .zip(values)
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    /// The users who are not suspended, by id.
    async fn stored_users(&self) -> BTreeMap<String, Value> {
        let rows = self
            .rows(
                "select id::text,
                   json_build_object('email', email, 'name', name, 'plan', plan, 'role', role)::text
                 from users where suspended_at is null",
            )
            .await;
        rows.into_iter()
            .map(|row| (row[0].clone(), serde_json::from_str(&row[1]).unwrap()))
            .collect()
    }
}

/// What a cached session shows, unless it is a tombstone or a value that the app rejects.
fn shown(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text.get(TAG_CHARS..)?).ok()?;
    let profile = value["value"]["profile"].as_object()?;
    let fields = FIELDS.map(|field| (field.to_owned(), profile[field].clone()));
    Some(Value::Object(fields.into_iter().collect()))
}
