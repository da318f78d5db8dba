//! The acts of customers, the dashboard and banks, by their names in tests, pages and requests.

use std::fmt;

use serde_json::{Value, json};

use super::account::{Account, period_end};
use super::objects;

/// Something that happens at Stripe to the object with this id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// The customer pays on the page of this checkout.
    Pay(&'a str),
    /// This checkout expires.
    Expire(&'a str),
    /// This customer gets a subscription at the dashboard.
    Subscribe(&'a str),
    /// This subscription will not be renewed.
    CancelAtPeriodEnd(&'a str),
    /// This subscription will be renewed after all, or is no longer paused.
    Resume(&'a str),
    /// This subscription ends at once.
    CancelNow(&'a str),
    /// The bank refuses a payment for this subscription.
    FailPayment(&'a str),
    /// The amount due for this subscription is paid.
    Recover(&'a str),
    /// Stripe stops trying to collect the amount due for this subscription.
    GiveUp(&'a str),
    /// This subscription is paused.
    Pause(&'a str),
    /// The trial of this subscription starts.
    Trial(&'a str),
    /// The paid period of this subscription ends now.
    EndPeriod(&'a str),
    /// A payment of this customer is refunded.
    Refund(&'a str),
    /// A payment of this customer is disputed.
    Dispute(&'a str),
    /// This customer is deleted, which ends all subscriptions at once.
    Delete(&'a str),
}

/// The error of an unknown name; it lists the known ones.
#[derive(Debug)]
pub struct UnknownAction(String);

impl fmt::Display for UnknownAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown action {:?}; there are: {NAMES}", self.0)
    }
}

impl std::error::Error for UnknownAction {}

/// Every name that [`Action::from_name`] accepts.
pub(super) const NAMES: &str = "pay expire subscribe cancel_at_period_end resume cancel_now \
     fail_payment recover give_up pause trial end_period refund dispute delete";

impl<'a> Action<'a> {
    /// The action with this name on a checkout, a customer or a subscription.
    pub fn from_name(name: &str, target: &'a str) -> Result<Self, UnknownAction> {
        Ok(match name {
            "pay" => Self::Pay(target),
            "expire" => Self::Expire(target),
            "subscribe" => Self::Subscribe(target),
            "cancel_at_period_end" => Self::CancelAtPeriodEnd(target),
            "resume" => Self::Resume(target),
            "cancel_now" => Self::CancelNow(target),
            "fail_payment" => Self::FailPayment(target),
            "recover" => Self::Recover(target),
            "give_up" => Self::GiveUp(target),
            "pause" => Self::Pause(target),
            "trial" => Self::Trial(target),
            "end_period" => Self::EndPeriod(target),
            "refund" => Self::Refund(target),
            "dispute" => Self::Dispute(target),
            "delete" => Self::Delete(target),
            _ => return Err(UnknownAction(name.to_owned())),
        })
    }
}

impl Account {
    /// Performs an action if its object exists and its state allows it.
    pub(super) fn act(&mut self, action: Action<'_>) {
        const UPDATED: &str = "customer.subscription.updated";

        match action {
            Action::Pay(session) => self.pay(session),
            Action::Expire(session) => self.expire(session),
            Action::Subscribe(customer) => drop(self.subscribe(customer, json!({}))),
            Action::CancelAtPeriodEnd(id) => {
                // In flexible billing mode the portal sets the time alone.
                let end = self.subscription(id).map(period_end);
                self.set_end(id, false, end);
            }
            Action::Resume(id) => self.resume(id),
            Action::CancelNow(id) => self.cancel(id),
            Action::FailPayment(id) => {
                self.invoice_of(id, false);
                self.set_status(id, "past_due", UPDATED);
            }
            Action::Recover(id) => {
                self.invoice_of(id, true);
                self.set_status(id, "active", UPDATED);
            }
            Action::GiveUp(id) => self.set_status(id, "unpaid", UPDATED),
            Action::Pause(id) => self.set_status(id, "paused", "customer.subscription.paused"),
            Action::Trial(id) => self.set_status(id, "trialing", UPDATED),
            Action::EndPeriod(id) => self.end_period(id),
            Action::Refund(customer) => self.refund(customer),
            Action::Dispute(_) => self.dispute(),
            Action::Delete(customer) => self.delete(customer),
        }
    }

    fn pay(&mut self, session: &str) {
        let Some(at) = self
            .sessions
            .iter()
            .position(|it| objects::id(it) == session && it["status"] == "open")
        else {
            return;
        };
        let customer = self.sessions[at]["customer"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if !self.has_customer(&customer) {
            return;
        }

        let paid = &mut self.sessions[at];
        paid["status"] = json!("complete");
        paid["payment_status"] = json!("paid");
        paid["url"] = Value::Null;

        let metadata = self.subscription_metadata.remove(session);
        let subscription = self.subscribe(&customer, metadata.unwrap_or_else(|| json!({})));

        self.sessions[at]["subscription"] = json!(subscription);
        let complete = self.sessions[at].clone();
        self.emit("checkout.session.completed", &complete);
    }

    fn resume(&mut self, id: &str) {
        let subscription = self.subscription(id);

        if subscription.is_some_and(|subscription| subscription["status"] == "paused") {
            self.set_status(id, "active", "customer.subscription.resumed");
        } else {
            self.set_end(id, false, None);
        }
    }

    fn refund(&mut self, customer: &str) {
        let charge = self.new_id("ch");
        let charge = objects::charge(&charge, customer, true, self.now);

        self.emit("charge.refunded", &charge);
    }

    fn dispute(&mut self) {
        let dispute = self.new_id("dp");
        let charge = self.new_id("ch");
        let dispute = objects::dispute(&dispute, &charge, self.now);

        self.emit("charge.dispute.created", &dispute);
    }

    fn delete(&mut self, customer: &str) {
        let Some(at) = self
            .customers
            .iter()
            .position(|it| objects::id(it) == customer)
        else {
            return;
        };

        let mut subscriptions: Vec<String> = self
            .subscriptions_of(customer)
            .map(|subscription| objects::id(subscription).to_owned())
            .collect();
        subscriptions.reverse();
        for id in subscriptions {
            self.cancel(&id);
        }

        let deleted = self.customers.remove(at);
        self.deleted_customers
            .push(objects::deleted_customer(customer));
        self.emit("customer.deleted", &deleted);
    }

    fn set_status(&mut self, id: &str, status: &str, kind: &str) {
        self.change(id, kind, |subscription, _| {
            subscription["status"] = json!(status);
        });
    }

    fn invoice_of(&mut self, id: &str, paid: bool) {
        if let Some(subscription) = self.subscription(id).cloned() {
            self.invoice(&subscription, paid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for name in NAMES.split_whitespace() {
            assert!(Action::from_name(name, "x").is_ok(), "{name}");
        }

        assert!(Action::from_name("steal", "x").is_err());
    }

    #[test]
    fn a_canceled_subscription_never_changes_again() {
        let mut account = Account::default();
        let id = account.subscribe("cus_1", json!({}));
        account.act(Action::CancelNow(&id));

        let events = account.events.len();
        for action in [
            Action::Recover(&id),
            Action::Resume(&id),
            Action::EndPeriod(&id),
            Action::CancelNow(&id),
        ] {
            account.act(action);
        }

        assert_eq!(account.subscription(&id).unwrap()["status"], "canceled");
        let after: Vec<&str> = account.events[events..]
            .iter()
            .map(|event| event.kind.as_str())
            .collect();
        assert_eq!(after, ["invoice.paid"]);
    }
}
