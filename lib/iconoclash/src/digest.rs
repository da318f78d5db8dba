//! Digests of several strings, each with its length in front, so that ("ab", "c") and ("a", "bc") differ.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// SHA-256 of the parts.
pub(crate) fn sha256(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(length(part));
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA-256 of the parts. Without the key, a value cannot be guessed from its digest nor be forged.
pub(crate) fn keyed(key: &[u8; 32], parts: &[&str]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(&length(part));
        mac.update(part.as_bytes());
    }
    mac.finalize().into_bytes().into()
}

fn length(part: &str) -> [u8; 8] {
    (part.len() as u64).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_parts_counts() {
        assert_ne!(sha256(&["ab", "c"]), sha256(&["a", "bc"]));
        assert_ne!(keyed(&[1; 32], &["ab", "c"]), keyed(&[1; 32], &["a", "bc"]));
    }

    #[test]
    fn a_keyed_digest_depends_on_the_key() {
        assert_ne!(keyed(&[1; 32], &["a"]), keyed(&[2; 32], &["a"]));
        assert_ne!(keyed(&[1; 32], &["a"]), sha256(&["a"]));
    }
}
