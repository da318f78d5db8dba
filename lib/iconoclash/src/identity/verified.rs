//! Tokens whose signature this process has verified, so that the next request of a session need not verify it again.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::digest;

/// Tokens of one generation. Two generations are remembered.
const GENERATION: usize = 5_000;

/// Claims by the digest of their token. Two tokens with one digest would be a collision of SHA-256.
///
/// It belongs to the keys that verified the tokens, and must not outlive them. It never decides whether a token is valid
/// now: the caller checks the times of the claims.
pub(super) struct VerifiedTokens<Claims>(Mutex<Generations<Claims>>);

/// Tokens that are not sent any more stay in the old generation and leave with it.
struct Generations<Claims> {
    young: HashMap<[u8; 32], Claims>,
    old: HashMap<[u8; 32], Claims>,
}

/// The digest of a token.
pub(super) fn digest(token: &str) -> [u8; 32] {
    digest::sha256(&["token", token])
}

impl<Claims: Clone> VerifiedTokens<Claims> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Generations {
            young: HashMap::new(),
            old: HashMap::new(),
        }))
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Claims> {
        let mut generations = self.generations();
        if let Some(claims) = generations.young.get(digest) {
            return Some(claims.clone());
        }

        let claims = generations.old.remove(digest)?;
        generations.insert(*digest, claims.clone());
        Some(claims)
    }

    pub(super) fn insert(&self, digest: [u8; 32], claims: Claims) {
        self.generations().insert(digest, claims);
    }

    pub(super) fn remove(&self, digest: &[u8; 32]) {
        let mut generations = self.generations();
        generations.young.remove(digest);
        generations.old.remove(digest);
    }

    fn generations(&self) -> MutexGuard<'_, Generations<Claims>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let generations = self.generations();
        generations.young.len() + generations.old.len()
    }
}

impl<Claims> Generations<Claims> {
    fn insert(&mut self, digest: [u8; 32], claims: Claims) {
        if self.young.len() >= GENERATION {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest, claims);
    }
}
