//! Why a call failed, and whether a retry may succeed.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

/// Why a call to Stripe failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No complete answer arrived within the deadline.
    #[error("Stripe cannot be reached: {0}")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer does not have the format of the API version.
    #[error("Stripe's answer cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Stripe refused the request.
    #[error(
        "Stripe refused with {status}{}: {message}",
        code.as_ref().map(|code| format!(" {code}")).unwrap_or_default()
    )]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Such as `resource_missing`.
        code: Option<String>,
        /// The parameter that caused the error.
        param: Option<String>,
        /// Stripe's explanation, with the id of the request.
        message: String,
    },
}

impl Error {
    /// Whether the customer is deleted, or Stripe does not know it, for example because a test key was replaced by a live
    /// one. Which of the two it is: [`is_customer_deleted`](crate::Stripe::is_customer_deleted).
    pub fn customer_is_missing(&self) -> bool {
        matches!(
            self,
            Self::Refused { code, param, .. }
                if code.as_deref() == Some("resource_missing")
                    && param.as_deref() == Some("customer")
        )
    }

    /// Whether the object that the path names does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }
        )
    }

    /// Whether the object's current state does not allow the request.
    pub(crate) fn is_invalid_request(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: StatusCode::BAD_REQUEST,
                ..
            }
        )
    }

    /// The error that an unsuccessful answer describes.
    pub(crate) fn from_answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let detail = serde_json::from_slice::<ErrorBody>(body)
            .unwrap_or_default()
            .error;
        let request_id = headers
            .get("request-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or("no request id");
        let reason = detail.message.as_deref().unwrap_or("no reason given");

        Self::Refused {
            status,
            message: format!("{reason} ({request_id})"),
            code: detail.code,
            param: detail.param,
        }
    }
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Default, Deserialize)]
struct ErrorDetail {
    code: Option<String>,
    param: Option<String>,
    message: Option<String>,
}

/// Whether the same request may succeed later. Stripe's header decides; without it, 409 and 5xx may.
pub(crate) fn is_retryable(status: StatusCode, headers: &HeaderMap) -> bool {
    let hint = headers
        .get("stripe-should-retry")
        .map(http::HeaderValue::as_bytes);

    match hint {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => status == StatusCode::CONFLICT || status.is_server_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[track_caller]
    fn check_retryable(status: u16, hint: Option<&'static str>, expected: bool) {
        let mut headers = HeaderMap::new();
        if let Some(hint) = hint {
            let name = HeaderName::from_static("stripe-should-retry");
            headers.insert(name, HeaderValue::from_static(hint));
        }

        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(
            is_retryable(status, &headers),
            expected,
            "{status} {hint:?}"
        );
    }

    #[test]
    fn the_header_decides_about_a_retry_and_without_it_the_status() {
        for (status, expected) in [
            (400, false),
            (402, false),
            (409, true),
            (429, false),
            (500, true),
            (503, true),
        ] {
            check_retryable(status, None, expected);
            check_retryable(status, Some("true"), true);
            check_retryable(status, Some("false"), false);
            check_retryable(status, Some("perhaps"), expected);
        }
    }

    #[test]
    fn a_refusal_shows_stripes_reason_and_tolerates_a_body_without_one() {
        let refusal = |body: &str| {
            Error::from_answer(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes())
        };

        let missing = refusal(
            r#"{"error":{"code":"resource_missing","param":"customer","message":"No such customer"}}"#,
        );
        assert!(missing.customer_is_missing());
        assert_eq!(
            missing.to_string(),
            "Stripe refused with 400 Bad Request resource_missing: No such customer (no request id)"
        );
        assert_eq!(
            refusal("<html>").to_string(),
            "Stripe refused with 400 Bad Request: no reason given (no request id)"
        );
    }
}
