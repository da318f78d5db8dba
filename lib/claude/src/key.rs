//! A key of the provider's API, and whose limits it shares.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A key and the name that logs, ledgers and operators know it by.
#[derive(Clone)]
pub struct ApiKey {
    /// Safe to log.
    pub label: String,
    /// Whose limits it shares; none where no other key does.
    pub organisation: Option<String>,
    /// Its share of the conversations, against the other keys' weights.
    pub weight: u32,
    pub(super) secret: Arc<str>,
}

impl ApiKey {
    /// Pairs a secret with its label; its organisation is its own, its weight 1.
    pub fn new(label: impl Into<String>, secret: impl Into<Arc<str>>) -> Self {
        Self {
            label: label.into(),
            organisation: None,
            weight: 1,
            secret: secret.into(),
        }
    }

    /// The same key in an organisation.
    pub fn within(self, organisation: Option<String>) -> Self {
        Self {
            organisation,
            ..self
        }
    }

    /// The same key with another weight.
    pub fn weighing(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// What is left alone with this key alone. Another secret under the same label is another key.
    pub(super) fn scope(&self) -> String {
        format!("k:{}:{}", self.label, self.print())
    }

    /// What is left alone with all keys of its organisation.
    pub(super) fn organisation_scope(&self) -> String {
        match &self.organisation {
            Some(organisation) => format!("o:{organisation}"),
            None => format!("o:={}:{}", self.label, self.print()),
        }
    }

    /// How much this key wants a conversation: the highest bidder among those at hand gets it, on every instance the
    /// same one and in proportion to the weights (rendezvous hashing). A key that comes or goes moves no others' share.
    pub(super) fn bid(&self, conversation: Uuid) -> f64 {
        let hash = Sha256::new()
            .chain_update(self.label.as_bytes())
            .chain_update(conversation.as_bytes())
            .finalize();
        let bits = hash
            .iter()
            .take(6)
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        // Between 0 and 1, and neither.
        let uniform = (bits as f64 + 0.5) / (1_u64 << 48) as f64;
        f64::from(self.weight) / -uniform.ln()
    }

    /// Tells secrets apart without telling anything of them: they are as random as their hashes.
    fn print(&self) -> String {
        Sha256::digest(self.secret.as_bytes())
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("label", &self.label)
            .field("organisation", &self.organisation)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_shared_by_weight_and_stay_where_they_are_when_a_key_goes() {
        let keys = [
            ApiKey::new("a", "1").weighing(3),
            ApiKey::new("b", "2"),
            ApiKey::new("c", "3"),
        ];
        let winner = |among: &[ApiKey], conversation: u128| {
            let bid = |key: &&ApiKey| key.bid(Uuid::from_u128(conversation));
            among
                .iter()
                .max_by(|x, y| bid(x).total_cmp(&bid(y)))
                .unwrap()
                .label
                .clone()
        };
        let first: Vec<String> = (0..10_000)
            .map(|conversation| winner(&keys, conversation))
            .collect();
        let share = |label: &str| first.iter().filter(|winner| *winner == label).count();
        assert!(
            share("a").abs_diff(6_000) < 300 && share("b").abs_diff(2_000) < 300,
            "{} {}",
            share("a"),
            share("b")
        );
        let without_c = (0..10_000).map(|conversation| winner(&keys[..2], conversation));
        assert!(
            first
                .iter()
                .zip(without_c)
                .all(|(before, after)| before == "c" || *before == after)
        );
    }

    #[test]
    fn another_secret_under_the_same_label_is_another_key() {
        let (old, new) = (ApiKey::new("a", "1"), ApiKey::new("a", "2"));
        assert_ne!(old.scope(), new.scope());
        assert_ne!(old.organisation_scope(), new.organisation_scope());
        let shared = |secret: &str| {
            ApiKey::new("a", secret)
                .within(Some("x".into()))
                .organisation_scope()
        };
        assert_eq!(shared("1"), shared("2"));
    }
}
