//! The deadlines of one reply.

use std::time::Duration;

use tokio::time::Instant;

use crate::Phase;

/// Time limits of a reply. All but `silence` count from the start of the call.
///
/// Connecting has a deadline of its own in the `reqwest::Client`.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the first event. The head of the response alone does not count.
    pub first_event: Duration,
    /// Between two events. The provider's `ping` is an event.
    pub silence: Duration,
    /// Until `message_stop`.
    pub whole: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            first_event: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            whole: Duration::from_secs(240),
        }
    }
}

/// Measures a reply from its start and from its last event, however often it is polled.
pub(crate) struct ReplyTimer {
    started_at: Instant,
    last_event_at: Option<Instant>,
    deadlines: Deadlines,
}

impl ReplyTimer {
    pub(crate) fn start(deadlines: Deadlines) -> Self {
        Self {
            started_at: Instant::now(),
            last_event_at: None,
            deadlines,
        }
    }

    pub(crate) fn record_event(&mut self) {
        self.last_event_at = Some(Instant::now());
    }

    pub(crate) fn first_event_deadline(&self) -> Instant {
        self.started_at + self.deadlines.first_event.min(self.deadlines.whole)
    }

    pub(crate) fn whole_deadline(&self) -> Instant {
        self.started_at + self.deadlines.whole
    }

    /// The next deadline, and the phase that it ends.
    pub(crate) fn next_deadline(&self) -> (Instant, Phase) {
        let whole = (self.whole_deadline(), Phase::Whole);
        let pause = match self.last_event_at {
            None => (
                self.started_at + self.deadlines.first_event,
                Phase::FirstEvent,
            ),
            Some(at) => (at + self.deadlines.silence, Phase::Silence),
        };

        if pause.0 < whole.0 { pause } else { whole }
    }
}
