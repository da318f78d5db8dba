//! Stripe's objects, with only the fields that are read.

use std::collections::HashMap;

use serde::Deserialize;
use time::OffsetDateTime;

/// A customer.
#[derive(Debug, Deserialize)]
pub struct Customer {
    /// `cus_…`
    pub id: String,
    /// Whether it was deleted. Stripe still knows it then, but sells it nothing.
    #[serde(default)]
    pub deleted: bool,
}

/// A recurring payment of a customer.
#[derive(Clone, Debug, Deserialize)]
pub struct Subscription {
    /// `sub_…`
    pub id: String,
    /// `active`, `past_due`, `canceled` and others. A string, because Stripe adds new ones.
    pub status: String,
    /// Whether it ends with the current period.
    pub cancel_at_period_end: bool,
    /// When it ends, in epoch seconds, if a time is set. In flexible billing mode the portal sets only this.
    #[serde(default)]
    pub cancel_at: Option<i64>,
    /// In epoch seconds.
    pub created: i64,
    /// The parts, each with its own period and price.
    pub items: List<Item>,
}

/// A part of a subscription.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    /// In epoch seconds. Since 2025 the subscription itself has no period.
    pub current_period_end: Option<i64>,
    /// What the customer pays for it.
    pub price: Price,
}

/// The price of an item.
#[derive(Clone, Debug, Deserialize)]
pub struct Price {
    /// `price_…`
    pub id: String,
}

/// A page of a list.
#[derive(Clone, Debug, Deserialize)]
pub struct List<T> {
    /// Newest first.
    pub data: Vec<T>,
    /// Whether there are older entries.
    #[serde(default)]
    pub has_more: bool,
}

/// A payment page at Stripe.
#[derive(Debug, Deserialize)]
pub struct CheckoutSession {
    /// `cs_…`
    pub id: String,
    /// `open`, `complete` or `expired`.
    pub status: Option<String>,
    /// The page's address, while it is open.
    pub url: Option<String>,
    /// In epoch seconds.
    pub expires_at: i64,
    /// What the caller attached to it.
    #[serde(default)]
    pub metadata: HashMap<String, String>,
}

/// A page at Stripe on which a customer manages subscriptions.
#[derive(Deserialize)]
pub(crate) struct PortalSession {
    pub(crate) url: String,
}

impl Subscription {
    /// When it ends, if a time is set.
    pub fn cancel_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.cancel_at?).ok()
    }

    /// The latest end of the items' current periods.
    pub fn current_period_end(&self) -> Option<OffsetDateTime> {
        let latest = self
            .items
            .data
            .iter()
            .filter_map(|item| item.current_period_end)
            .max()?;

        OffsetDateTime::from_unix_timestamp(latest).ok()
    }
}

impl CheckoutSession {
    /// Whether it can still be paid.
    pub fn is_open(&self) -> bool {
        self.status.as_deref() == Some("open")
    }

    /// Whether it has been paid.
    pub fn is_complete(&self) -> bool {
        self.status.as_deref() == Some("complete")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriptions_period_ends_with_its_latest_item() {
        let subscription: Subscription = serde_json::from_str(
            r#"{
                "id": "sub_1", "status": "active", "cancel_at_period_end": false, "created": 1,
                "items": {"data": [
                    {"current_period_end": 10, "price": {"id": "a"}},
                    {"current_period_end": 20, "price": {"id": "b"}}
                ]}
            }"#,
        )
        .unwrap();

        let end = subscription.current_period_end().unwrap();
        assert_eq!(end.unix_timestamp(), 20);
    }
}
