//! Secrets at rest: AES-256-GCM under `CREDENTIALS_KEY`, bound to the row that they belong to.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::{
    config::{Config, Key},
    http::error::{Error, Result},
};

/// What an opened secret is opened by decides whether it has to be sealed anew.
pub(super) struct Opened {
    pub(super) secret: String,
    /// Whether the key that seals today sealed it.
    pub(super) is_current: bool,
}

/// Seals with the first of the keys and opens with each.
pub(super) struct Seal {
    current: RandomizedNonceKey,
    former: Option<RandomizedNonceKey>,
}

impl Seal {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let current = cipher(&config.credentials_key.clone()?)?;
        Ok(Self {
            current,
            former: config
                .former_credentials_key
                .as_ref()
                .map(cipher)
                .transpose()?,
        })
    }

    /// Nonce, ciphertext and tag.
    pub(super) fn seal(&self, id: Uuid, label: &str, secret: &str) -> Result<Vec<u8>> {
        let mut sealed = secret.as_bytes().to_vec();
        let nonce = self
            .current
            .seal_in_place_append_tag(bound_to(id, label), &mut sealed)
            .map_err(failed)?;
        sealed.splice(..0, *nonce.as_ref());
        Ok(sealed)
    }

    /// Nothing where no key opens it, or it belongs to another row.
    pub(super) fn open(&self, id: Uuid, label: &str, sealed: &[u8]) -> Option<Opened> {
        let open = |key: &RandomizedNonceKey| {
            let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut sealed = sealed.to_vec();
            let secret = key
                .open_in_place(nonce, bound_to(id, label), &mut sealed)
                .ok()?;
            String::from_utf8(secret.to_vec()).ok()
        };
        let current = open(&self.current).map(|secret| Opened {
            secret,
            is_current: true,
        });
        let former = || {
            Some(Opened {
                secret: open(self.former.as_ref()?)?,
                is_current: false,
            })
        };
        current.or_else(former)
    }
}

/// The same setting makes pseudonyms and cache tags; what seals secrets is derived, and shared with none of them.
fn cipher(key: &Key) -> Result<RandomizedNonceKey> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    mac.update(b"claude_keys.sealed v1");
    RandomizedNonceKey::new(&AES_256_GCM, &mac.finalize().into_bytes()).map_err(failed)
}

fn bound_to(id: Uuid, label: &str) -> Aad<Vec<u8>> {
    Aad::from([id.as_bytes(), label.as_bytes()].concat())
}

fn failed(error: aws_lc_rs::error::Unspecified) -> Error {
    Error::Internal(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};

    fn seal(keys: &[u8]) -> Seal {
        let list: Vec<String> = keys
            .iter()
            .map(|byte| STANDARD.encode([*byte; 32]))
            .collect();
        Seal::new(&Config::from_lookup(|name| {
            (name == "CREDENTIALS_KEY").then(|| list.join(","))
        }))
        .unwrap()
    }

    #[test]
    fn the_first_key_seals_and_both_open() {
        let id = Uuid::from_u128(7);
        let (old, both, new) = (seal(&[1]), seal(&[2, 1]), seal(&[2]));
        let by_old = old.seal(id, "main", "sk-ant-1").unwrap();
        assert!(!by_old.windows(6).any(|part| part == b"sk-ant"));
        let opened = both.open(id, "main", &by_old).unwrap();
        assert_eq!(
            (opened.secret.as_str(), opened.is_current),
            ("sk-ant-1", false)
        );
        assert!(new.open(id, "main", &by_old).is_none());
        let by_new = both.seal(id, "main", "sk-ant-1").unwrap();
        assert!(new.open(id, "main", &by_new).unwrap().is_current);
        assert_ne!(
            by_new,
            both.seal(id, "main", "sk-ant-1").unwrap(),
            "no nonce comes twice"
        );
    }

    #[test]
    fn what_was_moved_or_changed_does_not_open() {
        let (seal, id) = (seal(&[1]), Uuid::from_u128(7));
        let sealed = seal.seal(id, "main", "sk-ant-1").unwrap();
        assert!(
            seal.open(id, "other", &sealed).is_none()
                && seal.open(Uuid::from_u128(8), "main", &sealed).is_none()
        );
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open(id, "main", &changed).is_none(), "byte {at}");
        }
        assert!(
            seal.open(id, "main", &sealed[..5]).is_none() && seal.open(id, "main", &[]).is_none()
        );
    }
}
