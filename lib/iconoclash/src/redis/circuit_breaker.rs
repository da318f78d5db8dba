//! A circuit breaker: after failures in a row it rejects requests for a pause, then lets one probe through.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Failures in a row that open the circuit.
const FAILURE_THRESHOLD: u32 = 3;
/// How long the circuit stays open before a probe.
const OPEN_TIME: Duration = Duration::from_secs(5);

/// Tracks whether requests may be sent.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker(Mutex<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    /// Requests are sent.
    Closed { failures: u32 },
    /// Requests are rejected until this moment; the first one after it is a probe.
    Open { until: Instant },
    /// A probe is running, other requests are rejected. `until` is when the circuit allowed the probe.
    HalfOpen { until: Instant },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl CircuitBreaker {
    /// Permission to send one request, or `None` while the circuit is open.
    pub(super) fn attempt(&self, now: Instant) -> Option<Attempt<'_>> {
        let mut state = self.state();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until } if now >= until => {
                *state = State::HalfOpen { until };
                true
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };

        Some(Attempt {
            breaker: self,
            is_probe,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One running request. A probe that is dropped without an outcome, as when its client leaves, allows another probe.
pub(super) struct Attempt<'a> {
    breaker: &'a CircuitBreaker,
    is_probe: bool,
}

impl Attempt<'_> {
    pub(super) fn succeeded(mut self) {
        self.is_probe = false;
        *self.breaker.state() = State::default();
    }

    pub(super) fn failed(mut self, now: Instant) {
        self.is_probe = false;
        let mut state = self.breaker.state();

        *state = match *state {
            State::Closed { failures } if failures + 1 < FAILURE_THRESHOLD => State::Closed {
                failures: failures + 1,
            },
            _ => State::Open {
                until: now + OPEN_TIME,
            },
        };
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        let mut state = self.breaker.state();
        if let State::HalfOpen { until } = *state {
            *state = State::Open { until };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail_until_open(breaker: &CircuitBreaker, now: Instant) {
        for _ in 0..FAILURE_THRESHOLD {
            breaker.attempt(now).unwrap().failed(now);
        }
    }

    #[test]
    fn failures_in_a_row_open_the_circuit_and_one_probe_at_a_time_may_close_it() {
        let breaker = CircuitBreaker::default();
        let start = Instant::now();
        let attempt = |after: Duration| breaker.attempt(start + after);

        attempt(Duration::ZERO).unwrap().failed(start);
        attempt(Duration::ZERO).unwrap().succeeded();
        fail_until_open(&breaker, start);
        assert!(attempt(OPEN_TIME / 2).is_none(), "open");

        let probe = attempt(OPEN_TIME).unwrap();
        assert!(attempt(OPEN_TIME).is_none(), "one probe at a time");
        drop(probe);

        let probe = attempt(OPEN_TIME).expect("a dropped probe allows another");
        probe.failed(start + OPEN_TIME);
        assert!(attempt(OPEN_TIME + OPEN_TIME / 2).is_none());

        attempt(OPEN_TIME * 2).unwrap().succeeded();
        let first = attempt(OPEN_TIME * 2);
        let second = attempt(OPEN_TIME * 2);
        assert!(first.is_some() && second.is_some());
    }

    #[test]
    fn a_failure_that_arrives_while_the_circuit_is_open_restarts_the_pause() {
        let breaker = CircuitBreaker::default();
        let start = Instant::now();

        let late = breaker.attempt(start).unwrap();
        fail_until_open(&breaker, start);
        late.failed(start + OPEN_TIME / 2);

        assert!(breaker.attempt(start + OPEN_TIME).is_none());
        assert!(breaker.attempt(start + OPEN_TIME * 3 / 2).is_some());
    }
}
