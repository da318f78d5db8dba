//! Anthropic's Messages API: one prompt out, one stream of text and its usage back.
//!
//! Knows nothing of discussions and plans. [`Claude`] is one key and never retries; [`Pool`] is all of them, and asks
//! another key or another model where the class of an error says that this helps.

mod chain;
mod cooldown;
mod error;
mod key;
mod pool;
mod request;
mod stream;

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout_at;

pub use chain::Route;
pub use cooldown::Deadline;
pub use error::{Detail, Error, Phase};
pub use key::ApiKey;
pub use pool::{Alarm, KeyHealth, Outcome, Pool};
pub use stream::Reply;

use request::Body;
use stream::Clock;

/// The version of the wire format that every request names.
pub const API_VERSION: &str = "2026-10-21";

/// A client for one key; cheap to clone, shares the connections of its `reqwest::Client`.
#[derive(Clone, Debug)]
pub struct Claude {
    http: reqwest::Client,
    url: String,
    key: ApiKey,
    deadlines: Deadlines,
}

/// How long a reply may keep us waiting, each counted from the start of the call but `silence`.
///
/// Connecting has its own deadline in the `reqwest::Client`.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the first event; an answer's head alone does not count.
    pub first_event: Duration,
    /// Between two events, of which the provider's `ping` is one.
    pub silence: Duration,
    /// Until `message_stop`.
    pub whole: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            first_event: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            whole: Duration::from_secs(240),
        }
    }
}

/// What is asked of the model.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The model's id, for example `claude-sonnet-5-5`.
    pub model: String,
    /// The most tokens the reply may cost, thinking included.
    pub max_tokens: u32,
    /// The stable prefix: a date or a name in here would make every prompt a cache miss.
    pub system: String,
    /// What was said before the first turn; empty for nothing. Kept apart because the cache can keep it apart.
    pub recap: String,
    /// The conversation, oldest turn first; the last one is the user's.
    pub turns: Vec<Turn>,
    /// Opaque id of the end user for the provider's abuse checks, nothing personal.
    pub user_id: String,
}

impl Prompt {
    /// What stands alone: no system text, nothing said before.
    pub fn of_one_turn(model: &str, max_tokens: u32, text: String, user_id: &str) -> Self {
        let (model, user_id) = (model.to_owned(), user_id.to_owned());
        let turns = vec![Turn {
            role: Role::User,
            text,
        }];
        Self {
            model,
            max_tokens,
            system: String::new(),
            recap: String::new(),
            turns,
            user_id,
        }
    }
}

/// One side's contribution to a conversation.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said; the provider refuses an empty text.
    pub text: String,
}

/// Who speaks in a [`Turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// Tokens of one request by the classes that are priced apart; the prompt is the sum of all but `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens that the cache neither gave nor took.
    pub input: u32,
    /// Prompt tokens written to the cache for five minutes.
    pub cache_write_5m: u32,
    /// Prompt tokens written to the cache for an hour.
    pub cache_write_1h: u32,
    /// Prompt tokens that the cache gave.
    pub cache_read: u32,
    /// Tokens of the reply, thinking included.
    pub output: u32,
}

/// What the key may still ask for, as the head of a reply tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub requests: Option<Limit>,
    /// Prompt tokens a minute; on current models cache reads do not count.
    pub input_tokens: Option<Limit>,
    /// Output tokens a minute; charged with `max_tokens` when a reply starts.
    pub output_tokens: Option<Limit>,
}

/// One of the [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much the window holds.
    pub limit: u64,
    /// How much of it is left.
    pub remaining: u64,
    /// When it is full again.
    pub reset: Option<OffsetDateTime>,
}

impl Claude {
    /// A client for one key; `base_url` is the provider's or a stand-in's, without `/v1`.
    pub fn new(http: reqwest::Client, base_url: String, key: ApiKey) -> Self {
        let url = format!("{}/v1/messages", base_url.trim_end_matches('/'));
        Self {
            http,
            url,
            key,
            deadlines: Deadlines::default(),
        }
    }

    /// The same client with other deadlines.
    pub fn with_deadlines(self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self }
    }

    /// The label of the key this client spends.
    pub fn key_label(&self) -> &str {
        &self.key.label
    }

    /// Asks for a reply; `Ok` once the provider accepted the request.
    ///
    /// Dropping the future or the [`Reply`] cancels the request; what was generated by then is billed.
    pub async fn stream(&self, prompt: &Prompt) -> Result<Reply, Error> {
        let clock = Clock::start(self.deadlines);
        let late = |_| Error::Timeout {
            phase: Phase::FirstEvent,
        };
        let request = self
            .http
            .post(&self.url)
            .header("anthropic-version", API_VERSION)
            .header("x-api-key", self.key_header()?)
            .json(&Body::of(prompt));
        let response = timeout_at(clock.first_event_by(), request.send())
            .await
            .map_err(late)?
            .map_err(error::transport)?;
        if response.status() != http::StatusCode::OK {
            let refused = error::refused(response, &self.key.secret);
            return Err(timeout_at(clock.first_event_by(), refused)
                .await
                .map_err(late)?);
        }
        let headers = response.headers();
        let request_id = text(headers, "request-id").map(str::to_owned);
        // An answer from something else on the way, such as a proxy's sign-in page.
        if !text(headers, CONTENT_TYPE.as_str())
            .is_some_and(|is| is.starts_with("text/event-stream"))
        {
            return Err(Error::Malformed {
                what: "the answer is no event stream".to_owned(),
                request_id,
            });
        }
        let head = stream::Head {
            model: prompt.model.clone(),
            asked_model: prompt.model.clone(),
            key: self.key.clone(),
            limits: Limits::of(headers),
            request_id,
        };
        Ok(Reply::new(response.bytes_stream(), head, clock))
    }

    fn key_header(&self) -> Result<HeaderValue, Error> {
        let mut value = HeaderValue::from_str(&self.key.secret).map_err(|_| {
            Error::Auth(Detail::ours(
                "the key has characters that no header may carry",
            ))
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Limits {
    fn of(headers: &HeaderMap) -> Self {
        let limit = |of: &str| {
            let field = |which: &str| text(headers, &format!("anthropic-ratelimit-{of}-{which}"));
            Some(Limit {
                limit: field("limit")?.parse().ok()?,
                remaining: field("remaining")?.parse().ok()?,
                reset: field("reset").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
            })
        };
        Self {
            requests: limit("requests"),
            input_tokens: limit("input-tokens"),
            output_tokens: limit("output-tokens"),
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let key = ApiKey::new("eu", "sk-ant-secret");
        let claude = Claude::new(reqwest_client(), "http://localhost/".into(), key);
        let printed = format!("{claude:?}");
        assert!(
            printed.contains("eu") && !printed.contains("secret"),
            "{printed}"
        );
        assert_eq!(claude.url, "http://localhost/v1/messages");
    }

    #[test]
    fn limits_are_read_from_the_head_and_a_broken_one_is_none() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("anthropic-ratelimit-requests-limit", "1000"),
            ("anthropic-ratelimit-requests-remaining", "999"),
            ("anthropic-ratelimit-requests-reset", "2026-11-24T00:01:00Z"),
            ("anthropic-ratelimit-input-tokens-limit", "many"),
            ("anthropic-ratelimit-input-tokens-remaining", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let reset = Some(time::macros::datetime!(2026-11-24 00:01 UTC));
        assert_eq!(
            Limits::of(&headers),
            Limits {
                requests: Some(Limit {
                    limit: 1000,
                    remaining: 999,
                    reset
                }),
                ..Limits::default()
            }
        );
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a client that is never used for a request"
    )]
    fn reqwest_client() -> reqwest::Client {
        reqwest::Client::new()
    }
}
