//! Stripe's API: the seven calls that subscriptions need, with our own types of only the fields that we read.
//!
//! Knows nothing of plans or users. Every call has a deadline for all its tries together; what is worth trying again is
//! what Stripe's own clients try again. Signatures of events are checked in [`webhook`].

pub mod webhook;

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, StatusCode};
use reqwest::Url;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until, timeout_at};

use secrecy::{ExposeSecret, SecretString};

/// The version of the wire format that every request names, and that the webhook endpoint is to be set to.
pub const API_VERSION: &str = "2026-10-28.endive";

const DEADLINE: Duration = Duration::from_secs(10);
/// Pauses between tries, as Stripe's own clients make them.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];

/// A client for one account; cheap to clone, shares the connections of its `reqwest::Client`.
#[derive(Clone, Debug)]
pub struct Stripe {
    http: reqwest::Client,
    base_url: String,
    key: SecretString,
    deadline: Duration,
}

/// Why Stripe did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer within the deadline, or none that came through whole.
    #[error("Stripe cannot be reached: {0}")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer that is not what the version's format says.
    #[error("Stripe's answer cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Stripe refused.
    #[error("Stripe refused with {status}{}: {message}", code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Such as `resource_missing`.
        code: Option<String>,
        /// The parameter that it is about.
        param: Option<String>,
        /// For a person, with the id of the request.
        message: String,
    },
}

impl Error {
    /// Whether the customer that was named is not there (any more), as after a change from test keys to live ones.
    pub fn customer_is_missing(&self) -> bool {
        matches!(self, Self::Refused { code, param, .. }
            if code.as_deref() == Some("resource_missing") && param.as_deref() == Some("customer"))
    }

    /// Whether what was asked cannot be done to the object as it is now.
    fn is_too_late(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: StatusCode::BAD_REQUEST,
                ..
            }
        )
    }
}

/// Somebody who pays.
#[derive(Debug, Deserialize)]
pub struct Customer {
    /// `cus_…`
    pub id: String,
}

/// What somebody pays for again and again.
#[derive(Clone, Debug, Deserialize)]
pub struct Subscription {
    /// `sub_…`
    pub id: String,
    /// As Stripe names it.
    pub status: String,
    /// Whether it ends with the period, where it was told so.
    pub cancel_at_period_end: bool,
    /// When it ends, in epoch seconds, where it was told when: all that the portal tells it in flexible billing mode.
    #[serde(default)]
    pub cancel_at: Option<i64>,
    /// In epoch seconds.
    pub created: i64,
    /// What it is made of: periods and prices are there.
    pub items: List<Item>,
}

/// A part of a subscription.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    /// In epoch seconds; the subscription itself has none since 2025.
    pub current_period_end: Option<i64>,
    /// What is paid for it.
    pub price: Price,
}

/// What is paid for something.
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
    /// Whether there are older ones.
    #[serde(default)]
    pub has_more: bool,
}

/// A page at Stripe on which somebody may pay.
#[derive(Debug, Deserialize)]
pub struct CheckoutSession {
    /// `cs_…`
    pub id: String,
    /// `open`, `complete` or `expired`.
    pub status: Option<String>,
    /// Where it is, while it is open.
    pub url: Option<String>,
    /// In epoch seconds.
    pub expires_at: i64,
    /// What we wrote on it.
    #[serde(default)]
    pub metadata: HashMap<String, String>,
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

#[derive(Deserialize)]
struct PortalSession {
    url: String,
}

impl Subscription {
    /// When it ends, where a time is set.
    pub fn cancel_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.cancel_at?).ok()
    }

    /// When the period that is paid for ends: the latest one, where parts differ.
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

impl Stripe {
    /// A client; `base_url` is Stripe's or a stand-in's, without `/v1`.
    pub fn new(http: reqwest::Client, base_url: String, key: SecretString) -> Self {
        Self {
            http,
            base_url,
            key,
            deadline: DEADLINE,
        }
    }

    /// The same client for a call that may take less, or more, than ten seconds.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// Makes a customer; the same `key` gives the same one.
    pub async fn create_customer(
        &self,
        email: &str,
        user_id: &str,
        key: &str,
    ) -> Result<Customer, Error> {
        self.post(
            "/v1/customers",
            &[("email", email), ("metadata[user_id]", user_id)],
            key,
        )
        .await
    }

    /// All subscriptions of a customer, ended ones too.
    pub async fn subscriptions(&self, customer: &str) -> Result<Vec<Subscription>, Error> {
        let mut all: Vec<Subscription> = Vec::new();
        loop {
            let mut query = vec![("customer", customer), ("status", "all"), ("limit", "100")];
            let last = all.last().map(|last| last.id.clone());
            query.extend(last.as_deref().map(|last| ("starting_after", last)));
            let page: List<Subscription> = self.get("/v1/subscriptions", &query).await?;
            let ended = !page.has_more || page.data.is_empty();
            all.extend(page.data);
            if ended {
                return Ok(all);
            }
        }
    }

    /// The checkout that a customer began last.
    pub async fn latest_checkout(&self, customer: &str) -> Result<Option<CheckoutSession>, Error> {
        let query = [("customer", customer), ("limit", "1")];
        let page: List<CheckoutSession> = self.get("/v1/checkout/sessions", &query).await?;
        Ok(page.data.into_iter().next())
    }

    /// Closes a checkout's page, so that it cannot be paid any more; gives the checkout as it is then, which was complete
    /// or expired before where Stripe would not close it.
    pub async fn expire_checkout(&self, id: &str) -> Result<CheckoutSession, Error> {
        let path = format!("/v1/checkout/sessions/{id}");
        match self
            .post(&format!("{path}/expire"), &[], &format!("expire-{id}"))
            .await
        {
            Err(error) if error.is_too_late() => self.get(&path, &[]).await,
            closed => closed,
        }
    }

    /// Opens a checkout; the same parameters after the same `previous` checkout give the same one.
    pub async fn create_checkout(
        &self,
        params: &[(&str, &str)],
        previous: Option<&str>,
    ) -> Result<CheckoutSession, Error> {
        let mut hash = Sha256::new();
        for part in params
            .iter()
            .flat_map(|(name, value)| [*name, *value])
            .chain(previous)
        {
            hash.update(part.len().to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.post(
            "/v1/checkout/sessions",
            params,
            &format!("checkout-{digest}"),
        )
        .await
    }

    /// Opens the page on which a customer manages subscriptions; it lives for minutes, so each call makes a new one.
    pub async fn create_portal(
        &self,
        customer: &str,
        return_url: &str,
        key: &str,
    ) -> Result<String, Error> {
        let params = [("customer", customer), ("return_url", return_url)];
        Ok(self
            .post::<PortalSession>("/v1/billing_portal/sessions", &params, key)
            .await?
            .url)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Error> {
        let url = self.url(path, query)?;
        self.tries(|_| self.http.get(url.clone())).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, &str)],
        key: &str,
    ) -> Result<T, Error> {
        let url = self.url(path, &[])?;
        let body = self.url(path, form)?.query().unwrap_or_default().to_owned();
        self.tries(|stored_failures| {
            // A failure that Stripe stored under a key is what that key answers for a day.
            let key = if stored_failures == 0 {
                key.to_owned()
            } else {
                format!("{key}-{stored_failures}")
            };
            let request = self.http.post(url.clone()).header("idempotency-key", key);
            request
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.clone())
        })
        .await
    }

    /// A query and a form are written the same way.
    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url, Error> {
        let address = format!("{}{path}", self.base_url);
        let url = if query.is_empty() {
            Url::parse(&address)
        } else {
            Url::parse_with_params(&address, query)
        };
        url.map_err(|error| Error::Unreachable(error.into()))
    }

    async fn tries<T: DeserializeOwned>(
        &self,
        request: impl Fn(u32) -> reqwest::RequestBuilder,
    ) -> Result<T, Error> {
        let until = Instant::now() + self.deadline;
        let mut pauses = PAUSES.into_iter();
        let mut stored_failures = 0;
        loop {
            let request = request(stored_failures)
                .bearer_auth(self.key.expose_secret())
                .header("stripe-version", API_VERSION);
            let (error, again) = match timeout_at(until, answer(request)).await {
                Ok(Ok((status, _, body))) if status.is_success() => {
                    return Ok(serde_json::from_slice(&body)?);
                }
                Ok(Ok((status, headers, body))) => {
                    let replayed = headers
                        .get("idempotent-replayed")
                        .is_some_and(|value| value == "true");
                    let stored_failure = replayed && status.is_server_error();
                    stored_failures += u32::from(stored_failure);
                    (
                        refused(status, &headers, &body),
                        stored_failure || worth_another_try(status, &headers),
                    )
                }
                Ok(Err(error)) => (Error::Unreachable(error.without_url().into()), true),
                Err(_) => return Err(Error::Unreachable("no answer within the deadline".into())),
            };
            match pauses.next().map(|pause| Instant::now() + pause) {
                Some(next) if again && next < until => sleep_until(next).await,
                _ => return Err(error),
            }
        }
    }
}

async fn answer(
    request: reqwest::RequestBuilder,
) -> Result<(StatusCode, HeaderMap, bytes::Bytes), reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok((status, headers, response.bytes().await?))
}

/// Stripe says so itself, else a conflict of two requests and faults of Stripe's own are.
fn worth_another_try(status: StatusCode, headers: &HeaderMap) -> bool {
    match headers
        .get("stripe-should-retry")
        .map(http::HeaderValue::as_bytes)
    {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => status == StatusCode::CONFLICT || status.is_server_error(),
    }
}

fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    #[derive(Default, Deserialize)]
    struct Answer {
        error: Detail,
    }
    #[derive(Default, Deserialize)]
    struct Detail {
        code: Option<String>,
        param: Option<String>,
        message: Option<String>,
    }
    let Detail {
        code,
        param,
        message,
    } = serde_json::from_slice::<Answer>(body)
        .unwrap_or_default()
        .error;
    let request = headers
        .get("request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or("no request id");
    let message = format!(
        "{} ({request})",
        message.unwrap_or_else(|| "no reason given".to_owned())
    );
    Error::Refused {
        status,
        code,
        param,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_decides_what_is_worth_another_try_and_else_its_status_does() {
        let check = |status: u16, should: Option<&'static str>, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.extend(should.map(|should| {
                (
                    http::HeaderName::from_static("stripe-should-retry"),
                    http::HeaderValue::from_static(should),
                )
            }));
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                worth_another_try(status, &headers),
                expected,
                "{status} {should:?}"
            );
        };
        for (status, expected) in [
            (400, false),
            (402, false),
            (409, true),
            (429, false),
            (500, true),
            (503, true),
        ] {
            check(status, None, expected);
            check(status, Some("true"), true);
            check(status, Some("false"), false);
            check(status, Some("perhaps"), expected);
        }
    }

    #[test]
    fn a_refusal_tells_what_stripe_said_and_survives_what_it_did_not() {
        let said =
            |body: &str| refused(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes());
        let missing = r#"{"error":{"code":"resource_missing","param":"customer","message":"No such customer"}}"#;
        assert!(said(missing).customer_is_missing());
        assert_eq!(
            said(missing).to_string(),
            "Stripe refused with 400 Bad Request resource_missing: No such customer (no request id)"
        );
        assert_eq!(
            said("<html>").to_string(),
            "Stripe refused with 400 Bad Request: no reason given (no request id)"
        );
    }

    #[test]
    fn the_period_ends_when_its_last_part_does() {
        let subscription: Subscription = serde_json::from_str(
            r#"{"id":"sub_1","status":"active","cancel_at_period_end":false,"created":1,"items":{"data":[
                {"current_period_end":10,"price":{"id":"a"}},{"current_period_end":20,"price":{"id":"b"}}]}}"#,
        )
        .unwrap();
        assert_eq!(
            subscription.current_period_end().unwrap().unix_timestamp(),
            20
        );
    }
}
