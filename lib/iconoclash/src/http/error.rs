//! How a request fails, as the client sees it: outcomes, not causes.
//!
//! Turning an error into a response has no side effects. The response carries the cause in its extensions;
//! [`super::observe`], which knows the request's id, logs it once and writes the body (RFC 9457).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{rate_limit_status::retry_after_secs, request_log};

/// The result of every handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of a 5xx. Logged, never sent to the client.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// When to retry a request that found an earlier one running.
const IN_PROGRESS_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How a request failed, as the client sees it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 401: no valid credentials.
    #[error("{detail}")]
    Unauthorized {
        /// Stable name of the case.
        code: &'static str,
        /// What happened and what to do, for a person.
        detail: &'static str,
    },
    /// 403: known, but not allowed.
    #[error("{detail}")]
    Forbidden {
        /// Stable name of the case.
        code: &'static str,
        /// What happened and what to do, for a person.
        detail: &'static str,
    },
    /// 404: does not exist, or belongs to another user.
    #[error("Not found.")]
    NotFound,
    /// 405: the route supports other methods.
    #[error("This endpoint does not support that method.")]
    MethodNotAllowed,
    /// 409: the current state does not allow it.
    #[error("{detail}")]
    Conflict {
        /// Stable name of the case.
        code: &'static str,
        /// What happened and what to do, for a person.
        detail: &'static str,
    },
    /// 409: an earlier request is still running. A retry may succeed in a moment.
    #[error("{detail}")]
    InProgress {
        /// Stable name of the case.
        code: &'static str,
        /// What the person can do.
        detail: &'static str,
    },
    /// 413: the body is larger than the limit.
    #[error("The request body is too large.")]
    TooLarge,
    /// 415: the body is not JSON.
    #[error("Send the body as application/json.")]
    UnsupportedMediaType,
    /// 415: the body is compressed.
    #[error("The body must not be compressed. Send it without Content-Encoding.")]
    CompressedBody,
    /// 422: well-formed, but a field is not valid.
    #[error("{}", sentence(field, message))]
    Invalid {
        /// Path of the field, or `body` for all of it.
        field: String,
        /// What the field must be, as the predicate of a sentence: "must be a string".
        message: String,
    },
    /// 400: a value of the query string is not valid.
    #[error("{}", sentence(field, message))]
    InvalidQuery {
        /// Name of the value.
        field: String,
        /// What the value must be, as the predicate of a sentence.
        message: String,
    },
    /// 422: the idempotency key was first used for another request.
    #[error("This idempotency key was used for another request. Use a new key.")]
    IdempotencyKeyReused,
    /// 402, 429 or 503: a limit is reached. Built where the limit lives.
    #[error("{}", .0.detail)]
    Limited(Box<Limited>),
    /// 502: the reply broke off. The text so far is kept.
    #[error(
        "The reply was interrupted. The text so far is saved; send another message to continue."
    )]
    Interrupted,
    /// 503: a dependency is unreachable.
    #[error("The service is temporarily unavailable. Try again in a moment.")]
    Unavailable {
        /// When a retry may succeed.
        retry_after: Duration,
        /// Logged, never sent to the client.
        cause: Cause,
    },
    /// 500: a defect of this service.
    #[error("Something went wrong on our side.")]
    Internal(Cause),
}

/// A limit that is reached, and when it resets.
#[derive(Debug)]
pub struct Limited {
    /// 402, 429 or 503.
    pub status: StatusCode,
    /// Stable name of the limit.
    pub code: &'static str,
    /// What happened and what to do, for a person.
    pub detail: String,
    /// When the limit resets.
    pub reset_at: OffsetDateTime,
    /// Time until then.
    pub retry_after: Duration,
    /// The headers that report the limit.
    pub headers: HeaderMap,
}

impl From<Limited> for Error {
    fn from(limited: Limited) -> Self {
        Self::Limited(Box::new(limited))
    }
}

impl Error {
    /// A field that is not valid.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    /// A dependency that is unreachable for a short while.
    pub fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable {
            retry_after: Duration::from_secs(5),
            cause: cause.into(),
        }
    }

    /// A defect of this service.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    /// The text for the log: the cause if there is one, else the client's message.
    pub fn cause(&self) -> String {
        match self {
            Self::Unavailable { cause, .. } | Self::Internal(cause) => {
                request_log::error_chain(cause.as_ref())
            }
            outcome => outcome.to_string(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::InvalidQuery { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict { .. } | Self::InProgress { .. } => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType | Self::CompressedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid { .. } | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Limited(limited) => limited.status,
            Self::Interrupted => StatusCode::BAD_GATEWAY,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::InvalidQuery { .. } => "bad_request",
            Self::Unauthorized { code, .. }
            | Self::Forbidden { code, .. }
            | Self::Conflict { code, .. }
            | Self::InProgress { code, .. } => code,
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::CompressedBody => "unsupported_encoding",
            Self::Invalid { .. } => "invalid",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::Limited(limited) => limited.code,
            Self::Interrupted => "reply_interrupted",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// The document for the client, without the request's id.
    pub fn problem(&self) -> Problem {
        let status = self.status();
        let retry_after = match self {
            Self::Limited(limited) => Some(limited.retry_after),
            Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::InProgress { .. } => Some(IN_PROGRESS_RETRY_AFTER),
            _ => None,
        };
        let reset_at = match self {
            Self::Limited(limited) => Some(limited.reset_at),
            _ => None,
        };
        let errors = match self {
            Self::Invalid { field, message } | Self::InvalidQuery { field, message } => {
                [(field.clone(), message.clone())].into()
            }
            _ => BTreeMap::new(),
        };

        Problem {
            type_: self.problem_type(),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: self.to_string(),
            code: self.code(),
            request_id: None,
            errors,
            reset_at,
            retry_after: retry_after.map(retry_after_secs),
        }
    }

    /// A type of the IANA registry of HTTP problem types, or `about:blank`.
    fn problem_type(&self) -> &'static str {
        let is_limit = matches!(self, Self::Limited(_));

        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE => {
                "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            }
            _ if is_limit => "https://iana.org/assignments/http-problem-types#quota-exceeded",
            _ => "about:blank",
        }
    }
}

/// "title must be a string."
fn sentence(field: &str, message: &str) -> String {
    let subject = if field == "body" { "The body" } else { field };
    let predicate = message.trim_end_matches('.');
    format!("{subject} {predicate}.")
}

/// An error in the form of RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, as a URI.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub type_: &'static str,
    /// The reason phrase of the status.
    #[schema(example = "Conflict")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 409)]
    pub status: u16,
    /// What happened and what to do, for a person.
    pub detail: String,
    /// What happened, for a program. Stable.
    #[schema(example = "email_taken")]
    pub code: &'static str,
    /// The request to name when asking for help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// What is wrong, by field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, String>,
    /// When the limit resets.
    #[serde(
        with = "crate::clock::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub reset_at: Option<OffsetDateTime>,
    /// Seconds after which a retry may succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// The failure in the extensions of a response, for [`super::observe`].
#[derive(Clone, Debug)]
pub struct Failure {
    /// The body to write.
    pub problem: Problem,
    /// The cause to log, for a 5xx.
    pub cause: Option<Arc<Cause>>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let problem = self.problem();

        let mut headers = HeaderMap::new();
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::CompressedBody) {
            let identity = HeaderValue::from_static("identity");
            headers.insert(header::ACCEPT_ENCODING, identity);
        }

        let cause = match self {
            Self::Limited(limited) => {
                headers.extend(limited.headers);
                None
            }
            Self::Unavailable { cause, .. } | Self::Internal(cause) => Some(Arc::new(cause)),
            _ => None,
        };

        let mut response = (status, headers).into_response();
        response.extensions_mut().insert(Failure { problem, cause });
        response
    }
}
