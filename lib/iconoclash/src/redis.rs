//! Redis behind a breaker: while it does not answer nobody waits for it, and one request at a time tries whether it is
//! back. Whoever is refused here does the same by other means, so a refusal is no failure of the request.

use serde::de::DeserializeOwned;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use upstash_redis_rs::{Command, Results};

use crate::http::request_log;

/// Failures in a row after which Redis is left alone.
const FAILURES: u32 = 3;
/// How long it is left alone before one request tries again.
const PAUSE: Duration = Duration::from_secs(5);

/// Why Redis gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It failed a moment ago and was not asked.
    #[error("Redis is left alone for a moment, because it did not answer")]
    LeftAlone,
    /// It was asked.
    #[error(transparent)]
    Asked(#[from] upstash_redis_rs::Error),
}

impl From<Error> for crate::http::error::Error {
    fn from(error: Error) -> Self {
        match &error {
            Error::Asked(asked) if !asked.is_unavailable() => Self::internal(error),
            _ => Self::unavailable(error),
        }
    }
}

/// The client, and whether it is worth asking.
#[derive(Debug)]
pub struct Redis {
    client: upstash_redis_rs::Redis,
    breaker: Breaker,
}

impl Redis {
    /// Puts a breaker before a client.
    pub fn new(client: upstash_redis_rs::Redis) -> Self {
        Self {
            client,
            breaker: Breaker::default(),
        }
    }

    /// Runs one command.
    pub async fn exec<T: DeserializeOwned>(&self, command: &Command) -> Result<T, Error> {
        self.ask(self.client.exec(command)).await
    }

    /// Runs commands in order in one request.
    pub async fn pipeline(&self, commands: &[Command]) -> Result<Results, Error> {
        self.ask(self.client.pipeline(commands)).await
    }

    async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, upstash_redis_rs::Error>>,
    ) -> Result<T, Error> {
        let Some(attempt) = self.breaker.attempt(Instant::now()) else {
            return Err(Error::LeftAlone);
        };
        request_log::add(|log| log.redis_requests += 1);
        let answer = call.await;
        match &answer {
            Err(error) if error.is_unavailable() => {
                request_log::add(|log| log.redis_failures += 1);
                attempt.failed(Instant::now());
            }
            _ => attempt.succeeded(),
        }
        Ok(answer?)
    }
}

/// Counts failures in a row.
#[derive(Debug, Default)]
struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Set while it is left alone: when to try again, and whether somebody does.
    open: Option<(Instant, bool)>,
}

impl Breaker {
    /// Leave to ask, or none.
    fn attempt(&self, now: Instant) -> Option<Attempt<'_>> {
        let mut state = self.state();
        match &mut state.open {
            None => Some(Attempt {
                breaker: self,
                is_probe: false,
            }),
            Some((until, probing)) if now >= *until && !*probing => {
                *probing = true;
                Some(Attempt {
                    breaker: self,
                    is_probe: true,
                })
            }
            Some(_) => None,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request under way. Dropped without an outcome, as when its client leaves, it lets another one probe.
struct Attempt<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Attempt<'_> {
    fn succeeded(mut self) {
        self.is_probe = false;
        *self.breaker.state() = State::default();
    }

    fn failed(mut self, now: Instant) {
        self.is_probe = false;
        let mut state = self.breaker.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            state.open = Some((now + PAUSE, false));
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some((_, probing)) = &mut self.breaker.state().open
        {
            *probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_in_a_row_one_probe_at_a_time_tries_again() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let ask = |after: Duration| breaker.attempt(start + after);
        ask(Duration::ZERO).unwrap().failed(start);
        ask(Duration::ZERO).unwrap().succeeded();
        for _ in 0..FAILURES {
            ask(Duration::ZERO).unwrap().failed(start);
        }
        assert!(ask(PAUSE / 2).is_none(), "left alone");
        let probe = ask(PAUSE).unwrap();
        assert!(ask(PAUSE).is_none(), "one probe at a time");
        drop(probe);
        let probe = ask(PAUSE).expect("a probe that was given up makes room for another");
        probe.failed(start + PAUSE);
        assert!(ask(PAUSE + PAUSE / 2).is_none());
        ask(PAUSE * 2).unwrap().succeeded();
        assert!(ask(PAUSE * 2).is_some() && ask(PAUSE * 2).is_some());
    }

    #[test]
    fn answers_that_were_under_way_when_it_opened_neither_shorten_nor_skip_the_pause() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let late = breaker.attempt(start).unwrap();
        for _ in 0..FAILURES {
            breaker.attempt(start).unwrap().failed(start);
        }
        late.failed(start + PAUSE / 2);
        assert!(breaker.attempt(start + PAUSE).is_none());
        assert!(breaker.attempt(start + PAUSE * 3 / 2).is_some());
    }
}
