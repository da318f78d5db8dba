//! Sending a request: authentication, deadline, retries, idempotency keys.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use reqwest::{RequestBuilder, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    API_VERSION,
    error::{Error, is_retryable},
};

const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Pauses before the retries, as in Stripe's own clients.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];
/// How many failures of earlier calls a call skips. During an outage a call leaves two of them at most.
const MAX_SKIPPED_FAILURES: u32 = 100;

/// A client for one account. Cheap to clone: clones share the connections of the `reqwest::Client`.
#[derive(Clone, Debug)]
pub struct Stripe {
    http: reqwest::Client,
    base_url: String,
    key: SecretString,
    deadline: Duration,
}

impl Stripe {
    /// A client. `base_url` is the address of Stripe, or of a fake, without `/v1`.
    pub fn new(http: reqwest::Client, base_url: String, key: SecretString) -> Self {
        Self {
            http,
            base_url,
            key,
            deadline: DEFAULT_DEADLINE,
        }
    }

    /// The same client with another deadline per call.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Error> {
        let url = self.url(path, query)?;
        self.send_with_retries(|_| self.http.get(url.clone())).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, &str)],
        key: &str,
    ) -> Result<T, Error> {
        let url = self.url(path, &[])?;
        // A form is encoded like a query.
        let body = self.url(path, form)?.query().unwrap_or_default().to_owned();

        self.send_with_retries(|replayed_failures| {
            let key = match replayed_failures {
                0 => key.to_owned(),
                count => format!("{key}-{count}"),
            };
            self.http
                .post(url.clone())
                .header("idempotency-key", key)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.clone())
        })
        .await
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url, Error> {
        let address = format!("{}{path}", self.base_url);
        let url = if query.is_empty() {
            Url::parse(&address)
        } else {
            Url::parse_with_params(&address, query)
        };
        url.map_err(|error| Error::Unreachable(error.into()))
    }

    /// Sends the request until it succeeds, fails for good, or the deadline passes.
    ///
    /// `request` is given the number of replayed failures so far. Stripe replays a stored failure for a day under its
    /// idempotency key, so the next request needs another key. The keys have an order, so that of calls at the same time
    /// none creates a second object. The failures of earlier calls are skipped without a pause: an outage that is over
    /// costs no retries, however many calls failed.
    async fn send_with_retries<T: DeserializeOwned>(
        &self,
        request: impl Fn(u32) -> RequestBuilder,
    ) -> Result<T, Error> {
        let until = Instant::now() + self.deadline;
        let mut pauses = PAUSES.into_iter();
        let mut replayed_failures = 0;
        let mut is_first_attempt = true;

        loop {
            let request = request(replayed_failures)
                .bearer_auth(self.key.expose_secret())
                .header("stripe-version", API_VERSION);

            let (error, retryable) = match timeout_at(until, Answer::to(request)).await {
                Ok(Ok(answer)) if answer.status.is_success() => {
                    return Ok(serde_json::from_slice(&answer.body)?);
                }
                Ok(Ok(answer)) => {
                    let is_replayed = answer.is_replayed_failure();
                    replayed_failures += u32::from(is_replayed);
                    if is_replayed && is_first_attempt && replayed_failures <= MAX_SKIPPED_FAILURES
                    {
                        continue;
                    }

                    let retryable = is_replayed || is_retryable(answer.status, &answer.headers);
                    (answer.into_error(), retryable)
                }
                Ok(Err(error)) => (Error::Unreachable(error.without_url().into()), true),
                Err(_) => return Err(Error::Unreachable("no answer within the deadline".into())),
            };

            is_first_attempt = false;
            let retry_at = pauses.next().map(|pause| Instant::now() + pause);
            match retry_at {
                Some(retry_at) if retryable && retry_at < until => sleep_until(retry_at).await,
                _ => return Err(error),
            }
        }
    }
}

/// A complete answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn to(request: RequestBuilder) -> Result<Self, reqwest::Error> {
        let response = request.send().await?;

        Ok(Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: response.bytes().await?,
        })
    }

    /// Whether Stripe repeats a failure that it stored under the idempotency key.
    fn is_replayed_failure(&self) -> bool {
        let is_replayed = self
            .headers
            .get("idempotent-replayed")
            .is_some_and(|value| value == "true");

        is_replayed && self.status.is_server_error()
    }

    fn into_error(self) -> Error {
        Error::from_answer(self.status, &self.headers, &self.body)
    }
}
