//! One reply by whoever can give it: another key, another organisation, another model, in this order and only before the
//! reply has begun. From then on the provider may bill it, and the reader may have seen it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::error::Class;
use super::pool::{Pool, Tried};
use super::{ApiKey, Claude, Deadlines, Error, Prompt, Reply};

/// Where one reply is tried at most; more would keep its reader waiting for nothing.
const MOST_ATTEMPTS: u32 = 8;
/// The pause before the same key is asked again.
const BACKOFF: Duration = Duration::from_millis(250);

/// Who may answer.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Its key, while that is well, is the same for every call: the provider's prompt cache belongs to the key.
    pub conversation: Uuid,
    /// The model to ask where the prompt's own does not answer.
    pub fallback: Option<&'a str>,
}

/// One reply's search.
struct Search<'a> {
    pool: &'a Pool,
    route: &'a Route<'a>,
    begun: Instant,
    attempts: u32,
    last: Option<Error>,
}

/// How the search ended at one model.
enum End {
    /// The next model may answer.
    Here,
    /// No model would.
    Everywhere,
}

impl Pool {
    /// Asks for a reply; `Ok` once it has begun. The deadlines are of all attempts together.
    pub async fn ask(&self, prompt: &Prompt, route: &Route<'_>) -> Result<Reply, Error> {
        if self.is_empty() {
            return Err(Error::NoKey);
        }
        let mut search = Search {
            pool: self,
            route,
            begun: Instant::now(),
            attempts: 0,
            last: None,
        };
        let models = [Some(prompt.model.as_str()), route.fallback];
        let asked = self.models(models.into_iter().flatten());
        for (at, model) in asked.iter().copied().enumerate() {
            let has_another = at + 1 < asked.len();
            let prompt = match model == prompt.model {
                true => Cow::Borrowed(prompt),
                false => Cow::Owned(Prompt {
                    model: model.to_owned(),
                    ..prompt.clone()
                }),
            };
            match Box::pin(search.at(&prompt, has_another)).await {
                Ok(reply) => return Ok(reply),
                Err(End::Here) => {}
                Err(End::Everywhere) => break,
            }
        }
        match (self.wait(models.into_iter().flatten()), search.last) {
            (Some(retry_after), last) => Err(Error::Cooling {
                retry_after,
                last: last.map(Box::new),
            }),
            (None, Some(last)) => Err(last),
            (None, None) => Err(Error::Cooling {
                retry_after: BACKOFF,
                last: None,
            }),
        }
    }
}

impl Search<'_> {
    async fn at(&mut self, prompt: &Prompt, has_another_model: bool) -> Result<Reply, End> {
        let conversation = self.route.conversation;
        let (mut tried, mut failures, mut told_to) = (Tried::default(), 0, false);
        // Whose organisation refused what may be fine.
        let mut doubted: Option<Arc<ApiKey>> = None;
        loop {
            let Some(key) = self.pool.choose(conversation, &tried) else {
                return Err(if doubted.is_some() {
                    End::Everywhere
                } else {
                    End::Here
                });
            };
            tried.labels.insert(key.label.clone());
            let has_another = has_another_model || self.pool.choose(conversation, &tried).is_some();
            let Some(deadlines) = self.deadlines(has_another) else {
                return Err(End::Everywhere);
            };
            let error = match self.attempt(&key, prompt, deadlines).await {
                Ok(reply) => {
                    if let Some(refusing) = doubted {
                        self.pool.is_at_its_own_limit(&refusing);
                    }
                    return Ok(reply);
                }
                Err(error) => error,
            };
            self.pool.went_wrong(&key, &prompt.model, &error);
            tracing::warn!(key = key.label, model = prompt.model, cause = %error, "a reply is not begun here");
            let (class, may_repeat) = (error.class(), error.should_retry());
            let repeats = match class {
                Class::Failing => {
                    failures += 1;
                    let is_late = matches!(error, Error::Timeout { .. });
                    failures == 1
                        && may_repeat != Some(false)
                        && error.retry_after().is_none()
                        && !is_late
                }
                Class::Doubtful | Class::Final => {
                    may_repeat == Some(true) && !std::mem::replace(&mut told_to, true)
                }
                _ => false,
            };
            self.last = Some(error);
            match class {
                Class::Limited | Class::Spent => {
                    tried.organisations.insert(key.organisation_scope());
                }
                Class::Refused => {}
                Class::Failing if failures > 1 => return Err(End::Here),
                Class::Failing if repeats && self.pool.choose(conversation, &tried).is_none() => {
                    self.pause(&key, &mut tried).await;
                }
                Class::Failing => {}
                Class::Doubtful | Class::Final if repeats => self.pause(&key, &mut tried).await,
                Class::Doubtful if doubted.is_none() => {
                    tried.organisations.insert(key.organisation_scope());
                    doubted = Some(key);
                }
                Class::Overloaded | Class::NoModel => return Err(End::Here),
                Class::Doubtful | Class::Final => return Err(End::Everywhere),
            }
        }
    }

    async fn attempt(
        &self,
        key: &Arc<ApiKey>,
        prompt: &Prompt,
        deadlines: Deadlines,
    ) -> Result<Reply, Error> {
        let Pool { http, base_url, .. } = self.pool;
        self.pool.begins(key, prompt.max_tokens);
        let claude = Claude::new(http.clone(), base_url.clone(), ApiKey::clone(key))
            .with_deadlines(deadlines);
        let mut reply = claude.stream(prompt).await?;
        reply.begin().await?;
        self.pool.went_well(key, reply.limits());
        Ok(reply)
    }

    /// What is left of the time for the first event and for the whole; of the first no more than half where somebody
    /// else could still be asked.
    fn deadlines(&mut self, has_another: bool) -> Option<Deadlines> {
        let Deadlines {
            first_event,
            silence,
            whole,
        } = self.pool.deadlines;
        let spent = self.begun.elapsed();
        self.attempts += 1;
        let left = first_event
            .checked_sub(spent)
            .filter(|_| self.attempts <= MOST_ATTEMPTS)?;
        let first_event = if has_another { left / 2 } else { left };
        Some(Deadlines {
            first_event,
            silence,
            whole: whole.saturating_sub(spent),
        })
    }

    /// Lets the same key be asked again, after a moment that differs from one reply to the next.
    async fn pause(&self, key: &ApiKey, tried: &mut Tried) {
        tokio::time::sleep(BACKOFF.mul_f64(1.0 - 0.25 * rand::random::<f64>())).await;
        tried.labels.remove(&key.label);
    }
}
