//! Errors, distinguished by what the caller does next.

mod response;

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub(crate) use response::{error_from_response, is_unprocessed, late, transport_error};

use crate::Attempt;

const MAX_MESSAGE_CHARS: usize = 500;

/// Why there is no reply, or no more of it.
///
/// `Display` is for logs: it carries the provider's message and request id, never the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key's organisation is over a limit that refills. Another organisation may serve.
    #[error("rate limited: {detail}")]
    RateLimited {
        /// The wait that the provider asks for.
        retry_after: Option<Duration>,
        /// The provider's answer.
        detail: Box<Detail>,
    },
    /// A spend limit of the key's organisation is used up. No retry helps before its reset.
    #[error("spend limit reached: {0}")]
    SpendLimit(Box<Detail>),
    /// The key is wrong, revoked, unpaid or lacks a permission. An operator must act.
    #[error("key refused: {0}")]
    Auth(Box<Detail>),
    /// The provider has no capacity for this model.
    #[error("provider overloaded: {detail}")]
    Overloaded {
        /// The wait that the provider asks for.
        retry_after: Option<Duration>,
        /// The provider's answer.
        detail: Box<Detail>,
    },
    /// The provider failed.
    #[error("provider failed: {detail}")]
    Provider {
        /// The wait that the provider asks for.
        retry_after: Option<Duration>,
        /// The provider's answer.
        detail: Box<Detail>,
    },
    /// The request cannot be answered, with any key: a defect of the caller, or a retired model.
    #[error("request refused: {0}")]
    Invalid(Box<Detail>),
    /// The provider could not be reached, or closed the connection before it answered.
    #[error("provider unreachable")]
    Transport(#[source] reqwest::Error),
    /// A deadline passed.
    #[error("no answer in time ({phase:?})")]
    Timeout {
        /// The deadline.
        phase: Phase,
    },
    /// The reply's body ended without `message_stop`.
    #[error("reply cut off (request-id {})", request_id.as_deref().unwrap_or("none"))]
    Cut {
        /// The provider's id of the request.
        request_id: Option<String>,
        /// The connection's error; `None` if the body just ended.
        source: Option<reqwest::Error>,
    },
    /// The reply is not what the API promises.
    #[error("malformed reply: {what} (request-id {})", request_id.as_deref().unwrap_or("none"))]
    Malformed {
        /// The defect.
        what: String,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The provider reported an error after the reply had started with status 200.
    #[error("reply failed: {0}")]
    InStream(Box<Detail>),
    /// Every key is cooling down.
    #[error("every key is cooling down for {} s", retry_after.as_secs())]
    Cooling {
        /// Time until the first of them may be used.
        retry_after: Duration,
        /// The error of the last attempt for this reply.
        #[source]
        last: Option<Box<Error>>,
    },
    /// No attempt brought a reply, and the provider may bill some of them.
    #[error("no reply, and {} of the attempts may be billed", attempts.len())]
    Abandoned {
        /// The attempts that may be billed, the last one included if it may be.
        attempts: Vec<Attempt>,
        /// Why there is no reply.
        #[source]
        last: Box<Error>,
    },
    /// The pool has no key.
    #[error("there is no Claude key")]
    NoKey,
}

/// The scope of an error: key, organisation, model or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The organisation is over a limit that refills.
    Limited,
    /// The organisation has reached its spend limit of the month.
    Spent,
    /// The key does not work.
    Refused,
    /// The provider has no capacity for this model, with any key.
    Overloaded,
    /// The provider or the network failed.
    Failing,
    /// The model does not exist.
    NoModel,
    /// The request is invalid, or the organisation has reached a limit that it set itself: the provider answers both
    /// alike.
    Ambiguous,
    /// No other attempt can succeed.
    Final,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No connection, or no stream on one: the request was not sent.
    Connect,
    /// No event came.
    FirstEvent,
    /// No event within the silence limit.
    Silence,
    /// The reply took too long in all.
    Whole,
}

/// The provider's description of an error. For logs, except `error_code`, which is stable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The HTTP status; `None` inside a stream.
    pub status: Option<u16>,
    /// `error.type`; empty if a proxy answered instead of the provider.
    pub error_type: String,
    /// `error.details.error_code`: the cause, if the provider names one.
    pub error_code: Option<String>,
    /// Human-readable, may change.
    pub message: String,
    /// The id that the provider's support asks for.
    pub request_id: Option<String>,
    /// The provider's hint whether a retry can succeed.
    pub should_retry: Option<bool>,
}

impl Error {
    /// Follows type and code, never the message.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::RateLimited { .. } => Class::Limited,
            Self::SpendLimit(_) => Class::Spent,
            Self::Auth(_) => Class::Refused,
            Self::Overloaded { .. } => Class::Overloaded,
            Self::InStream(detail) => match detail.error_type.as_str() {
                "overloaded_error" => Class::Overloaded,
                "rate_limit_error" => Class::Limited,
                _ => Class::Failing,
            },
            Self::Provider { .. }
            | Self::Transport(_)
            | Self::Timeout { .. }
            | Self::Cut { .. }
            | Self::Malformed { .. } => Class::Failing,
            Self::Invalid(detail) if detail.error_type == "not_found_error" => Class::NoModel,
            Self::Invalid(detail) if detail.is_ambiguous() => Class::Ambiguous,
            Self::Abandoned { last, .. } => last.class(),
            Self::Invalid(_) | Self::Cooling { .. } | Self::NoKey => Class::Final,
        }
    }

    /// The provider's hint whether a retry can succeed.
    pub(crate) fn should_retry(&self) -> Option<bool> {
        self.detail().and_then(|detail| detail.should_retry)
    }

    /// Whether the provider may bill the request although it did not answer.
    pub fn may_be_billed(&self) -> bool {
        match self {
            // Without a connection the request was not sent.
            Self::Timeout { phase } => *phase != Phase::Connect,
            Self::Cut { .. } | Self::Abandoned { .. } => true,
            Self::Cooling {
                last: Some(last), ..
            } => last.may_be_billed(),
            _ => false,
        }
    }

    /// The attempts of [`Pool::ask`](crate::Pool::ask) that the provider may bill, the last one included if it may be.
    ///
    /// Empty for an error of [`Claude::stream`](crate::Claude::stream), whose only attempt the caller knows.
    pub fn abandoned_attempts(&self) -> &[Attempt] {
        match self {
            Self::Abandoned { attempts, .. } => attempts,
            _ => &[],
        }
    }

    /// The provider's description, if it answered.
    pub fn detail(&self) -> Option<&Detail> {
        match self {
            Self::RateLimited { detail, .. }
            | Self::Overloaded { detail, .. }
            | Self::Provider { detail, .. }
            | Self::InStream(detail)
            | Self::SpendLimit(detail)
            | Self::Auth(detail)
            | Self::Invalid(detail) => Some(detail),
            Self::Abandoned { last, .. } => last.detail(),
            Self::Transport(_)
            | Self::Timeout { .. }
            | Self::Cut { .. }
            | Self::Malformed { .. }
            | Self::Cooling { .. }
            | Self::NoKey => None,
        }
    }

    /// The wait before a retry, if one is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::Overloaded { retry_after, .. }
            | Self::Provider { retry_after, .. } => *retry_after,
            Self::Cooling { retry_after, .. } => Some(*retry_after),
            Self::Abandoned { last, .. } => last.retry_after(),
            _ => None,
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "{status} ")?;
        }
        write!(f, "{}", self.error_type)?;
        if let Some(code) = &self.error_code {
            write!(f, "/{code}")?;
        }
        write!(
            f,
            " {:?} (request-id {})",
            self.message,
            self.request_id.as_deref().unwrap_or("none")
        )
    }
}

#[derive(Deserialize)]
struct WireError {
    error: WireErrorBody,
    request_id: Option<String>,
}

#[derive(Deserialize)]
struct WireErrorBody {
    r#type: String,
    #[serde(default)]
    message: String,
    details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    error_code: Option<String>,
}

impl Detail {
    /// An error that this crate detects itself.
    pub(crate) fn with_message(message: &str) -> Box<Self> {
        Box::new(Self {
            message: message.to_owned(),
            ..Self::default()
        })
    }

    /// Reads the documented error body. The start of any other body becomes the message.
    pub(crate) fn parse(body: &str, request_id: Option<&str>, secret: &SecretString) -> Self {
        let wire = serde_json::from_str(body).unwrap_or_else(|_| WireError::with_message(body));
        let error = wire.error;

        let secret = secret.expose_secret();
        let message = match secret.is_empty() {
            true => error.message,
            false => error.message.replace(secret, "[key]"),
        };

        Self {
            status: None,
            error_type: error.r#type,
            error_code: error.details.and_then(|details| details.error_code),
            message: message.chars().take(MAX_MESSAGE_CHARS).collect(),
            request_id: request_id.map(str::to_owned).or(wire.request_id),
            should_retry: None,
        }
    }

    /// Whether a spend limit of the provider's tiers or contracts is reached. They have error codes.
    fn is_spend_limit(&self) -> bool {
        matches!(
            self.error_code.as_deref(),
            Some(
                "enforced_spend_limit_reached"
                    | "contract_spend_limit_reached"
                    | "spend_limit_reached"
            )
        )
    }

    /// A spend limit that an organisation set itself comes as the same 400 as an invalid request, without a code:
    /// <https://platform.claude.com/docs/en/api/errors>. The answer of another organisation resolves the ambiguity.
    fn is_ambiguous(&self) -> bool {
        self.status == Some(400)
            && self.error_type == "invalid_request_error"
            && self.error_code.is_none()
    }
}

impl WireError {
    fn with_message(message: &str) -> Self {
        let error = WireErrorBody {
            r#type: String::new(),
            message: message.to_owned(),
            details: None,
        };
        Self {
            error,
            request_id: None,
        }
    }
}

#[cfg(test)]
mod tests;
