//! The calls, one method each.

use sha2::{Digest, Sha256};

use crate::{
    client::Stripe,
    error::Error,
    objects::{CheckoutSession, Customer, List, PortalSession, Subscription},
};

impl Stripe {
    /// Creates a customer. The same `key` returns the same customer.
    pub async fn create_customer(
        &self,
        email: &str,
        user_id: &str,
        key: &str,
    ) -> Result<Customer, Error> {
        let params = [("email", email), ("metadata[user_id]", user_id)];
        self.post("/v1/customers", &params, key).await
    }

    /// Whether this customer was deleted. False for a customer that Stripe does not know.
    pub async fn is_customer_deleted(&self, customer: &str) -> Result<bool, Error> {
        let path = format!("/v1/customers/{customer}");

        match self.get::<Customer>(&path, &[]).await {
            Err(error) if error.is_not_found() => Ok(false),
            found => Ok(found?.deleted),
        }
    }

    /// All subscriptions of a customer, including ended ones, newest first.
    pub async fn subscriptions(&self, customer: &str) -> Result<Vec<Subscription>, Error> {
        let mut all: Vec<Subscription> = Vec::new();

        loop {
            let mut query = vec![("customer", customer), ("status", "all"), ("limit", "100")];
            let last = all.last().map(|last| last.id.clone());
            query.extend(last.as_deref().map(|last| ("starting_after", last)));

            let page: List<Subscription> = self.get("/v1/subscriptions", &query).await?;
            let is_last_page = !page.has_more || page.data.is_empty();
            all.extend(page.data);

            if is_last_page {
                return Ok(all);
            }
        }
    }

    /// The customer's newest checkout.
    pub async fn latest_checkout(&self, customer: &str) -> Result<Option<CheckoutSession>, Error> {
        let query = [("customer", customer), ("limit", "1")];
        let page: List<CheckoutSession> = self.get("/v1/checkout/sessions", &query).await?;
        Ok(page.data.into_iter().next())
    }

    /// Closes a checkout, so that it can no longer be paid, and returns its state afterwards.
    ///
    /// Stripe refuses to close a checkout that is complete or expired; then this returns it unchanged.
    pub async fn expire_checkout(&self, id: &str) -> Result<CheckoutSession, Error> {
        let path = format!("/v1/checkout/sessions/{id}");
        let key = format!("expire-{id}");

        match self.post(&format!("{path}/expire"), &[], &key).await {
            Err(error) if error.is_invalid_request() => self.get(&path, &[]).await,
            expired => expired,
        }
    }

    /// Opens a checkout. The same parameters after the same `previous` checkout return the same checkout.
    pub async fn create_checkout(
        &self,
        params: &[(&str, &str)],
        previous: Option<&str>,
    ) -> Result<CheckoutSession, Error> {
        let key = checkout_key(params, previous);
        self.post("/v1/checkout/sessions", params, &key).await
    }

    /// Opens the page on which a customer manages subscriptions, and returns its address.
    ///
    /// The page lives for minutes, so each visit needs a new one with a new `key`.
    pub async fn create_portal(
        &self,
        customer: &str,
        return_url: &str,
        key: &str,
    ) -> Result<String, Error> {
        let params = [("customer", customer), ("return_url", return_url)];
        let session: PortalSession = self
            .post("/v1/billing_portal/sessions", &params, key)
            .await?;
        Ok(session.url)
    }
}

/// The idempotency key of a checkout: a digest of the length-prefixed parameters.
fn checkout_key(params: &[(&str, &str)], previous: Option<&str>) -> String {
    let names_and_values = params.iter().flat_map(|(name, value)| [*name, *value]);
    let mut digest = Sha256::new();

    for part in names_and_values.chain(previous) {
        digest.update(part.len().to_be_bytes());
        digest.update(part.as_bytes());
    }
    format!("checkout-{}", hex::encode(digest.finalize()))
}
