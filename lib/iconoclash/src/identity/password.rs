//! Password hashing with argon2id, on blocking threads.

use std::sync::{Arc, LazyLock};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::http::error::{Error, Result};

/// Each hash takes 19 MiB and a core, so a burst of sign-ins queues instead of exhausting the function.
const MAX_CONCURRENT_HASHES: usize = 4;
static SLOTS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(MAX_CONCURRENT_HASHES)));

/// Verified if there is no account, so a sign-in takes the same time for an unknown address.
static DUMMY_HASH: LazyLock<String> =
    LazyLock::new(|| hash_blocking("nobody signs in with this").unwrap_or_default());

/// Hashes a password with a fresh salt. Returns a PHC string.
pub async fn hash(password: String) -> Result<String> {
    let hashed = on_blocking_thread(move || hash_blocking(&password)).await?;
    hashed.map_err(|error| Error::internal(error.to_string()))
}

/// Whether a password matches a stored PHC string. `None` takes the same time and never matches.
pub async fn verify(password: String, stored: Option<String>) -> Result<bool> {
    on_blocking_thread(move || {
        let has_account = stored.is_some();
        let stored = stored.as_deref().unwrap_or(&DUMMY_HASH);

        let matches = PasswordHash::new(stored).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        });
        has_account && matches
    })
    .await
}

fn hash_blocking(password: &str) -> argon2::password_hash::Result<String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let slot = SLOTS
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");

    let done = spawn_blocking(move || {
        let result = work();
        drop(slot);
        result
    });
    done.await.map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account_verifies() {
        let stored = hash("correct horse".to_owned()).await.unwrap();
        let parameters = "$argon2id$v=19$m=19456,t=2,p=1$";
        assert!(stored.starts_with(parameters), "{stored}");

        let verifies = async |password: &str, stored: Option<&str>| {
            let stored = stored.map(str::to_owned);
            verify(password.to_owned(), stored).await.unwrap()
        };
        assert!(verifies("correct horse", Some(&stored)).await);
        assert!(!verifies("wrong horse", Some(&stored)).await);
        assert!(!verifies("nobody signs in with this", None).await);
        assert!(!verifies("x", Some("not a hash")).await);
    }
}
