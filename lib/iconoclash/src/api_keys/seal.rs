//! Encryption of stored secrets: AES-256-GCM under `CREDENTIALS_KEY`, bound to the row's id and label.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::SecretString;
use sha2::Sha256;
use uuid::Uuid;

use crate::{
    config::{Config, Key},
    http::error::{Error, Result},
};

/// A decrypted secret.
pub(super) struct Opened {
    pub(super) secret: SecretString,
    /// Whether the current key sealed it. Otherwise it has to be resealed.
    pub(super) is_current: bool,
}

/// Seals with the current key, and opens with the current or the former key.
pub(super) struct Seal {
    current: RandomizedNonceKey,
    former: Option<RandomizedNonceKey>,
}

impl Seal {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let current = cipher(&config.credentials_key.clone()?)?;
        let former = config.former_credentials_key.as_ref();

        Ok(Self {
            current,
            former: former.map(cipher).transpose()?,
        })
    }

    /// Returns nonce, ciphertext and tag.
    pub(super) fn seal(&self, id: Uuid, label: &str, secret: &str) -> Result<Vec<u8>> {
        let mut sealed = secret.as_bytes().to_vec();
        let nonce = self
            .current
            .seal_in_place_append_tag(associated_data(id, label), &mut sealed)
            .map_err(cipher_error)?;

        sealed.splice(..0, *nonce.as_ref());
        Ok(sealed)
    }

    /// `None` if no key opens it, or if it belongs to another row.
    pub(super) fn open(&self, id: Uuid, label: &str, sealed: &[u8]) -> Option<Opened> {
        if let Some(secret) = open_with(&self.current, id, label, sealed) {
            return Some(Opened {
                secret,
                is_current: true,
            });
        }

        let former = self.former.as_ref()?;
        Some(Opened {
            secret: open_with(former, id, label, sealed)?,
            is_current: false,
        })
    }
}

fn open_with(
    key: &RandomizedNonceKey,
    id: Uuid,
    label: &str,
    sealed: &[u8],
) -> Option<SecretString> {
    let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;

    let mut buffer = ciphertext.to_vec();
    let secret = key
        .open_in_place(nonce, associated_data(id, label), &mut buffer)
        .ok()?;

    let secret = std::str::from_utf8(secret).ok()?;
    Some(SecretString::from(secret))
}

/// A key derived from `CREDENTIALS_KEY`, because the setting also makes pseudonyms and cache tags.
fn cipher(key: &Key) -> Result<RandomizedNonceKey> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    mac.update(b"claude_keys.sealed v1");

    let derived = mac.finalize().into_bytes();
    RandomizedNonceKey::new(&AES_256_GCM, &derived).map_err(cipher_error)
}

/// Binds the ciphertext to its row.
fn associated_data(id: Uuid, label: &str) -> Aad<Vec<u8>> {
    Aad::from([id.as_bytes(), label.as_bytes()].concat())
}

fn cipher_error(error: aws_lc_rs::error::Unspecified) -> Error {
    Error::internal(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};
    use secrecy::ExposeSecret;

    const ID: Uuid = Uuid::from_u128(7);
    const OTHER_ID: Uuid = Uuid::from_u128(8);

    fn seal(keys: &[u8]) -> Seal {
        let list: Vec<String> = keys
            .iter()
            .map(|byte| STANDARD.encode([*byte; 32]))
            .collect();
        let lookup = |name: &str| (name == "CREDENTIALS_KEY").then(|| list.join(","));

        Seal::new(&Config::from_lookup(lookup)).unwrap()
    }

    #[test]
    fn the_first_key_seals_and_both_open() {
        let old = seal(&[1]);
        let both = seal(&[2, 1]);
        let new = seal(&[2]);

        let by_old = old.seal(ID, "main", "sk-ant-1").unwrap();
        assert!(!by_old.windows(6).any(|part| part == b"sk-ant"));
        let opened = both.open(ID, "main", &by_old).unwrap();
        assert_eq!(opened.secret.expose_secret(), "sk-ant-1");
        assert!(!opened.is_current);
        assert!(new.open(ID, "main", &by_old).is_none());

        let by_new = both.seal(ID, "main", "sk-ant-1").unwrap();
        assert!(new.open(ID, "main", &by_new).unwrap().is_current);
        let again = both.seal(ID, "main", "sk-ant-1").unwrap();
        assert_ne!(by_new, again, "nonces differ");
    }

    #[test]
    fn a_secret_that_was_moved_or_changed_does_not_open() {
        let seal = seal(&[1]);
        let sealed = seal.seal(ID, "main", "sk-ant-1").unwrap();
        assert!(seal.open(ID, "other", &sealed).is_none());
        assert!(seal.open(OTHER_ID, "main", &sealed).is_none());

        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open(ID, "main", &changed).is_none(), "byte {at}");
        }
        assert!(seal.open(ID, "main", &sealed[..5]).is_none());
        assert!(seal.open(ID, "main", &[]).is_none());
    }
}
