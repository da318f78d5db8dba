//! Everything that Stripe knows, and what time alone brings about.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::deliver::Event;
use super::object;

/// A month, to make the end of one easy to reach.
pub(super) const MONTH_SECS: i64 = 30 * 24 * 3600;

/// Everything that Stripe knows.
#[derive(Default)]
pub(super) struct World {
    pub(super) now: i64,
    ids: u64,
    pub(super) customers: Vec<Value>,
    pub(super) sessions: Vec<Value>,
    /// What a checkout will write on its subscription, which the checkout itself does not show.
    pub(super) subscription_metadata: HashMap<String, Value>,
    pub(super) portals: Vec<Value>,
    pub(super) subscriptions: Vec<Value>,
    /// By idempotency key: what was asked, and what was answered.
    pub(super) answers: HashMap<String, (String, u16, Value)>,
    /// What happened and is not sent yet.
    pub(super) events: Vec<Event>,
}

impl World {
    pub(super) fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        format!("{prefix}_local{:08}", self.ids)
    }

    pub(super) fn happens(&mut self, kind: &str, object: &Value) {
        let id = self.id("evt");
        let payload = object::event(&id, kind, object, self.now).to_string();
        self.events.push(Event {
            id,
            kind: kind.to_owned(),
            payload,
        });
    }

    pub(super) fn add_customer(&mut self, id: &str, email: &str) {
        self.customers
            .push(object::customer(id, email, json!({}), self.now));
    }

    pub(super) fn has_customer(&self, id: &str) -> bool {
        self.customers
            .iter()
            .any(|customer| object::id(customer) == id)
    }

    /// Begins a subscription for a month that is paid.
    pub(super) fn subscribe(&mut self, customer: &str, metadata: Value) -> String {
        let id = self.id("sub");
        let subscription =
            object::subscription(&id, customer, metadata, self.now, self.now + MONTH_SECS);
        self.happens("customer.subscription.created", &subscription);
        self.invoice(&subscription, true);
        let charge = self.id("ch");
        self.happens(
            "charge.succeeded",
            &object::charge(&charge, customer, false, self.now),
        );
        self.subscriptions.push(subscription);
        id
    }

    pub(super) fn invoice(&mut self, subscription: &Value, paid: bool) {
        let id = self.id("in");
        let kind = if paid {
            "invoice.paid"
        } else {
            "invoice.payment_failed"
        };
        self.happens(kind, &object::invoice(&id, subscription, paid, self.now));
    }

    /// Changes a subscription and says so; one that has ended never changes again.
    pub(super) fn change(&mut self, id: &str, kind: &str, change: impl FnOnce(&mut Value, i64)) {
        let now = self.now;
        let found = self
            .subscriptions
            .iter_mut()
            .find(|it| object::id(it) == id);
        let Some(subscription) = found.filter(|it| it["status"] != "canceled") else {
            return;
        };
        change(subscription, now);
        let changed = subscription.clone();
        self.happens(kind, &changed);
    }

    /// Sets when a subscription ends, or that it goes on; `with_period` is how the API is told, and then says it.
    pub(super) fn set_end(&mut self, id: &str, with_period: bool, end: Option<i64>) {
        self.change(id, "customer.subscription.updated", |it, now| {
            it["cancel_at_period_end"] = json!(with_period);
            it["canceled_at"] = json!(end.map(|_| now));
            it["cancel_at"] = json!(end);
        });
    }

    /// Ends a subscription at once.
    pub(super) fn cancel(&mut self, id: &str) {
        self.change(id, "customer.subscription.deleted", |it, now| {
            it["status"] = json!("canceled");
            it["ended_at"] = json!(now);
            it["canceled_at"] = json!(now);
        });
    }

    pub(super) fn subscription(&self, id: &str) -> Option<&Value> {
        self.subscriptions.iter().find(|it| object::id(it) == id)
    }

    /// Periods and checkouts end when they are over.
    pub(super) fn pass_time(&mut self, now: i64) {
        self.now = now;
        for at in 0..self.sessions.len() {
            if self.sessions[at]["status"] == "open"
                && seconds(&self.sessions[at]["expires_at"]) <= now
            {
                self.expire(at);
            }
        }
        let over = |it: &&Value| it["status"] != "canceled" && period_end(it) <= now;
        let ids: Vec<String> = self
            .subscriptions
            .iter()
            .filter(over)
            .map(|it| object::id(it).to_owned())
            .collect();
        for id in ids {
            self.end_period(&id);
        }
    }

    /// Ends the period: the subscription ends with it, or begins the next one.
    pub(super) fn end_period(&mut self, id: &str) {
        let Some(subscription) = self.subscription(id).cloned() else {
            return;
        };
        if is_ending(&subscription) {
            return self.cancel(id);
        }
        let now = self.now;
        self.change(id, "customer.subscription.updated", |it, _| {
            let item = &mut it["items"]["data"][0];
            item["current_period_start"] = json!(now);
            item["current_period_end"] = json!(now + MONTH_SECS);
        });
        if subscription["status"] == "active" {
            self.invoice(&subscription, true);
        }
    }

    pub(super) fn expire(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        session["status"] = json!("expired");
        session["url"] = Value::Null;
        let expired = session.clone();
        self.happens("checkout.session.expired", &expired);
    }
}

pub(super) fn is_ending(subscription: &Value) -> bool {
    subscription["cancel_at_period_end"] == true || subscription["cancel_at"].is_number()
}

pub(super) fn period_end(subscription: &Value) -> i64 {
    seconds(&subscription["items"]["data"][0]["current_period_end"])
}

fn seconds(value: &Value) -> i64 {
    value.as_i64().unwrap_or(i64::MAX)
}
