//! `Idempotency-Key`: the same key and request get the first answer again.

use axum::{extract::FromRequestParts, http::request::Parts};
use sha2::{Digest, Sha256};

use crate::http::error::Error;

/// The answer is a replay of an earlier one.
pub const REPLAYED: (&str, &str) = ("idempotent-replayed", "true");

/// What the client named its request, if it did.
#[derive(Clone, Debug)]
pub struct IdempotencyKey(pub Option<String>);

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

/// What tells one request from another under the same key: where it went and what it said.
pub fn fingerprint(parts: &[&str]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_vec()
}

/// Another request holds the key and has not ended yet.
pub const IN_PROGRESS: Error = Error::Conflict {
    code: "request_in_progress",
    detail: "The first request with this idempotency key is still running; ask again in a moment.",
};
