//! `Idempotency-Key`: a second request with the same key and content gets the first response again.

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{digest, http::error::Error};

/// The header of a response that repeats an earlier one.
pub(crate) const REPLAYED: (&str, &str) = ("idempotent-replayed", "true");

/// A request with the same key is still running.
pub(crate) const IN_PROGRESS: Error = Error::InProgress {
    code: "request_in_progress",
    detail: "The first request with this idempotency key is still running. Try again in a moment.",
};

/// The client's key for its request, if it sent one.
#[derive(Clone, Debug)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Ok(Self(None));
        };

        let key = value.as_bytes();
        if (1..=255).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic) {
            Ok(Self(Some(String::from_utf8_lossy(key).into_owned())))
        } else {
            Err(Error::BadRequest(
                "Idempotency-Key must be 1 to 255 visible ASCII characters.".to_owned(),
            ))
        }
    }
}

/// Identifies a request by where it went and what it contained. A key is bound to one fingerprint.
pub(crate) fn fingerprint(parts: &[&str]) -> Vec<u8> {
    digest::sha256(parts).to_vec()
}
