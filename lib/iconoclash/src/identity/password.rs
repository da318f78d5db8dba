//! Passwords: argon2id, computed off the async threads.

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use std::sync::{Arc, LazyLock};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::http::error::{Error, Result};

/// Each hash takes 19 MiB and a core, so that a burst of sign-ins must queue rather than exhaust the function.
const AT_ONCE: usize = 4;
static SLOTS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));

/// Verified where there is no account, so that a sign-in takes the same time for an unknown address.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| hash_now("nobody signs in with this").unwrap_or_default());

/// The PHC string of a password, with its own salt.
pub async fn hash(password: String) -> Result<String> {
    let hashed = off_the_runtime(move || hash_now(&password)).await?;
    hashed.map_err(|error| Error::Internal(error.to_string().into()))
}

/// Whether a password is the one of a stored PHC string; `None` costs the same and is never right.
pub async fn verify(password: String, stored: Option<String>) -> Result<bool> {
    off_the_runtime(move || {
        let known = stored.is_some();
        let stored = stored.as_deref().unwrap_or(&NOBODY);
        let right = PasswordHash::new(stored).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        });
        known && right
    })
    .await
}

fn hash_now(password: &str) -> argon2::password_hash::Result<String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let slot = SLOTS
        .clone()
        .acquire_owned()
        .await
        .expect("nobody closes the semaphore");
    let done = spawn_blocking(move || {
        let result = work();
        drop(slot);
        result
    });
    done.await
        .map_err(|panicked| Error::Internal(panicked.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account_verifies() {
        let stored = hash("correct horse".to_owned()).await.unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert!(
            verify("correct horse".to_owned(), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(
            !verify("wrong horse".to_owned(), Some(stored))
                .await
                .unwrap()
        );
        assert!(
            !verify("nobody signs in with this".to_owned(), None)
                .await
                .unwrap()
        );
        assert!(
            !verify("x".to_owned(), Some("not a hash".to_owned()))
                .await
                .unwrap()
        );
    }
}
