//! What a request can come to when it does not succeed: outcomes, not causes.
//!
//! Turning an error into a response has no side effects: the cause rides in the response's extensions, and
//! `telemetry` logs it once and writes the body (RFC 9457), because only it knows the request's id.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    config, db,
    plan::Plan,
    quota::{Allowance, Quota, wait_secs},
    redis, stripe, telemetry,
};

/// The result of every handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What stands behind a 5xx; shown to the log, never to the client.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How a request failed, as the client sees it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 401: no valid credentials.
    #[error("{detail}")]
    Unauthorized {
        /// Stable name of the case.
        code: &'static str,
        /// What the person can do.
        detail: &'static str,
    },
    /// 403: known, but not allowed.
    #[error("{detail}")]
    Forbidden {
        /// Stable name of the case.
        code: &'static str,
        /// What the person can do.
        detail: &'static str,
    },
    /// 404: not there, or somebody else's.
    #[error("There is nothing here.")]
    NotFound,
    /// 405: the route knows other methods.
    #[error("This address does not take that method.")]
    MethodNotAllowed,
    /// 409: the state of things is against it.
    #[error("{detail}")]
    Conflict {
        /// Stable name of the case.
        code: &'static str,
        /// What the person can do.
        detail: &'static str,
    },
    /// 413: more than the limit of a request body.
    #[error("The request body is too large.")]
    TooLarge,
    /// 415: not JSON.
    #[error("Send the body as application/json.")]
    UnsupportedMediaType,
    /// 422: well-formed, but a field does not hold.
    #[error("{message}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What it must be.
        message: String,
    },
    /// 422: the key was first used for another request.
    #[error("This idempotency key was used for another request.")]
    IdempotencyKeyReused,
    /// 429: the day's messages are used up.
    #[error("You have used all of today's {} messages. The next ones are there at midnight UTC.{}", .0.limit, .1.upgrade_hint())]
    QuotaExceeded(Quota, Plan),
    /// 429: more messages within a minute than anybody reads.
    #[error("That was too fast; send the next message in {}.", spoken(*.wait))]
    BurstExceeded {
        /// The day's messages, which are not the reason.
        quota: Quota,
        /// When the next one may come.
        wait: Duration,
    },
    /// 429: one of the limits on sign-ins and the like.
    #[error("{message} Try again in {}.", spoken(Duration::from_secs(.allowance.reset_in_secs)))]
    RateLimited {
        /// What is used up.
        allowance: Allowance,
        /// What there was too much of, as a sentence.
        message: &'static str,
    },
    /// 402: what the plan lets one user cost a day is used up.
    #[error(
        "Today's replies have cost all that your plan includes. You can go on at midnight UTC."
    )]
    SpendLimit(Quota),
    /// 503: what the service may cost is used up; by how much is nobody's business.
    #[error("Iconoclash has answered as much as it can afford for now; you can go on in {}.", spoken(*.wait))]
    BudgetSpent {
        /// When there is a new budget.
        reset_at: OffsetDateTime,
        /// Time until then.
        wait: Duration,
    },
    /// 502: the reply began and broke off; what was written is kept.
    #[error("The reply broke off. What was written so far is kept; send another message to go on.")]
    Interrupted,
    /// 503: something that the answer needs cannot be reached now.
    #[error("The service cannot answer right now; try again in a moment.")]
    Unavailable {
        /// When trying again may help.
        retry_after: Duration,
        /// For the log.
        cause: Cause,
    },
    /// 500: our fault.
    #[error("Something went wrong on our side.")]
    Internal(Cause),
}

impl Error {
    /// A field that does not hold.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    /// Something that cannot be reached for a short while.
    pub fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable {
            retry_after: Duration::from_secs(5),
            cause: cause.into(),
        }
    }

    /// What the log says: behind a failure of ours its cause, which no client sees.
    pub fn cause(&self) -> String {
        match self {
            Self::Unavailable { cause, .. } | Self::Internal(cause) => {
                telemetry::chain(cause.as_ref())
            }
            told => told.to_string(),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid { .. } | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::QuotaExceeded(..) | Self::BurstExceeded { .. } | Self::RateLimited { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::SpendLimit(_) => StatusCode::PAYMENT_REQUIRED,
            Self::Interrupted => StatusCode::BAD_GATEWAY,
            Self::BudgetSpent { .. } | Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::Unauthorized { code, .. }
            | Self::Forbidden { code, .. }
            | Self::Conflict { code, .. } => code,
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Invalid { .. } => "invalid",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::QuotaExceeded(..) => "quota_exceeded",
            Self::BurstExceeded { .. } => "burst_exceeded",
            Self::RateLimited { .. } => "rate_limited",
            Self::SpendLimit(_) => "spend_limit",
            Self::BudgetSpent { .. } => "budget_spent",
            Self::Interrupted => "reply_interrupted",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// The document that a client gets, without the request's id.
    pub fn problem(&self) -> Problem {
        let status = self.status();
        let mut problem = Problem {
            type_: match self {
                Self::QuotaExceeded(..)
                | Self::BurstExceeded { .. }
                | Self::RateLimited { .. }
                | Self::SpendLimit(_) => {
                    "https://iana.org/assignments/http-problem-types#quota-exceeded"
                }
                Self::BudgetSpent { .. } | Self::Unavailable { .. } => {
                    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
                }
                _ => "about:blank",
            },
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: self.to_string(),
            code: self.code(),
            request_id: None,
            errors: BTreeMap::new(),
            reset_at: None,
            retry_after: None,
        };
        match self {
            Self::Invalid { field, message } => {
                problem.errors.insert(field.clone(), message.clone());
            }
            Self::QuotaExceeded(quota, _) | Self::SpendLimit(quota) => {
                problem.reset_at = Some(quota.reset_at);
                problem.retry_after = Some(quota.reset_in_secs);
            }
            Self::BurstExceeded { quota, wait } => {
                problem.retry_after = Some(wait_secs(*wait));
                problem.reset_at = Some(quota.asked_at + *wait);
            }
            Self::RateLimited { allowance, .. } => {
                problem.retry_after = Some(allowance.reset_in_secs);
                problem.reset_at = Some(allowance.reset_at);
            }
            Self::BudgetSpent { reset_at, wait } => {
                problem.retry_after = Some(wait_secs(*wait));
                problem.reset_at = Some(*reset_at);
            }
            Self::Unavailable { retry_after, .. } => {
                problem.retry_after = Some(wait_secs(*retry_after))
            }
            _ => {}
        }
        problem
    }
}

/// An error in the form of RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is, as an address that is also its name.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub type_: &'static str,
    /// The status in words.
    #[schema(example = "Conflict")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 409)]
    pub status: u16,
    /// What happened, for a person.
    pub detail: String,
    /// What happened, for a program: stable.
    #[schema(example = "email_taken")]
    pub code: &'static str,
    /// What to name when asking for help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, String>,
    /// When the limit is renewed.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub reset_at: Option<OffsetDateTime>,
    /// Seconds after which trying again may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// What `telemetry` finds in the extensions of a failed response.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The body to write.
    pub problem: Problem,
    /// What to log, for a 5xx.
    pub cause: Option<Arc<Cause>>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let mut headers = HeaderMap::new();
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match &self {
            Self::QuotaExceeded(quota, _) | Self::SpendLimit(quota) => {
                headers.extend(quota.headers())
            }
            Self::BurstExceeded { quota, wait } => headers.extend(quota.burst_headers(*wait)),
            Self::RateLimited { allowance, .. } => headers.extend(allowance.headers()),
            _ => {}
        }
        if matches!(self, Self::Unauthorized { .. }) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let cause = match self {
            Self::Unavailable { cause, .. } | Self::Internal(cause) => Some(Arc::new(cause)),
            _ => None,
        };
        let mut response = (self_status(&problem), headers).into_response();
        response.extensions_mut().insert(Failure { problem, cause });
        response
    }
}

fn self_status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).expect("a problem holds the status that it was made from")
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Unavailable(_) | db::Error::Deadline => Self::unavailable(error),
            _ => Self::Internal(error.into()),
        }
    }
}

impl From<config::Invalid> for Error {
    fn from(error: config::Invalid) -> Self {
        Self::unavailable(error)
    }
}

impl From<stripe::Error> for Error {
    fn from(error: stripe::Error) -> Self {
        match &error {
            stripe::Error::Unreachable(_) => Self::unavailable(error),
            stripe::Error::Refused { status, .. }
                if status.is_server_error() || status.as_u16() == 429 =>
            {
                Self::unavailable(error)
            }
            _ => Self::Internal(error.into()),
        }
    }
}

impl From<redis::Error> for Error {
    fn from(error: redis::Error) -> Self {
        match &error {
            redis::Error::Asked(asked) if !asked.is_unavailable() => Self::Internal(error.into()),
            _ => Self::unavailable(error),
        }
    }
}

/// A wait as a person says it, rounded up.
fn spoken(wait: Duration) -> String {
    let seconds = wait_secs(wait);
    let (count, unit) = match seconds {
        0..=90 => (seconds, "second"),
        91..=5_400 => (seconds.div_ceil(60), "minute"),
        5_401..=129_600 => (seconds.div_ceil(3_600), "hour"),
        _ => (seconds.div_ceil(86_400), "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

/// Names the outcome that a constraint of the schema stands for.
pub trait OnConstraint<T> {
    /// Where the named constraint refused the statement, the outcome is `error`.
    fn on_constraint(self, name: &str, error: Error) -> Result<T>;
}

impl<T> OnConstraint<T> for std::result::Result<T, db::Error> {
    fn on_constraint(self, name: &str, error: Error) -> Result<T> {
        self.map_err(|refused| {
            if refused.constraint() == Some(name) {
                error
            } else {
                refused.into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_said_in_the_unit_that_people_use() {
        for (seconds, expected) in [
            (0, "1 second"),
            (45, "45 seconds"),
            (91, "2 minutes"),
            (5_400, "90 minutes"),
            (5_401, "2 hours"),
            (86_400, "24 hours"),
            (200_000, "3 days"),
        ] {
            assert_eq!(spoken(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(spoken(Duration::from_millis(1_001)), "2 seconds");
    }
}
