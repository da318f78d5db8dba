//! Failover of one reply: another key, then another organisation, then another model.
//!
//! It ends with the reply's first event. From then on the provider may bill the reply, and the reader may have seen it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Class;
use crate::pool::{Pool, Tried};
use crate::{ApiKey, Attempt, Claude, Deadlines, Error, Prompt, Reply};

/// Attempts for one reply. More would only keep its reader waiting.
const MAX_ATTEMPTS: u32 = 8;
/// The pause before the same key is used again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The keys and models that may answer a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Every call of a conversation prefers the same key, because the provider's prompt cache belongs to the key.
    pub conversation: Uuid,
    /// The model to use if the prompt's own does not answer.
    pub fallback: Option<&'a str>,
}

/// The search for one reply.
struct Search<'a> {
    pool: &'a Pool,
    route: &'a Route<'a>,
    started_at: Instant,
    attempts: u32,
    /// Failures of the provider, with all models.
    failures: u32,
    abandoned: Vec<Attempt>,
    last_error: Option<Error>,
}

/// The search among the keys of one model.
#[derive(Default)]
struct ModelSearch {
    tried: Tried,
    failures: u32,
    /// Whether a retry was made because the provider suggested it.
    retried_on_hint: bool,
    /// The key whose refusal may concern its organisation or the request.
    ambiguous_key: Option<Arc<ApiKey>>,
}

/// What is left after a failed attempt.
struct Left {
    has_other_key: bool,
    has_next_model: bool,
    /// Whether the provider failed for the first time in this search.
    is_first_failure: bool,
}

/// What follows a failed attempt.
enum NextStep {
    OtherKey,
    SameKey,
    End(SearchEnd),
}

/// How the search with one model ended.
enum SearchEnd {
    /// The next model may answer.
    NextModel,
    /// No model would answer.
    GiveUp,
}

impl Pool {
    /// Asks for a reply and returns once it has started. The deadlines hold for all attempts together.
    pub async fn ask(&self, prompt: &Prompt, route: &Route<'_>) -> Result<Reply, Error> {
        if self.is_empty() {
            return Err(Error::NoKey);
        }
        let mut search = Search {
            pool: self,
            route,
            started_at: Instant::now(),
            attempts: 0,
            failures: 0,
            abandoned: Vec::new(),
            last_error: None,
        };
        let models = [Some(prompt.model.as_str()), route.fallback];
        let available = self.available_models(models.into_iter().flatten());

        for (index, model) in available.iter().copied().enumerate() {
            let has_next_model = index + 1 < available.len();
            let prompt = with_model(prompt, model);

            match Box::pin(search.ask_model(&prompt, has_next_model)).await {
                Ok(mut reply) => {
                    reply.set_abandoned_attempts(search.abandoned);
                    return Ok(reply);
                }
                Err(SearchEnd::NextModel) => {}
                Err(SearchEnd::GiveUp) => break,
            }
        }
        let wait = self.time_until_available(models.into_iter().flatten());
        Err(search.into_error(wait))
    }
}

fn with_model<'p>(prompt: &'p Prompt, model: &str) -> Cow<'p, Prompt> {
    if model == prompt.model {
        return Cow::Borrowed(prompt);
    }
    Cow::Owned(Prompt {
        model: model.to_owned(),
        ..prompt.clone()
    })
}

impl Search<'_> {
    async fn ask_model(
        &mut self,
        prompt: &Prompt,
        has_next_model: bool,
    ) -> Result<Reply, SearchEnd> {
        let mut keys = ModelSearch::default();

        loop {
            let Some(key) = self.choose(&keys) else {
                return Err(keys.end_without_key());
            };
            keys.tried.labels.insert(key.label.clone());

            let has_alternative = has_next_model || self.choose(&keys).is_some();
            let Some(deadlines) = self.next_attempt(has_alternative) else {
                return Err(SearchEnd::GiveUp);
            };

            let error = match self.attempt(&key, prompt, deadlines).await {
                Ok(reply) => {
                    self.resolve_ambiguity(&keys);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            self.record_failure(&key, &prompt.model, &error);

            let left = Left {
                has_other_key: self.choose(&keys).is_some(),
                has_next_model,
                is_first_failure: self.failures == 1,
            };
            let next = keys.after_failure(&key, &error, &left);
            self.last_error = Some(error);
            match next {
                NextStep::OtherKey => {}
                NextStep::SameKey => {
                    pause().await;
                    keys.tried.labels.remove(&key.label);
                }
                NextStep::End(end) => return Err(end),
            }
        }
    }

    fn choose(&self, keys: &ModelSearch) -> Option<Arc<ApiKey>> {
        self.pool.choose(self.route.conversation, &keys.tried)
    }

    /// Counts an attempt and gives it the rest of the time. An attempt that has an alternative gets half of the time
    /// for the first event. `None` if attempts or time are used up.
    fn next_attempt(&mut self, has_alternative: bool) -> Option<Deadlines> {
        self.attempts += 1;
        if self.attempts > MAX_ATTEMPTS {
            return None;
        }
        let total = self.pool.deadlines;
        let elapsed = self.started_at.elapsed();
        let left = total.first_event.checked_sub(elapsed)?;

        Some(Deadlines {
            first_event: if has_alternative { left / 2 } else { left },
            silence: total.silence,
            whole: total.whole.saturating_sub(elapsed),
        })
    }

    async fn attempt(
        &self,
        key: &ApiKey,
        prompt: &Prompt,
        deadlines: Deadlines,
    ) -> Result<Reply, Error> {
        self.pool.reserve_capacity(key, prompt.max_tokens);

        let open_stream = self.pool.connections.open_stream()?;
        let http = open_stream.http().clone();
        let base_url = self.pool.base_url.clone();
        let claude = Claude::new(http, base_url, key.clone()).with_deadlines(deadlines);

        let mut reply = claude.stream(prompt).await?;
        reply.hold(open_stream);
        reply.wait_for_start().await?;

        self.pool.record_success(key, reply.limits());
        Ok(reply)
    }

    fn record_failure(&mut self, key: &ApiKey, model: &str, error: &Error) {
        if matches!(error.class(), Class::Failing | Class::Overloaded) {
            self.failures += 1;
        }
        if error.may_be_billed() {
            self.abandoned.push(Attempt {
                model: model.to_owned(),
                key_label: key.label.clone(),
            });
        }
        self.pool.record_failure(key, model, error);
        tracing::warn!(key = key.label, model, cause = %error, "an attempt to get a reply failed");
    }

    /// After an ambiguous refusal the answer of another organisation shows that the request was valid.
    fn resolve_ambiguity(&self, keys: &ModelSearch) {
        if let Some(refused) = &keys.ambiguous_key {
            self.pool.record_own_spend_limit(refused);
        }
    }

    fn into_error(self, wait: Option<Duration>) -> Error {
        let error = match (wait, self.last_error) {
            (Some(retry_after), last) => Error::Cooling {
                retry_after,
                last: last.map(Box::new),
            },
            (None, Some(last)) => last,
            (None, None) => Error::Cooling {
                retry_after: RETRY_PAUSE,
                last: None,
            },
        };

        match self.abandoned.is_empty() {
            true => error,
            false => Error::Abandoned {
                attempts: self.abandoned,
                last: Box::new(error),
            },
        }
    }
}

impl ModelSearch {
    fn after_failure(&mut self, key: &Arc<ApiKey>, error: &Error, left: &Left) -> NextStep {
        match error.class() {
            Class::Limited | Class::Spent => {
                self.exclude_organisation(key);
                NextStep::OtherKey
            }
            Class::Refused => NextStep::OtherKey,
            Class::Failing => self.after_provider_failure(error, left),
            Class::Overloaded => self.after_overload(error, left),
            Class::NoModel => NextStep::End(SearchEnd::NextModel),
            Class::Ambiguous => self.after_ambiguous_refusal(key, error),
            Class::Final if self.takes_retry_hint(error) => NextStep::SameKey,
            Class::Final => NextStep::End(SearchEnd::GiveUp),
        }
    }

    /// The first failure may be a bad moment of the provider; the second one ends the search with this model.
    fn after_provider_failure(&mut self, error: &Error, left: &Left) -> NextStep {
        self.failures += 1;
        if self.failures > 1 {
            return NextStep::End(SearchEnd::NextModel);
        }

        let is_late = matches!(error, Error::Timeout { .. });
        let may_retry =
            error.should_retry() != Some(false) && error.retry_after().is_none() && !is_late;

        match may_retry && !left.has_other_key {
            true => NextStep::SameKey,
            false => NextStep::OtherKey,
        }
    }

    /// All keys share a model's capacity, so another model is the best choice. Without one, the search's first failure
    /// may be a bad moment of the provider.
    fn after_overload(&mut self, error: &Error, left: &Left) -> NextStep {
        self.failures += 1;

        let may_retry = error.should_retry() != Some(false) && error.retry_after().is_none();
        if left.has_next_model || !left.is_first_failure || !may_retry {
            return NextStep::End(SearchEnd::NextModel);
        }
        match left.has_other_key {
            true => NextStep::OtherKey,
            false => NextStep::SameKey,
        }
    }

    /// Another organisation may answer, once. If it refuses as well, the request is invalid.
    fn after_ambiguous_refusal(&mut self, key: &Arc<ApiKey>, error: &Error) -> NextStep {
        if self.takes_retry_hint(error) {
            return NextStep::SameKey;
        }
        if self.ambiguous_key.is_some() {
            return NextStep::End(SearchEnd::GiveUp);
        }
        self.exclude_organisation(key);
        self.ambiguous_key = Some(Arc::clone(key));
        NextStep::OtherKey
    }

    /// Whether to follow the provider's hint to retry. It is followed once.
    fn takes_retry_hint(&mut self, error: &Error) -> bool {
        let retries = error.should_retry() == Some(true) && !self.retried_on_hint;
        self.retried_on_hint |= retries;
        retries
    }

    fn exclude_organisation(&mut self, key: &ApiKey) {
        let organisation = key.organisation_cooldown_key();
        self.tried.organisations.insert(organisation);
    }

    /// After an ambiguous refusal no other model is asked: the request is most likely invalid.
    fn end_without_key(&self) -> SearchEnd {
        match self.ambiguous_key {
            Some(_) => SearchEnd::GiveUp,
            None => SearchEnd::NextModel,
        }
    }
}

/// Waits a moment, randomised so that replies do not retry in step.
async fn pause() {
    let factor = 1.0 - 0.25 * rand::random::<f64>();
    tokio::time::sleep(RETRY_PAUSE.mul_f64(factor)).await;
}
