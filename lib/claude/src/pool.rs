//! A pool of keys: which key a conversation gets, and what past calls say about each key.

mod state;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::clock::{Clock, epoch_ms, from_epoch_ms};
use crate::connections::Connections;
use crate::cooldown::Cooldown;
use crate::{ApiKey, Deadlines, Error, Limits, Phase, Reply};

use self::state::{State, model_cooldown_key};

/// A key with at least this share of its limits left keeps its conversations, however much others have left.
const ENOUGH_CAPACITY: f64 = 0.25;

/// All keys, and what is known about each.
pub struct Pool {
    pub(crate) connections: Connections,
    pub(crate) base_url: String,
    pub(crate) deadlines: Deadlines,
    clock: Clock,
    state: Mutex<State>,
    changed: Notify,
}

/// The results of a key's last calls.
#[derive(Clone, Debug, Default)]
pub struct KeyOutcome {
    /// When a reply last started.
    pub ok_at: Option<OffsetDateTime>,
    /// The last error, and its time.
    pub error: Option<(String, OffsetDateTime)>,
}

/// A problem of a key or an organisation that only an operator can solve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The label of the key, or the name of the organisation.
    pub subject: String,
    /// The problem.
    pub kind: AlarmKind,
    /// The provider's error.
    pub cause: String,
}

/// The problem of an [`Alarm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmKind {
    /// The provider refuses the key.
    KeyRefused,
    /// The organisation has reached its spend limit of the month.
    SpendLimitReached,
}

impl AlarmKind {
    /// A stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyRefused => "refused",
            Self::SpendLimitReached => "spent",
        }
    }

    /// The problem as a sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::KeyRefused => "A Claude key was refused and is out of rotation.",
            Self::SpendLimitReached => {
                "An organisation has reached its spend limit of the month at the provider."
            }
        }
    }
}

/// Whether a key gets calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyHealth {
    /// It gets calls.
    Ready,
    /// It or its organisation gets no calls until then.
    Cooling(OffsetDateTime),
}

/// Keys and organisations that one reply has tried in vain.
#[derive(Default)]
pub(crate) struct Tried {
    pub(crate) labels: HashSet<String>,
    pub(crate) organisations: HashSet<String>,
}

impl Tried {
    fn contains(&self, key: &ApiKey) -> bool {
        self.labels.contains(&key.label)
            || self
                .organisations
                .contains(&key.organisation_cooldown_key())
    }
}

impl Pool {
    /// A pool of these keys. `clock` is the source of the current time.
    ///
    /// `http` prepares an HTTP client. It is called again when the replies under way need another connection. If
    /// `base_url` is `https`, the server has to speak HTTP/2.
    pub fn new(
        http: impl Fn() -> reqwest::ClientBuilder + Send + Sync + 'static,
        base_url: String,
        deadlines: Deadlines,
        keys: Vec<ApiKey>,
        clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static,
    ) -> Self {
        let pool = Self {
            connections: Connections::new(http, &base_url),
            base_url,
            deadlines,
            clock: Arc::new(clock),
            state: Mutex::default(),
            changed: Notify::new(),
        };
        pool.replace_keys(keys);
        pool
    }

    /// The same pool with another limit of replies that share an HTTP/2 connection. The server must grant as many.
    pub fn with_streams_per_connection(self, max_streams: usize) -> Self {
        Self {
            connections: self.connections.with_max_streams(max_streams),
            ..self
        }
    }

    /// Replaces the keys. Running calls keep theirs, and keys that stay keep what is known about them.
    pub fn replace_keys(&self, keys: Vec<ApiKey>) {
        self.state().keys = keys.into_iter().map(Arc::new).collect();
    }

    /// The label of the key that a conversation's next call would try first; `none` if there is no such key.
    pub fn likely_key(&self, conversation: Uuid) -> String {
        match self.choose(conversation, &Tried::default()) {
            Some(key) => key.label.clone(),
            None => "none".to_owned(),
        }
    }

    /// The health of each key, by label.
    pub fn health(&self) -> Vec<(String, KeyHealth)> {
        let now_ms = self.now_ms();
        let state = self.state();

        let health = |key: &ApiKey| match state.cooldown_end(key, now_ms) {
            None => KeyHealth::Ready,
            Some(until_ms) => KeyHealth::Cooling(from_epoch_ms(until_ms)),
        };
        state
            .keys
            .iter()
            .map(|key| (key.label.clone(), health(key)))
            .collect()
    }

    /// The cooldown keys that keep a key from getting calls.
    pub fn cooldown_keys(key: &ApiKey) -> [String; 2] {
        [key.cooldown_key(), key.organisation_cooldown_key()]
    }

    /// Cooldowns that the other instances do not know yet.
    pub fn unpublished(&self) -> Vec<Cooldown> {
        let now_ms = self.now_ms();
        self.state().cooldowns.unpublished(now_ms)
    }

    /// Takes over the `shared` cooldowns of all instances, after `published` was sent to them.
    pub fn merge(&self, published: &[Cooldown], shared: Vec<Cooldown>) {
        self.state().cooldowns.merge(published, shared);
    }

    /// Waits until a failure may have started a cooldown.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The outcomes of each key's calls since the last call of this function, by label.
    pub fn take_outcomes(&self) -> HashMap<String, KeyOutcome> {
        std::mem::take(&mut self.state().outcomes)
    }

    /// The alarms since the last call of this function. The caller notifies the operators.
    pub fn take_alarms(&self) -> Vec<Alarm> {
        std::mem::take(&mut self.state().alarms)
    }

    /// Records that a reply broke off after its start. Such a reply is not retried, but later calls avoid its key.
    pub fn record_broken_stream(&self, reply: &Reply, error: &Error) {
        // The length of a reply says nothing about its key.
        let is_too_long = matches!(
            error,
            Error::Timeout {
                phase: Phase::Whole
            }
        );
        if !is_too_long {
            self.record_failure(reply.key(), reply.asked_model(), error);
        }
    }

    /// The conversation's preferred key among the untried ones that are ready.
    ///
    /// Keys that failed a moment ago, and keys with little capacity left, are used only if there is no better one.
    pub(crate) fn choose(&self, conversation: Uuid, tried: &Tried) -> Option<Arc<ApiKey>> {
        let now_ms = self.now_ms();
        let state = self.state();

        let is_ready =
            |key: &&Arc<ApiKey>| !tried.contains(key) && state.cooldown_end(key, now_ms).is_none();
        let mut ready: Vec<&Arc<ApiKey>> = state.keys.iter().filter(is_ready).collect();

        let is_suspect = |key: &ApiKey| state.is_suspect(&key.cooldown_key(), now_ms);
        if ready.iter().any(|key| !is_suspect(key)) {
            ready.retain(|key| !is_suspect(key));
        }

        let capacity = |key: &ApiKey| state.remaining_capacity(key, now_ms);
        let largest = ready.iter().map(|key| capacity(key)).fold(0.0, f64::max);
        ready.retain(|key| capacity(key) >= ENOUGH_CAPACITY.min(largest / 2.0));

        let score = |key: &ApiKey| key.rendezvous_score(conversation);
        let best = ready
            .into_iter()
            .max_by(|a, b| score(a).total_cmp(&score(b)));
        best.map(Arc::clone)
    }

    /// The models that are not cooling down. Those that failed a moment ago come last.
    pub(crate) fn available_models<'m>(
        &self,
        models: impl Iterator<Item = &'m str>,
    ) -> Vec<&'m str> {
        let now_ms = self.now_ms();
        let state = self.state();

        let is_available = |model: &&str| {
            let cooldown = state.cooldowns.end(&model_cooldown_key(model), now_ms);
            cooldown.is_none()
        };
        let mut available: Vec<&str> = models.filter(is_available).collect();

        available.sort_by_key(|model| state.is_suspect(&model_cooldown_key(model), now_ms));
        available
    }

    /// Time until one of the models can be used with one of the keys; `None` if that is now.
    pub(crate) fn time_until_available<'m>(
        &self,
        models: impl IntoIterator<Item = &'m str>,
    ) -> Option<Duration> {
        let now_ms = self.now_ms();
        let state = self.state();
        let mut earliest_ms: Option<i64> = None;

        for model in models {
            let model_end = state.cooldowns.end(&model_cooldown_key(model), now_ms);
            for key in &state.keys {
                let key_end = state.cooldown_end(key, now_ms);
                let end_ms = key_end.max(model_end).unwrap_or(now_ms);
                earliest_ms = Some(earliest_ms.map_or(end_ms, |earliest| earliest.min(end_ms)));
            }
        }

        let wait_ms = u64::try_from(earliest_ms? - now_ms).ok()?;
        (wait_ms > 0).then(|| Duration::from_millis(wait_ms))
    }

    /// Whether the pool has no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().keys.is_empty()
    }

    /// Subtracts a starting call from the known limits, until its response reports new ones.
    pub(crate) fn reserve_capacity(&self, key: &ApiKey, max_tokens: u32) {
        self.state().reserve_capacity(key, max_tokens);
    }

    /// Records that a reply started.
    pub(crate) fn record_success(&self, key: &ApiKey, limits: Limits) {
        let now = (self.clock)();
        self.state().record_success(key, limits, now);
    }

    /// Records an error: its class decides whether a key, an organisation or a model cools down.
    pub(crate) fn record_failure(&self, key: &ApiKey, model: &str, error: &Error) {
        let now = (self.clock)();
        self.state().record_failure(key, model, error, now);
        self.changed.notify_one();
    }

    /// Records that another organisation accepted a request that this key's organisation refused.
    pub(crate) fn record_own_spend_limit(&self, key: &ApiKey) {
        tracing::warn!(
            key = key.label,
            "an organisation refused what another one accepted: its own spend limit, most likely"
        );
        let now_ms = self.now_ms();
        self.state().record_own_spend_limit(key, now_ms);
        self.changed.notify_one();
    }

    fn now_ms(&self) -> i64 {
        epoch_ms((self.clock)())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("keys", &self.state().keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
