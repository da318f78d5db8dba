//! The state of the Stripe account, and the changes that time alone causes.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::delivery::Event;
use super::objects;

/// A period. Every month has 30 days, which makes the end of a period easy to reach.
const MONTH_SECS: i64 = 30 * 24 * 3600;

/// The first answer to an idempotency key.
#[derive(Clone)]
pub(super) struct KeyedAnswer {
    pub(super) request: String,
    pub(super) status: u16,
    pub(super) body: Value,
}

/// All objects of the account.
#[derive(Default)]
pub(super) struct Account {
    pub(super) now: i64,
    last_id: u64,
    pub(super) customers: Vec<Value>,
    /// Customers that were deleted, as Stripe shows them. Their subscriptions can still be listed.
    pub(super) deleted_customers: Vec<Value>,
    pub(super) sessions: Vec<Value>,
    /// The metadata of a checkout's future subscription, which the checkout itself does not show.
    pub(super) subscription_metadata: HashMap<String, Value>,
    pub(super) portals: Vec<Value>,
    pub(super) subscriptions: Vec<Value>,
    /// Answers by idempotency key.
    pub(super) answers: HashMap<String, KeyedAnswer>,
    /// Events that are not sent yet.
    pub(super) events: Vec<Event>,
}

impl Account {
    pub(super) fn new_id(&mut self, prefix: &str) -> String {
        self.last_id += 1;
        format!("{prefix}_local{:08}", self.last_id)
    }

    /// Adds an event about an object.
    pub(super) fn emit(&mut self, kind: &str, object: &Value) {
        let id = self.new_id("evt");
        let payload = objects::event(&id, kind, object, self.now).to_string();

        self.events.push(Event {
            id,
            kind: kind.to_owned(),
            payload,
        });
    }

    pub(super) fn add_customer(&mut self, id: &str, email: &str) {
        let customer = objects::customer(id, email, json!({}), self.now);
        self.customers.push(customer);
    }

    pub(super) fn has_customer(&self, id: &str) -> bool {
        self.customers
            .iter()
            .any(|customer| objects::id(customer) == id)
    }

    pub(super) fn has_deleted_customer(&self, id: &str) -> bool {
        self.deleted_customers
            .iter()
            .any(|customer| objects::id(customer) == id)
    }

    pub(super) fn session(&self, id: &str) -> Option<&Value> {
        self.sessions
            .iter()
            .find(|session| objects::id(session) == id)
    }

    pub(super) fn subscription(&self, id: &str) -> Option<&Value> {
        self.subscriptions
            .iter()
            .find(|subscription| objects::id(subscription) == id)
    }

    /// A customer's subscriptions, newest first.
    pub(super) fn subscriptions_of(&self, customer: &str) -> impl Iterator<Item = &Value> {
        self.subscriptions
            .iter()
            .rev()
            .filter(move |subscription| subscription["customer"] == customer)
    }

    /// Starts a subscription whose first month is paid.
    pub(super) fn subscribe(&mut self, customer: &str, metadata: Value) -> String {
        let id = self.new_id("sub");
        let end = self.now + MONTH_SECS;
        let subscription = objects::subscription(&id, customer, metadata, self.now, end);

        self.emit("customer.subscription.created", &subscription);
        self.invoice(&subscription, true);

        let charge = self.new_id("ch");
        let charge = objects::charge(&charge, customer, false, self.now);
        self.emit("charge.succeeded", &charge);

        self.subscriptions.push(subscription);
        id
    }

    pub(super) fn invoice(&mut self, subscription: &Value, paid: bool) {
        let kind = match paid {
            true => "invoice.paid",
            false => "invoice.payment_failed",
        };

        let id = self.new_id("in");
        let invoice = objects::invoice(&id, subscription, paid, self.now);
        self.emit(kind, &invoice);
    }

    /// Changes a subscription and emits an event; a canceled one never changes again.
    pub(super) fn change(&mut self, id: &str, kind: &str, change: impl FnOnce(&mut Value, i64)) {
        let now = self.now;
        let subscription = self
            .subscriptions
            .iter_mut()
            .find(|subscription| objects::id(subscription) == id)
            .filter(|subscription| subscription["status"] != "canceled");
        let Some(subscription) = subscription else {
            return;
        };

        change(subscription, now);
        let changed = subscription.clone();
        self.emit(kind, &changed);
    }

    /// Sets or removes the end of a subscription.
    ///
    /// `at_period_end` is the flag of the API; the portal sets the time alone.
    pub(super) fn set_end(&mut self, id: &str, at_period_end: bool, end: Option<i64>) {
        self.change(id, "customer.subscription.updated", |subscription, now| {
            subscription["cancel_at_period_end"] = json!(at_period_end);
            subscription["canceled_at"] = json!(end.map(|_| now));
            subscription["cancel_at"] = json!(end);
        });
    }

    /// Cancels a subscription at once.
    pub(super) fn cancel(&mut self, id: &str) {
        self.change(id, "customer.subscription.deleted", |subscription, now| {
            subscription["status"] = json!("canceled");
            subscription["ended_at"] = json!(now);
            subscription["canceled_at"] = json!(now);
        });
    }

    /// Moves the time forward: checkouts expire and periods end.
    pub(super) fn advance_to(&mut self, now: i64) {
        self.now = now;

        let expired: Vec<String> = self
            .sessions
            .iter()
            .filter(|it| it["status"] == "open" && seconds(&it["expires_at"]) <= now)
            .map(|session| objects::id(session).to_owned())
            .collect();
        for id in expired {
            self.expire(&id);
        }

        let ended: Vec<String> = self
            .subscriptions
            .iter()
            .filter(|it| it["status"] != "canceled" && period_end(it) <= now)
            .map(|subscription| objects::id(subscription).to_owned())
            .collect();
        for id in ended {
            self.end_period(&id);
        }
    }

    /// Ends a period: the subscription ends with it or starts the next one.
    pub(super) fn end_period(&mut self, id: &str) {
        let Some(subscription) = self.subscription(id).cloned() else {
            return;
        };
        if is_ending(&subscription) {
            return self.cancel(id);
        }

        self.change(id, "customer.subscription.updated", |subscription, now| {
            let item = &mut subscription["items"]["data"][0];
            item["current_period_start"] = json!(now);
            item["current_period_end"] = json!(now + MONTH_SECS);
        });
        if subscription["status"] == "active" {
            self.invoice(&subscription, true);
        }
    }

    /// Expires a checkout that is still open.
    pub(super) fn expire(&mut self, session: &str) {
        let session = self
            .sessions
            .iter_mut()
            .find(|it| objects::id(it) == session && it["status"] == "open");
        let Some(session) = session else {
            return;
        };

        session["status"] = json!("expired");
        session["url"] = Value::Null;
        let expired = session.clone();
        self.emit("checkout.session.expired", &expired);
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
