//! What can go wrong with a request, told apart by what a caller does next.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use time::PrimitiveDateTime;
use time::macros::format_description;

use super::text;

/// No provider answer asks for a longer pause than this, whatever its header says.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);
/// An error's body is a few hundred bytes; more is somebody else's page.
const MOST_BODY_BYTES: usize = 64 * 1024;
const MOST_MESSAGE_CHARS: usize = 500;

/// Why there is no reply, or no more of it.
///
/// `Display` is for logs: it carries the provider's message and request id, never the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This key's organisation is over a limit that refills; another organisation may serve.
    #[error("rate limited: {detail}")]
    RateLimited {
        /// How long the provider asks us to leave the organisation alone.
        retry_after: Option<Duration>,
        /// What it said.
        detail: Box<Detail>,
    },
    /// A spend limit of the key's organisation is used up: no retry helps until it is reset.
    #[error("spend limit reached: {0}")]
    SpendLimit(Box<Detail>),
    /// The key is wrong, revoked, unpaid or not allowed: an operator must act.
    #[error("key refused: {0}")]
    Auth(Box<Detail>),
    /// The provider is out of capacity for this model.
    #[error("provider overloaded: {detail}")]
    Overloaded {
        /// How long the provider asks us to wait.
        retry_after: Option<Duration>,
        /// What it said.
        detail: Box<Detail>,
    },
    /// The provider failed.
    #[error("provider failed: {detail}")]
    Provider {
        /// How long the provider asks us to wait.
        retry_after: Option<Duration>,
        /// What it said.
        detail: Box<Detail>,
    },
    /// We asked for something that cannot be answered: a bug or a retired model, the same with every key.
    #[error("request refused: {0}")]
    Invalid(Box<Detail>),
    /// The provider could not be reached, or hung up before it answered.
    #[error("provider unreachable")]
    Transport(#[source] reqwest::Error),
    /// A deadline passed.
    #[error("no answer in time ({phase:?})")]
    Timeout {
        /// Which one.
        phase: Phase,
    },
    /// The reply's body ended without `message_stop`.
    #[error("reply cut off (request-id {})", request_id.as_deref().unwrap_or("none"))]
    Cut {
        /// The provider's id of the request.
        request_id: Option<String>,
        /// What the connection said, if it did not just end.
        source: Option<reqwest::Error>,
    },
    /// The reply is not what the API promises.
    #[error("malformed reply: {what} (request-id {})", request_id.as_deref().unwrap_or("none"))]
    Malformed {
        /// What is wrong with it.
        what: String,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The provider gave up in the middle of a reply that had begun with status 200.
    #[error("reply failed: {0}")]
    InStream(Box<Detail>),
    /// No key may be asked for now.
    #[error("every key is left alone for {} s", retry_after.as_secs())]
    Cooling {
        /// Until the first of them may be.
        retry_after: Duration,
        /// What the last one said that was asked for this reply, if one was.
        #[source]
        last: Option<Box<Error>>,
    },
    /// There is no key at all.
    #[error(
        "there is no Claude key: set ANTHROPIC_API_KEYS, or add one with `iconoclash keys add`"
    )]
    NoKey,
}

/// What an error says of the key, its organisation, the model and the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The organisation is over a limit that refills.
    Limited,
    /// The organisation may spend no more this month.
    Spent,
    /// The key is no good.
    Refused,
    /// The provider has no capacity for this model, whoever asks.
    Overloaded,
    /// The provider, or the way to it, failed.
    Failing,
    /// The model is not there.
    NoModel,
    /// The request is wrong, or the organisation has used up a limit of its own: the provider says the same of both.
    Doubtful,
    /// Nothing would help.
    Final,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The `reqwest::Client`'s own: no connection, or its total for a request.
    Connect,
    /// No event came.
    FirstEvent,
    /// The stream fell silent.
    Silence,
    /// The reply went on for too long.
    Whole,
}

/// What the provider said about an error; for logs, except `error_code`, which is stable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The HTTP status; none inside a stream.
    pub status: Option<u16>,
    /// `error.type`; empty if something else than the provider answered.
    pub error_type: String,
    /// `error.details.error_code`: the cause, where the provider names one.
    pub error_code: Option<String>,
    /// Human-readable and subject to change.
    pub message: String,
    /// What the provider's support asks for.
    pub request_id: Option<String>,
    /// What the provider says of trying the same again, where it says anything.
    pub should_retry: Option<bool>,
}

impl Error {
    /// Told by type and code, never by the message.
    pub(super) fn class(&self) -> Class {
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
            Self::Invalid(detail) if is_doubtful(detail) => Class::Doubtful,
            Self::Invalid(_) | Self::Cooling { .. } | Self::NoKey => Class::Final,
        }
    }

    /// What the provider says of trying the same again, where it says anything.
    pub(super) fn should_retry(&self) -> Option<bool> {
        self.detail().and_then(|detail| detail.should_retry)
    }

    /// Whether the provider may have begun the reply all the same, and bill it: it had the request and said nothing of it.
    pub fn may_be_billed(&self) -> bool {
        match self {
            Self::Timeout {
                phase: Phase::FirstEvent,
            }
            | Self::Cut { .. } => true,
            Self::Cooling {
                last: Some(last), ..
            } => last.may_be_billed(),
            _ => false,
        }
    }

    /// What the provider said, if it said anything.
    pub fn detail(&self) -> Option<&Detail> {
        match self {
            Self::RateLimited { detail, .. }
            | Self::Overloaded { detail, .. }
            | Self::Provider { detail, .. }
            | Self::InStream(detail)
            | Self::SpendLimit(detail)
            | Self::Auth(detail)
            | Self::Invalid(detail) => Some(detail),
            Self::Transport(_)
            | Self::Timeout { .. }
            | Self::Cut { .. }
            | Self::Malformed { .. }
            | Self::Cooling { .. }
            | Self::NoKey => None,
        }
    }

    /// How long the provider asks us to wait, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::Overloaded { retry_after, .. }
            | Self::Provider { retry_after, .. } => *retry_after,
            Self::Cooling { retry_after, .. } => Some(*retry_after),
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
    pub(super) fn ours(message: &str) -> Box<Self> {
        Box::new(Self {
            message: message.to_owned(),
            ..Self::default()
        })
    }

    /// Reads the documented error body; of anything else its beginning is kept as the message.
    pub(super) fn parse(body: &str, request_id: Option<&str>, secret: &str) -> Self {
        let (error, body_id) = match serde_json::from_str::<WireError>(body) {
            Ok(wire) => (wire.error, wire.request_id),
            Err(_) => (
                WireErrorBody {
                    r#type: String::new(),
                    message: body.to_owned(),
                    details: None,
                },
                None,
            ),
        };
        let message = if secret.is_empty() {
            error.message
        } else {
            error.message.replace(secret, "[key]")
        };
        Self {
            status: None,
            error_type: error.r#type,
            error_code: error.details.and_then(|details| details.error_code),
            message: message.chars().take(MOST_MESSAGE_CHARS).collect(),
            request_id: request_id.map(str::to_owned).or(body_id),
            should_retry: None,
        }
    }
}

pub(super) fn transport(error: reqwest::Error) -> Error {
    if error.is_timeout() {
        Error::Timeout {
            phase: Phase::Connect,
        }
    } else {
        Error::Transport(error.without_url())
    }
}

/// Turns an answer that is not 200 into its error.
pub(super) async fn refused(mut response: reqwest::Response, secret: &str) -> Error {
    let mut body = Vec::new();
    // An error with half a body is still that error.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MOST_BODY_BYTES {
            break;
        }
    }
    let headers = response.headers();
    let said = Detail::parse(
        &String::from_utf8_lossy(&body),
        text(headers, "request-id"),
        secret,
    );
    let should_retry = text(headers, "x-should-retry").and_then(|said| said.parse().ok());
    let detail = Detail {
        should_retry,
        ..said
    };
    classify(response.status(), detail, retry_after(headers))
}

/// The provider's own word first; the status decides where something else answered.
fn classify(status: StatusCode, detail: Detail, retry_after: Option<Duration>) -> Error {
    let detail = Box::new(Detail {
        status: Some(status.as_u16()),
        ..detail
    });
    if is_spend_limit(&detail) {
        return Error::SpendLimit(detail);
    }
    if detail.error_code.as_deref() == Some("organization_on_hold") {
        return Error::Auth(detail);
    }
    match (detail.error_type.as_str(), status.as_u16()) {
        ("rate_limit_error", _) => Error::RateLimited {
            retry_after,
            detail,
        },
        ("authentication_error" | "billing_error" | "permission_error", _) => Error::Auth(detail),
        ("overloaded_error", _) => Error::Overloaded {
            retry_after,
            detail,
        },
        ("api_error" | "timeout_error" | "conflict_error", _) => Error::Provider {
            retry_after,
            detail,
        },
        ("not_found_error" | "request_too_large", _) => Error::Invalid(detail),
        (_, 429) => Error::RateLimited {
            retry_after,
            detail,
        },
        (_, 401..=403) => Error::Auth(detail),
        (_, 529) => Error::Overloaded {
            retry_after,
            detail,
        },
        (_, 408 | 409) => Error::Provider {
            retry_after,
            detail,
        },
        (_, 400..=499) => Error::Invalid(detail),
        _ => Error::Provider {
            retry_after,
            detail,
        },
    }
}

/// The provider's tiers and contracts say so by code.
fn is_spend_limit(detail: &Detail) -> bool {
    let codes = [
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "spend_limit_reached",
    ];
    detail
        .error_code
        .as_deref()
        .is_some_and(|code| codes.contains(&code))
}

/// A limit that an organisation set itself comes as the same 400 as a broken request, without a code of its own:
/// <https://platform.claude.com/docs/en/api/errors>. Whether it was one shows where another organisation is asked.
fn is_doubtful(detail: &Detail) -> bool {
    detail.status == Some(400)
        && detail.error_type == "invalid_request_error"
        && detail.error_code.is_none()
}

/// `retry-after-ms`, else `retry-after` in seconds or as a date, which is read against the answer's own `date`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| {
        text(headers, name)?
            .trim()
            .parse::<f64>()
            .ok()
            .filter(|number| !number.is_nan())
    };
    let date = |name: &str| {
        let format = format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        PrimitiveDateTime::parse(text(headers, name)?.trim(), &format).ok()
    };
    let seconds = number("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number("retry-after"))
        .or_else(|| Some((date("retry-after")? - date("date")?).as_seconds_f64()))?;
    let seconds = seconds.min(LONGEST_PAUSE.as_secs_f64());
    Some(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests;
