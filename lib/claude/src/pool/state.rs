//! What a pool knows about its keys, and how calls change it. The current time is passed in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Alarm, AlarmKind, KeyOutcome};
use crate::clock::{epoch_ms, next_month};
use crate::cooldown::Cooldowns;
use crate::error::Class;
use crate::{ApiKey, Error, Limit, Limits};

/// Cooldown of a rate limit without `retry-after`. Rate limits refill within a minute.
const RATE_LIMIT_COOLDOWN: Duration = Duration::from_secs(10);
/// Cooldown of an organisation at a spend limit that it set itself. The provider does not report the reset.
const OWN_SPEND_LIMIT_COOLDOWN: Duration = Duration::from_secs(600);
/// Cooldown after a key's first refusal. It doubles with each further refusal.
const REFUSAL_COOLDOWN: Duration = Duration::from_secs(60);
/// The longest cooldown of a refused key is 2 to this power times the first one.
const MAX_REFUSAL_DOUBLINGS: u32 = 4;
/// How long a failed key or model is used only if there is no other.
pub(super) const SUSPECT_TIME: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct State {
    pub(super) keys: Vec<Arc<ApiKey>>,
    pub(super) cooldowns: Cooldowns,
    /// Outcomes that the caller has not taken yet, by label.
    pub(super) outcomes: HashMap<String, KeyOutcome>,
    /// Alarms that the caller has not taken yet.
    pub(super) alarms: Vec<Alarm>,
    /// By cooldown key of the organisation.
    limits: HashMap<String, Limits>,
    /// Ends of suspicion in Unix milliseconds, by cooldown key.
    suspects: HashMap<String, i64>,
    /// Consecutive refusals, by cooldown key.
    refusals: HashMap<String, u32>,
    /// Organisations whose spend limit has raised an alarm, by cooldown key.
    at_spend_limit: HashSet<String>,
}

impl State {
    /// The end of the cooldown of a key or its organisation.
    pub(super) fn cooldown_end(&self, key: &ApiKey, now_ms: i64) -> Option<i64> {
        let own = self.cooldowns.end(&key.cooldown_key(), now_ms);
        let shared = self.cooldowns.end(&key.organisation_cooldown_key(), now_ms);

        own.max(shared)
    }

    /// Whether a key or model failed a moment ago.
    pub(super) fn is_suspect(&self, cooldown_key: &str, now_ms: i64) -> bool {
        let until_ms = self.suspects.get(cooldown_key);
        until_ms.is_some_and(|until_ms| *until_ms > now_ms)
    }

    /// The smallest remaining share among the limits of a key's organisation.
    pub(super) fn remaining_capacity(&self, key: &ApiKey, now_ms: i64) -> f64 {
        let Some(limits) = self.limits.get(&key.organisation_cooldown_key()) else {
            return 1.0;
        };
        let share = |limit: Limit| match limit.reset {
            Some(reset) if epoch_ms(reset) <= now_ms => 1.0,
            _ => limit.remaining as f64 / limit.limit.max(1) as f64,
        };

        [limits.requests, limits.input_tokens, limits.output_tokens]
            .into_iter()
            .flatten()
            .map(share)
            .fold(1.0, f64::min)
    }

    pub(super) fn reserve_capacity(&mut self, key: &ApiKey, max_tokens: u32) {
        let Some(limits) = self.limits.get_mut(&key.organisation_cooldown_key()) else {
            return;
        };
        if let Some(requests) = &mut limits.requests {
            requests.remaining = requests.remaining.saturating_sub(1);
        }
        if let Some(tokens) = &mut limits.output_tokens {
            tokens.remaining = tokens.remaining.saturating_sub(max_tokens.into());
        }
    }

    pub(super) fn record_success(&mut self, key: &ApiKey, limits: Limits, now: OffsetDateTime) {
        let organisation = key.organisation_cooldown_key();

        self.suspects.remove(&key.cooldown_key());
        self.refusals.remove(&key.cooldown_key());
        self.at_spend_limit.remove(&organisation);
        self.limits.insert(organisation, limits);
        self.outcome(key).ok_at = Some(now);
    }

    pub(super) fn record_failure(
        &mut self,
        key: &ApiKey,
        model: &str,
        error: &Error,
        now: OffsetDateTime,
    ) {
        let now_ms = epoch_ms(now);
        self.outcome(key).error = Some((error.to_string(), now));

        match error.class() {
            Class::Limited => {
                let wait = error.retry_after().unwrap_or(RATE_LIMIT_COOLDOWN);
                self.cooldowns
                    .extend(key.organisation_cooldown_key(), add(now_ms, wait));
            }
            Class::Spent => self.record_spend_limit(key, error, now),
            Class::Refused => self.record_refusal(key, error, now_ms),
            Class::Overloaded => self.cool_or_suspect(model_cooldown_key(model), error, now_ms),
            Class::Failing => self.cool_or_suspect(key.cooldown_key(), error, now_ms),
            Class::NoModel | Class::Ambiguous | Class::Final => {}
        }
    }

    pub(super) fn record_own_spend_limit(&mut self, key: &ApiKey, now_ms: i64) {
        let until_ms = add(now_ms, OWN_SPEND_LIMIT_COOLDOWN);
        self.cooldowns
            .extend(key.organisation_cooldown_key(), until_ms);
    }

    /// The organisation cools down until the next month and raises one alarm.
    fn record_spend_limit(&mut self, key: &ApiKey, error: &Error, now: OffsetDateTime) {
        let organisation = key.organisation_cooldown_key();

        if self.at_spend_limit.insert(organisation.clone()) {
            let label = &key.label;
            tracing::error!(key = label, organisation, cause = %error, "a spend limit is reached");

            let subject = key.organisation.as_ref().unwrap_or(label);
            self.raise_alarm(subject, AlarmKind::SpendLimitReached, error);
        }
        self.cooldowns
            .extend(organisation, epoch_ms(next_month(now)));
    }

    /// The key cools down, longer with each refusal in a row, and the first one raises an alarm.
    fn record_refusal(&mut self, key: &ApiKey, error: &Error, now_ms: i64) {
        let cooldown_key = key.cooldown_key();

        // Calls that ran at the same time are refused together and count as one refusal.
        if self.cooldowns.end(&cooldown_key, now_ms).is_some() {
            return;
        }
        let refusals = self.refusals.entry(cooldown_key.clone()).or_default();
        *refusals += 1;
        let earlier_refusals = *refusals - 1;

        if earlier_refusals == 0 {
            tracing::error!(key = key.label, cause = %error, "a Claude key was refused");
            self.raise_alarm(&key.label, AlarmKind::KeyRefused, error);
        }
        let doublings = earlier_refusals.min(MAX_REFUSAL_DOUBLINGS);
        let until_ms = add(now_ms, REFUSAL_COOLDOWN * (1 << doublings));
        self.cooldowns.extend(cooldown_key, until_ms);
    }

    /// A key or model cools down if the provider asks for a wait. Otherwise it is suspect for a moment.
    fn cool_or_suspect(&mut self, cooldown_key: String, error: &Error, now_ms: i64) {
        match error.retry_after() {
            Some(wait) => self.cooldowns.extend(cooldown_key, add(now_ms, wait)),
            None => {
                self.suspects
                    .insert(cooldown_key, add(now_ms, SUSPECT_TIME));
            }
        }
    }

    fn raise_alarm(&mut self, subject: &str, kind: AlarmKind, error: &Error) {
        self.alarms.push(Alarm {
            subject: subject.to_owned(),
            kind,
            cause: error.to_string(),
        });
    }

    fn outcome(&mut self, key: &ApiKey) -> &mut KeyOutcome {
        self.outcomes.entry(key.label.clone()).or_default()
    }
}

/// Names the cooldown of a model with all keys.
pub(super) fn model_cooldown_key(model: &str) -> String {
    format!("m:{model}")
}

fn add(now_ms: i64, wait: Duration) -> i64 {
    let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    now_ms.saturating_add(wait_ms)
}
