//! Errors from HTTP responses.

use std::error::Error as _;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use secrecy::SecretString;
use tokio::time::{Instant, timeout_at};

use super::{Detail, Error, Phase};
use crate::headers::header_text;

/// Upper bound of every `retry-after`.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// The provider's error bodies are a few hundred bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The error of a request that got no response.
pub(crate) fn transport_error(error: reqwest::Error, is_sent: bool) -> Error {
    // After the request was sent, the connection's own pings notice that nothing answers.
    match error.is_timeout() {
        true => late(is_sent),
        false => Error::Transport(error.without_url()),
    }
}

/// The error of a request that got no response in time.
pub(crate) fn late(is_sent: bool) -> Error {
    let phase = match is_sent {
        true => Phase::FirstEvent,
        false => Phase::Connect,
    };
    Error::Timeout { phase }
}

/// Whether the server said that it did not process the request: it was closing the connection, or had no place for
/// another stream. The same request may be sent again.
pub(crate) fn is_unprocessed(error: &reqwest::Error) -> bool {
    let mut source = error.source();

    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_closing = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (is_closing || is_refused);
        }
        source = error.source();
    }
    false
}

/// The error of a response whose status is not 200.
pub(crate) async fn error_from_response(
    mut response: reqwest::Response,
    secret: &SecretString,
    deadline: Instant,
) -> Error {
    let mut body = Vec::new();

    // The status and half a body still classify the error.
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY_BYTES {
            break;
        }
    }

    let headers = response.headers();
    let body = String::from_utf8_lossy(&body);
    let should_retry = header_text(headers, "x-should-retry").and_then(|hint| hint.parse().ok());

    let detail = Detail {
        should_retry,
        ..Detail::parse(&body, header_text(headers, "request-id"), secret)
    };
    classify(response.status(), detail, retry_after(headers))
}

/// The provider's error type decides. The status decides if a proxy answered.
pub(super) fn classify(status: StatusCode, detail: Detail, retry_after: Option<Duration>) -> Error {
    let detail = Box::new(Detail {
        status: Some(status.as_u16()),
        ..detail
    });
    if detail.is_spend_limit() {
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

/// `retry-after-ms`, else `retry-after` in seconds, else as a date relative to the response's own `date`.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = number(headers, "retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number(headers, "retry-after"));

    if let Some(seconds) = seconds {
        let seconds = seconds.min(MAX_RETRY_AFTER.as_secs_f64());
        return Some(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    }

    let date = |name| httpdate::parse_http_date(header_text(headers, name)?.trim()).ok();
    let wait = date("retry-after")?.duration_since(date("date")?);
    Some(wait.unwrap_or_default().min(MAX_RETRY_AFTER))
}

fn number(headers: &HeaderMap, name: &str) -> Option<f64> {
    let number: f64 = header_text(headers, name)?.trim().parse().ok()?;
    (!number.is_nan()).then_some(number)
}
