//! Events on their way: signed, and as lossy, late, repeated and unordered as they are asked to be.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::sleep;

use super::lock;

/// Pauses before an event that was not answered with 2xx is sent again; Stripe's own last for days.
const AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How many of the last deliveries the page shows.
const REMEMBERED: usize = 40;

/// Something that happened, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`
    pub id: String,
    /// Such as `invoice.paid`.
    pub kind: String,
    /// The body.
    pub payload: String,
}

/// How an event is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Once, after the one before.
    #[default]
    Once,
    /// Twice.
    Twice,
    /// Never.
    Never,
    /// After so many milliseconds, others going ahead.
    Late(u64),
    /// After the next one.
    AfterNext,
}

/// Every name that [`Delivery::from_str`] knows.
pub(super) const NAMES: &str = "once twice never late:ms after_next";

impl FromStr for Delivery {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "once" => Ok(Self::Once),
            "twice" => Ok(Self::Twice),
            "never" => Ok(Self::Never),
            "after_next" => Ok(Self::AfterNext),
            _ => name
                .strip_prefix("late:")
                .and_then(|ms| ms.parse().ok())
                .map(Self::Late)
                .ok_or_else(|| format!("unknown delivery {name:?}; there are: {NAMES}")),
        }
    }
}

/// The `Stripe-Signature` of a payload: the scheme that counts, and the one of test events that does not.
pub fn sign(secret: &str, at: i64, payload: &str) -> String {
    let mac = |key: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
        mac.update(format!("{at}.{payload}").as_bytes());
        mac.finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    format!("t={at},v1={},v0={}", mac(secret.as_bytes()), mac(b"v0"))
}

/// What became of an event, for the page.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) event: Event,
    pub(super) outcome: String,
}

pub(super) struct Deliveries {
    url: Option<String>,
    shared: Arc<Line>,
}

struct Line {
    http: reqwest::Client,
    secret: String,
    waiting: Mutex<VecDeque<Event>>,
    plans: Mutex<Plans>,
    /// Events that are neither answered, lost nor given up.
    open: watch::Sender<usize>,
    sent: Mutex<VecDeque<Sent>>,
}

#[derive(Default)]
struct Plans {
    next: VecDeque<Delivery>,
    always: Delivery,
    held: Vec<Event>,
}

impl Deliveries {
    pub(super) fn new(url: Option<String>, secret: String) -> Self {
        let line = Line {
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(ANSWER_WITHIN)
                .build()
                .unwrap_or_default(),
            secret,
            waiting: Mutex::default(),
            plans: Mutex::default(),
            open: watch::Sender::new(0),
            sent: Mutex::default(),
        };
        Self {
            url,
            shared: Arc::new(line),
        }
    }

    pub(super) fn next(&self, delivery: Delivery) {
        lock(&self.shared.plans).next.push_back(delivery);
    }

    pub(super) fn always(&self, delivery: Delivery) {
        lock(&self.shared.plans).always = delivery;
    }

    pub(super) fn forget(&self) {
        let mut plans = lock(&self.shared.plans);
        plans.next.clear();
        plans.always = Delivery::Once;
    }

    pub(super) fn take(&self) -> Vec<Event> {
        lock(&self.shared.waiting).drain(..).collect()
    }

    pub(super) fn take_of(&self, customer: &str) -> Vec<Event> {
        let name = format!("\"{customer}\"");
        let mut waiting = lock(&self.shared.waiting);
        let (theirs, others): (VecDeque<Event>, VecDeque<Event>) = waiting
            .drain(..)
            .partition(|event| event.payload.contains(&name));
        *waiting = others;
        Vec::from(theirs)
    }

    pub(super) fn recent(&self) -> Vec<Sent> {
        lock(&self.shared.sent).iter().rev().cloned().collect()
    }

    pub(super) async fn idle(&self) {
        let _ = self
            .shared
            .open
            .subscribe()
            .wait_for(|open| *open == 0)
            .await;
    }

    /// Sends events off; without an address they wait to be taken.
    pub(super) fn send(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let Some(url) = self.url.clone() else {
            return lock(&self.shared.waiting).extend(events);
        };
        let line = Arc::clone(&self.shared);
        line.open.send_modify(|open| *open += 1);
        // Nothing waits for it but the next batch of the same moment: each is in order within itself.
        tokio::spawn(async move {
            for event in events {
                for (event, after) in line.plan(event) {
                    line.clone().post(&url, event, after).await;
                }
            }
            let left: Vec<Event> = lock(&line.plans).held.drain(..).collect();
            for event in left {
                line.clone().post(&url, event, Duration::ZERO).await;
            }
            line.open.send_modify(|open| *open -= 1);
        });
    }
}

impl Line {
    /// What is sent now that this event is next, and after which pause.
    fn plan(&self, event: Event) -> Vec<(Event, Duration)> {
        let mut plans = lock(&self.plans);
        let delivery = plans.next.pop_front().unwrap_or(plans.always);
        let mut now = match delivery {
            Delivery::Once => vec![(event, Duration::ZERO)],
            Delivery::Twice => vec![(event.clone(), Duration::ZERO), (event, Duration::ZERO)],
            Delivery::Late(ms) => vec![(event, Duration::from_millis(ms))],
            Delivery::Never => {
                drop(plans);
                self.note(event, "lost");
                return Vec::new();
            }
            Delivery::AfterNext => {
                plans.held.push(event);
                return Vec::new();
            }
        };
        now.extend(plans.held.drain(..).map(|event| (event, Duration::ZERO)));
        now
    }

    /// Sends an event; one that is late or refused goes on by itself while others are sent.
    async fn post(self: Arc<Self>, url: &str, event: Event, after: Duration) {
        if after.is_zero() && self.once(url, &event).await {
            return;
        }
        let url = url.to_owned();
        self.open.send_modify(|open| *open += 1);
        tokio::spawn(async move {
            let pauses = if after.is_zero() {
                AGAIN.to_vec()
            } else {
                [&[after][..], &AGAIN].concat()
            };
            for pause in pauses {
                sleep(pause).await;
                if self.once(&url, &event).await {
                    break;
                }
            }
            self.open.send_modify(|open| *open -= 1);
        });
    }

    async fn once(&self, url: &str, event: &Event) -> bool {
        let signature = sign(
            &self.secret,
            OffsetDateTime::now_utc().unix_timestamp(),
            &event.payload,
        );
        let request = self
            .http
            .post(url)
            .header("stripe-signature", signature)
            .body(event.payload.clone());
        let answer = request
            .header("content-type", "application/json; charset=utf-8")
            .send()
            .await;
        match answer {
            Ok(answer) => {
                self.note(event.clone(), answer.status().as_str());
                answer.status().is_success()
            }
            Err(_) => {
                self.note(event.clone(), "no answer");
                false
            }
        }
    }

    fn note(&self, event: Event, outcome: &str) {
        let mut sent = lock(&self.sent);
        sent.push_back(Sent {
            event,
            outcome: outcome.to_owned(),
        });
        if sent.len() > REMEMBERED {
            sent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for name in NAMES.split_whitespace() {
            assert!(
                name.replace(":ms", ":20").parse::<Delivery>().is_ok(),
                "{name}"
            );
        }
        assert!("late".parse::<Delivery>().is_err() && "thrice".parse::<Delivery>().is_err());
    }
}
