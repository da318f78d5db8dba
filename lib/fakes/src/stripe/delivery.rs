//! The delivery of events: signed, and lossy, late, repeated or out of order on request.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::sync::lock;

/// Pauses before an event that was not answered with 2xx is sent again; Stripe's own last for days.
const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of deliveries that the page shows.
const MAX_ATTEMPTS_SHOWN: usize = 40;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `evt_…`
    pub id: String,
    /// The type, such as `invoice.paid`.
    pub kind: String,
    /// The body of the webhook's request.
    pub payload: String,
}

/// One way to deliver an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Once, in order.
    #[default]
    Once,
    /// Twice.
    Twice,
    /// Never.
    Never,
    /// After so many milliseconds, while later events go ahead.
    Late(u64),
    /// After the next event.
    AfterNext,
}

/// Every name that [`Delivery::from_str`] accepts.
pub(super) const NAMES: &str = "once twice never late:ms after_next";

impl FromStr for Delivery {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let delivery = match name {
            "once" => Some(Self::Once),
            "twice" => Some(Self::Twice),
            "never" => Some(Self::Never),
            "after_next" => Some(Self::AfterNext),
            _ => name
                .strip_prefix("late:")
                .and_then(|ms| ms.parse().ok())
                .map(Self::Late),
        };

        delivery.ok_or_else(|| format!("unknown delivery {name:?}; there are: {NAMES}"))
    }
}

/// The `Stripe-Signature` of a payload: the scheme in use, and the one of test events.
pub fn sign(secret: &str, at: i64, payload: &str) -> String {
    let mac = |key: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
        mac.update(format!("{at}.{payload}").as_bytes());
        hex::encode(mac.finalize().into_bytes())
    };

    format!("t={at},v1={},v0={}", mac(secret.as_bytes()), mac(b"v0"))
}

/// One attempt to deliver an event, for the page.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) event: Event,
    pub(super) outcome: String,
}

pub(super) struct Deliveries {
    /// The webhook; without one, events wait to be taken.
    url: Option<String>,
    sender: Arc<Sender>,
    waiting: Mutex<VecDeque<Event>>,
}

struct Sender {
    http: reqwest::Client,
    secret: String,
    plans: Mutex<Plans>,
    /// The number of batches and retries under way.
    pending: watch::Sender<usize>,
    attempts: Mutex<VecDeque<Attempt>>,
}

/// The deliveries of future events.
#[derive(Default)]
struct Plans {
    next: VecDeque<Delivery>,
    always: Delivery,
    /// Events that wait for the next one to go first.
    held: Vec<Event>,
}

impl Deliveries {
    pub(super) fn new(url: Option<String>, secret: String) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_TIMEOUT)
            .build();

        let sender = Sender {
            http: http.unwrap_or_default(),
            secret,
            plans: Mutex::default(),
            pending: watch::Sender::new(0),
            attempts: Mutex::default(),
        };
        Self {
            url,
            sender: Arc::new(sender),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn next(&self, delivery: Delivery) {
        lock(&self.sender.plans).next.push_back(delivery);
    }

    pub(super) fn always(&self, delivery: Delivery) {
        lock(&self.sender.plans).always = delivery;
    }

    /// Delivers all future events once.
    pub(super) fn reset(&self) {
        let mut plans = lock(&self.sender.plans);
        plans.next.clear();
        plans.always = Delivery::Once;
    }

    pub(super) fn take(&self) -> Vec<Event> {
        lock(&self.waiting).drain(..).collect()
    }

    pub(super) fn take_for(&self, customer: &str) -> Vec<Event> {
        let name = format!("\"{customer}\"");
        let mut waiting = lock(&self.waiting);

        let (taken, left): (VecDeque<Event>, VecDeque<Event>) = waiting
            .drain(..)
            .partition(|event| event.payload.contains(&name));
        *waiting = left;

        Vec::from(taken)
    }

    /// The last attempts, newest first.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        lock(&self.sender.attempts).iter().rev().cloned().collect()
    }

    /// Waits until nothing is under way.
    pub(super) async fn idle(&self) {
        let mut pending = self.sender.pending.subscribe();
        let _ = pending.wait_for(|pending| *pending == 0).await;
    }

    /// Sends a batch of events, each batch in order and independent of other batches.
    pub(super) fn send(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let Some(url) = self.url.clone() else {
            return lock(&self.waiting).extend(events);
        };

        let sender = Arc::clone(&self.sender);
        sender.pending.send_modify(|pending| *pending += 1);
        tokio::spawn(async move {
            sender.send_batch(&url, events).await;
            sender.pending.send_modify(|pending| *pending -= 1);
        });
    }
}

impl Sender {
    async fn send_batch(self: &Arc<Self>, url: &str, events: Vec<Event>) {
        for event in events {
            for (event, pause) in self.plan(event) {
                self.post(url, event, pause).await;
            }
        }

        let held: Vec<Event> = lock(&self.plans).held.drain(..).collect();
        for event in held {
            self.post(url, event, Duration::ZERO).await;
        }
    }

    /// The events to send when it is this event's turn, each with the pause before it.
    fn plan(&self, event: Event) -> Vec<(Event, Duration)> {
        let mut plans = lock(&self.plans);
        let delivery = plans.next.pop_front().unwrap_or(plans.always);

        let mut due = match delivery {
            Delivery::Once => vec![(event, Duration::ZERO)],
            Delivery::Twice => vec![(event.clone(), Duration::ZERO), (event, Duration::ZERO)],
            Delivery::Late(ms) => vec![(event, Duration::from_millis(ms))],
            Delivery::Never => {
                drop(plans);
                self.record(event, "lost");
                return Vec::new();
            }
            Delivery::AfterNext => {
                plans.held.push(event);
                return Vec::new();
            }
        };

        let held = plans.held.drain(..);
        due.extend(held.map(|event| (event, Duration::ZERO)));
        due
    }

    /// Sends an event. A late or refused one continues in the background; others overtake it.
    async fn post(self: &Arc<Self>, url: &str, event: Event, pause: Duration) {
        if pause.is_zero() && self.attempt(url, &event).await {
            return;
        }

        let sender = Arc::clone(self);
        let url = url.to_owned();
        let pauses = match pause.is_zero() {
            true => RETRY_PAUSES.to_vec(),
            false => [&[pause][..], &RETRY_PAUSES].concat(),
        };

        sender.pending.send_modify(|pending| *pending += 1);
        tokio::spawn(async move {
            for pause in pauses {
                sleep(pause).await;
                if sender.attempt(&url, &event).await {
                    break;
                }
            }
            sender.pending.send_modify(|pending| *pending -= 1);
        });
    }

    /// Sends an event once and returns whether it was accepted.
    async fn attempt(&self, url: &str, event: &Event) -> bool {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let signature = sign(&self.secret, now, &event.payload);

        let answer = self
            .http
            .post(url)
            .header("stripe-signature", signature)
            .header("content-type", "application/json; charset=utf-8")
            .body(event.payload.clone())
            .send()
            .await;

        match answer {
            Ok(answer) => {
                self.record(event.clone(), answer.status().as_str());
                answer.status().is_success()
            }
            Err(_) => {
                self.record(event.clone(), "no answer");
                false
            }
        }
    }

    fn record(&self, event: Event, outcome: &str) {
        let outcome = outcome.to_owned();
        let mut attempts = lock(&self.attempts);

        attempts.push_back(Attempt { event, outcome });
        if attempts.len() > MAX_ATTEMPTS_SHOWN {
            attempts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for name in NAMES.split_whitespace() {
            let name = name.replace(":ms", ":20");
            assert!(name.parse::<Delivery>().is_ok(), "{name}");
        }

        assert!("late".parse::<Delivery>().is_err());
        assert!("thrice".parse::<Delivery>().is_err());
    }
}
