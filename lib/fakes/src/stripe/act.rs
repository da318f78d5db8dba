//! What a customer, the dashboard or a bank does, by a name that a test, a page or a request gives it.

use std::fmt;

use serde_json::json;

use super::object;
use super::world::World;

/// Something that happens at Stripe, to the object that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// The customer pays on the page of this checkout.
    Pay(&'a str),
    /// This checkout's page closes.
    Expire(&'a str),
    /// This customer gets a subscription at the dashboard.
    Subscribe(&'a str),
    /// This subscription is not going to be renewed.
    CancelAtPeriodEnd(&'a str),
    /// It is, after all.
    Resume(&'a str),
    /// This subscription ends at once.
    CancelNow(&'a str),
    /// A payment for this subscription is refused by the bank.
    FailPayment(&'a str),
    /// What is due for this subscription is paid.
    Recover(&'a str),
    /// Nobody tries to collect what is due for this subscription any more.
    GiveUp(&'a str),
    /// This subscription is paused.
    Pause(&'a str),
    /// Its trial begins.
    Trial(&'a str),
    /// The period that is paid for ends now.
    EndPeriod(&'a str),
    /// A payment of this customer goes back.
    Refund(&'a str),
    /// A payment of this customer is disputed.
    Dispute(&'a str),
    /// This customer is deleted, which ends all subscriptions at once.
    Delete(&'a str),
}

/// The error of a name that is not in [`NAMES`].
#[derive(Debug)]
pub struct UnknownAction(String);

impl fmt::Display for UnknownAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown action {:?}; there are: {NAMES}", self.0)
    }
}

impl std::error::Error for UnknownAction {}

/// Every name that [`Action::of`] knows.
pub(super) const NAMES: &str = "pay expire subscribe cancel_at_period_end resume cancel_now fail_payment recover \
     give_up pause trial end_period refund dispute delete";

impl<'a> Action<'a> {
    /// The action of a name, to a checkout, a customer or a subscription.
    pub fn of(name: &str, target: &'a str) -> Result<Self, UnknownAction> {
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

impl World {
    /// Does it, if the object is there and in a state in which it can be done.
    pub(super) fn act(&mut self, action: Action<'_>) {
        match action {
            Action::Pay(session) => self.pay(session),
            Action::Expire(session) => {
                let open =
                    |it: &serde_json::Value| object::id(it) == session && it["status"] == "open";
                if let Some(at) = self.sessions.iter().position(open) {
                    self.expire(at);
                }
            }
            Action::Subscribe(customer) => drop(self.subscribe(customer, json!({}))),
            Action::CancelAtPeriodEnd(id) => {
                // In flexible billing mode the portal sets the time alone.
                let end = self.subscription(id).map(super::world::period_end);
                self.set_end(id, false, end);
            }
            Action::Resume(id)
                if self
                    .subscription(id)
                    .is_some_and(|it| it["status"] == "paused") =>
            {
                self.set_status(id, "active", "customer.subscription.resumed");
            }
            Action::Resume(id) => self.set_end(id, false, None),
            Action::CancelNow(id) => self.cancel(id),
            Action::FailPayment(id) => {
                self.invoice_of(id, false);
                self.set_status(id, "past_due", "customer.subscription.updated");
            }
            Action::Recover(id) => {
                self.invoice_of(id, true);
                self.set_status(id, "active", "customer.subscription.updated");
            }
            Action::GiveUp(id) => self.set_status(id, "unpaid", "customer.subscription.updated"),
            Action::Pause(id) => self.set_status(id, "paused", "customer.subscription.paused"),
            Action::Trial(id) => self.set_status(id, "trialing", "customer.subscription.updated"),
            Action::EndPeriod(id) => self.end_period(id),
            Action::Refund(customer) => {
                let charge = self.id("ch");
                self.happens(
                    "charge.refunded",
                    &object::charge(&charge, customer, true, self.now),
                );
            }
            Action::Dispute(_) => {
                let (dispute, charge) = (self.id("dp"), self.id("ch"));
                self.happens(
                    "charge.dispute.created",
                    &object::dispute(&dispute, &charge, self.now),
                );
            }
            Action::Delete(customer) => self.delete(customer),
        }
    }

    fn pay(&mut self, session: &str) {
        let open =
            |it: &&mut serde_json::Value| object::id(it) == session && it["status"] == "open";
        let Some(found) = self.sessions.iter_mut().find(open) else {
            return;
        };
        found["status"] = json!("complete");
        found["payment_status"] = json!("paid");
        found["url"] = serde_json::Value::Null;
        let paid = found.clone();
        let customer = paid["customer"].as_str().unwrap_or_default();
        let metadata = self
            .subscription_metadata
            .remove(session)
            .unwrap_or_else(|| json!({}));
        let id = self.subscribe(customer, metadata);
        let found = self
            .sessions
            .iter_mut()
            .find(|it| object::id(it) == session);
        let complete = found.map(|found| {
            found["subscription"] = json!(id);
            found.clone()
        });
        self.happens("checkout.session.completed", &complete.unwrap_or(paid));
    }

    fn delete(&mut self, customer: &str) {
        let Some(at) = self
            .customers
            .iter()
            .position(|it| object::id(it) == customer)
        else {
            return;
        };
        let theirs = self
            .subscriptions
            .iter()
            .filter(|it| it["customer"] == customer);
        let ids: Vec<String> = theirs.map(|it| object::id(it).to_owned()).collect();
        ids.iter().for_each(|id| self.cancel(id));
        let deleted = self.customers.remove(at);
        self.happens("customer.deleted", &deleted);
    }

    fn set_status(&mut self, id: &str, status: &str, kind: &str) {
        self.change(id, kind, |it, _| it["status"] = json!(status));
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
            assert!(Action::of(name, "x").is_ok(), "{name}");
        }
        assert!(Action::of("steal", "x").is_err());
    }

    #[test]
    fn what_has_ended_never_changes_again() {
        let mut world = World::default();
        let id = world.subscribe("cus_1", json!({}));
        world.act(Action::CancelNow(&id));
        let events = world.events.len();
        for action in [
            Action::Recover(&id),
            Action::Resume(&id),
            Action::EndPeriod(&id),
            Action::CancelNow(&id),
        ] {
            world.act(action);
        }
        assert_eq!(world.subscription(&id).unwrap()["status"], "canceled");
        let after: Vec<&str> = world.events[events..]
            .iter()
            .map(|event| event.kind.as_str())
            .collect();
        assert_eq!(after, ["invoice.paid"]);
    }
}
