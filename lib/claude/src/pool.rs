//! Several keys as one: which of them a conversation gets, and what was learned of each. Time is passed in.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::{OffsetDateTime, UtcOffset};
use tokio::sync::Notify;
use uuid::Uuid;

use super::cooldown::{Cooldowns, Deadline};
use super::error::Class;
use super::{ApiKey, Deadlines, Error, Limit, Limits, Phase, Reply};

/// A limit without `retry-after` refills within a minute.
const LIMITED: Duration = Duration::from_secs(10);
/// How long an organisation is left alone that refused what another one took: its own limit of the month, most likely,
/// but nobody says until when.
const OWN_LIMIT: Duration = Duration::from_secs(600);
/// A refused key is tried again after so long, and then half as often each time.
const REFUSED: Duration = Duration::from_secs(60);
const REFUSED_MOST: u32 = 16;
/// What failed just now comes last for so long, but is not out.
const SUSPECT: Duration = Duration::from_secs(10);
/// A key with this part of its limits left keeps its conversations, however much others have left.
const ENOUGH_ROOM: f64 = 0.25;

/// Where the time comes from.
type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// All keys, and what is known of each.
pub struct Pool {
    pub(super) http: reqwest::Client,
    pub(super) base_url: String,
    pub(super) deadlines: Deadlines,
    clock: Clock,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    keys: Vec<Arc<ApiKey>>,
    cooldowns: Cooldowns,
    /// By the scope of the organisation.
    limits: HashMap<String, Limits>,
    /// Until when a scope comes last, in epoch milliseconds.
    suspects: HashMap<String, i64>,
    /// Refusals in a row, by the scope of the key.
    refusals: HashMap<String, u32>,
    /// Organisations whose spend limit operators have been told of.
    spent: HashSet<String>,
    /// What operators are to be told of.
    alarms: Vec<Alarm>,
    outcomes: HashMap<String, Outcome>,
}

/// What came of a key's last calls.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// When it last began a reply.
    pub ok_at: Option<OffsetDateTime>,
    /// What it last failed with, and when.
    pub error: Option<(String, OffsetDateTime)>,
}

/// A key or an organisation that only an operator can help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Its label, or its organisation's name.
    pub of: String,
    /// One word for what is wrong.
    pub matter: &'static str,
    /// What is wrong, as a sentence.
    pub what: &'static str,
    /// What the provider said.
    pub cause: String,
}

/// Whether a key may be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyHealth {
    /// It may.
    Ready,
    /// It or its organisation is left alone until then.
    Cooling(OffsetDateTime),
}

/// What one reply has tried in vain.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) labels: HashSet<String>,
    pub(super) organisations: HashSet<String>,
}

impl Pool {
    /// A pool of these keys.
    pub fn new(
        http: reqwest::Client,
        base_url: String,
        deadlines: Deadlines,
        keys: Vec<ApiKey>,
        clock: impl Fn() -> OffsetDateTime + Send + Sync + 'static,
    ) -> Self {
        let pool = Self {
            http,
            base_url,
            deadlines,
            clock: Arc::new(clock),
            state: Mutex::default(),
            news: Notify::new(),
        };
        pool.replace(keys);
        pool
    }

    /// What operators are to be told of and were not yet; it is the caller's to tell.
    pub fn take_alarms(&self) -> Vec<Alarm> {
        std::mem::take(&mut self.state().alarms)
    }

    /// Calls from now on go to these keys; calls under way go on with theirs.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        self.state().keys = keys.into_iter().map(Arc::new).collect();
    }

    /// The key that a conversation's next call would begin with, for a ledger that is written before its end.
    pub fn likely_key(&self, conversation: Uuid) -> String {
        let key = self.choose(conversation, &Tried::default());
        key.map_or_else(|| "none".to_owned(), |key| key.label.clone())
    }

    /// Each key by its label.
    pub fn health(&self) -> Vec<(String, KeyHealth)> {
        let (state, now) = (self.state(), self.now_ms());
        let health = |key: &Arc<ApiKey>| match state.cooling(key, now) {
            None => KeyHealth::Ready,
            Some(until) => KeyHealth::Cooling(moment(until)),
        };
        state
            .keys
            .iter()
            .map(|key| (key.label.clone(), health(key)))
            .collect()
    }

    /// Deadlines of which others do not know yet.
    pub fn untold(&self) -> Vec<Deadline> {
        self.state().cooldowns.untold(self.now_ms())
    }

    /// Takes over the deadlines that all instances know, after they were told these.
    pub fn follow(&self, told: &[Deadline], known: Vec<Deadline>) {
        self.state().cooldowns.follow(told, known);
    }

    /// The scopes that a key can be left alone by.
    pub fn scopes(key: &ApiKey) -> [String; 2] {
        [key.scope(), key.organisation_scope()]
    }

    /// What came of each key's calls since this was last asked.
    pub fn take_outcomes(&self) -> HashMap<String, Outcome> {
        std::mem::take(&mut self.state().outcomes)
    }

    /// Waits until there is a deadline of which others do not know.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The best key that was not tried yet: of those with room, the one that the conversation always gets.
    pub(super) fn choose(&self, conversation: Uuid, tried: &Tried) -> Option<Arc<ApiKey>> {
        let (state, now) = (self.state(), self.now_ms());
        let untried = |key: &&Arc<ApiKey>| {
            !tried.labels.contains(&key.label)
                && !tried.organisations.contains(&key.organisation_scope())
        };
        let ready = |key: &&Arc<ApiKey>| untried(key) && state.cooling(key, now).is_none();
        let mut ready: Vec<(&Arc<ApiKey>, f64)> = state
            .keys
            .iter()
            .filter(ready)
            .map(|key| (key, state.room(key, now)))
            .collect();
        let sound = |key: &Arc<ApiKey>| {
            state
                .suspects
                .get(&key.scope())
                .is_none_or(|until| *until <= now)
        };
        if ready.iter().any(|(key, _)| sound(key)) {
            ready.retain(|(key, _)| sound(key));
        }
        let most = ready.iter().map(|(_, room)| *room).fold(0.0, f64::max);
        ready.retain(|(_, room)| *room >= ENOUGH_ROOM.min(most / 2.0));
        let best = ready
            .iter()
            .max_by(|(a, _), (b, _)| a.bid(conversation).total_cmp(&b.bid(conversation)));
        best.map(|(key, _)| Arc::clone(key))
    }

    /// The models that are not left alone for now, those last that failed just now.
    pub(super) fn models<'m>(&self, models: impl Iterator<Item = &'m str>) -> Vec<&'m str> {
        let (state, now) = (self.state(), self.now_ms());
        let mut models: Vec<_> = models
            .filter(|model| state.cooldowns.end(&model_scope(model), now).is_none())
            .collect();
        models.sort_by_key(|model| {
            state
                .suspects
                .get(&model_scope(model))
                .is_some_and(|until| *until > now)
        });
        models
    }

    /// How long until one of these models may be asked with one of the keys; nothing where that is now.
    pub(super) fn wait<'m>(&self, models: impl IntoIterator<Item = &'m str>) -> Option<Duration> {
        let (state, now) = (self.state(), self.now_ms());
        let ends = models.into_iter().flat_map(|model| {
            let of_model = state.cooldowns.end(&model_scope(model), now);
            let of_keys: Vec<i64> = state
                .keys
                .iter()
                .map(|key| state.cooling(key, now).max(of_model).unwrap_or(now))
                .collect();
            of_keys
        });
        let wait_ms = u64::try_from(ends.min()? - now)
            .ok()
            .filter(|wait| *wait > 0)?;
        Some(Duration::from_millis(wait_ms))
    }

    /// Whether there is any key.
    pub(super) fn is_empty(&self) -> bool {
        self.state().keys.is_empty()
    }

    /// A call begins: until an answer tells what is left, it counts here.
    pub(super) fn begins(&self, key: &ApiKey, most_output: u32) {
        if let Some(limits) = self.state().limits.get_mut(&key.organisation_scope()) {
            let take = |limit: &mut Option<Limit>, count: u64| {
                if let Some(limit) = limit {
                    limit.remaining = limit.remaining.saturating_sub(count);
                }
            };
            take(&mut limits.requests, 1);
            take(&mut limits.output_tokens, most_output.into());
        }
    }

    /// A reply has begun.
    pub(super) fn went_well(&self, key: &ApiKey, limits: Limits) {
        let now = (self.clock)();
        let mut state = self.state();
        state.limits.insert(key.organisation_scope(), limits);
        state.suspects.remove(&key.scope());
        state.refusals.remove(&key.scope());
        state.spent.remove(&key.organisation_scope());
        state.outcomes.entry(key.label.clone()).or_default().ok_at = Some(now);
    }

    /// A reply has broken off; it is not asked for again, but others need not meet the same.
    pub fn broke(&self, reply: &Reply, error: &Error) {
        // A reply that is too long says nothing of who gave it.
        if !matches!(
            error,
            Error::Timeout {
                phase: Phase::Whole
            }
        ) {
            self.went_wrong(reply.key(), reply.asked_model(), error);
        }
    }

    /// Takes from an error what holds for later calls, too.
    pub(super) fn went_wrong(&self, key: &ApiKey, model: &str, error: &Error) {
        let now = (self.clock)();
        let now_ms = epoch_ms(now);
        let after = |wait: Duration| {
            now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
        };
        let mut state = self.state();
        state.outcomes.entry(key.label.clone()).or_default().error = Some((error.to_string(), now));
        let (label, organisation) = (&key.label, key.organisation_scope());
        match error.class() {
            Class::Limited => state
                .cooldowns
                .raise(organisation, after(error.retry_after().unwrap_or(LIMITED))),
            Class::Spent => {
                if state.spent.insert(organisation.clone()) {
                    tracing::error!(key = label, organisation, cause = %error, "an organisation has spent all it may this month");
                    let what =
                        "An organisation has spent all that it may at the provider this month.";
                    let of = key.organisation.as_ref().unwrap_or(label).clone();
                    state.alarms.push(Alarm {
                        of,
                        matter: "spent",
                        what,
                        cause: error.to_string(),
                    });
                }
                state
                    .cooldowns
                    .raise(organisation, epoch_ms(next_month(now)));
            }
            Class::Refused => {
                let scope = key.scope();
                // Calls that were under way together are refused together, which is one refusal.
                if state.cooldowns.end(&scope, now_ms).is_none() {
                    let refusals = state.refusals.entry(scope.clone()).or_default();
                    *refusals += 1;
                    let refusals = *refusals;
                    if refusals == 1 {
                        tracing::error!(key = label, cause = %error, "a Claude key was refused and is out of rotation");
                        let what = "A Claude key was refused and is out of rotation.";
                        state.alarms.push(Alarm {
                            of: label.clone(),
                            matter: "refused",
                            what,
                            cause: error.to_string(),
                        });
                    }
                    let wait = REFUSED * (1 << (refusals - 1).min(4)).min(REFUSED_MOST);
                    state.cooldowns.raise(scope, after(wait));
                }
            }
            Class::Overloaded => match error.retry_after() {
                Some(wait) => state.cooldowns.raise(model_scope(model), after(wait)),
                None => drop(state.suspects.insert(model_scope(model), after(SUSPECT))),
            },
            Class::Failing => match error.retry_after() {
                Some(wait) => state.cooldowns.raise(key.scope(), after(wait)),
                None => drop(state.suspects.insert(key.scope(), after(SUSPECT))),
            },
            Class::NoModel | Class::Doubtful | Class::Final => {}
        }
        drop(state);
        self.news.notify_one();
    }

    /// Another organisation took what this one refused.
    pub(super) fn is_at_its_own_limit(&self, key: &ApiKey) {
        tracing::warn!(
            key = key.label,
            "an organisation refused what another took: its own spend limit, most likely"
        );
        let until = self.now_ms() + i64::try_from(OWN_LIMIT.as_millis()).unwrap_or_default();
        self.state()
            .cooldowns
            .raise(key.organisation_scope(), until);
        self.news.notify_one();
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

impl State {
    /// Until when a key is left alone, for its own sake or its organisation's.
    fn cooling(&self, key: &ApiKey, now_ms: i64) -> Option<i64> {
        let own = self.cooldowns.end(&key.scope(), now_ms);
        own.max(self.cooldowns.end(&key.organisation_scope(), now_ms))
    }

    /// The part of its organisation's limits that is left, by the one of which the least is.
    fn room(&self, key: &ApiKey, now_ms: i64) -> f64 {
        let Some(limits) = self.limits.get(&key.organisation_scope()) else {
            return 1.0;
        };
        let room = |limit: Limit| match limit.reset {
            Some(reset) if epoch_ms(reset) <= now_ms => 1.0,
            _ => limit.remaining as f64 / limit.limit.max(1) as f64,
        };
        let limits = [limits.requests, limits.input_tokens, limits.output_tokens];
        limits.into_iter().flatten().map(room).fold(1.0, f64::min)
    }
}

fn model_scope(model: &str) -> String {
    format!("m:{model}")
}

/// Spend limits are of a calendar month, in UTC.
fn next_month(now: OffsetDateTime) -> OffsetDateTime {
    let first = now
        .to_offset(UtcOffset::UTC)
        .date()
        .replace_day(1)
        .expect("every month has a first day");
    let next = first + time::Duration::days(31);
    next.replace_day(1)
        .expect("every month has a first day")
        .midnight()
        .assume_utc()
}

fn epoch_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).expect("the years of a time fit")
}

fn moment(epoch_ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(epoch_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
