//! An API key, its organisation and its share of the conversations.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// An API key, and the label by which logs, ledgers and operators know it.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Safe to log.
    pub label: String,
    /// The organisation whose limits it shares; `None` if no other key belongs to it.
    pub organisation: Option<String>,
    /// Its share of the conversations, relative to the weights of the other keys.
    pub weight: u32,
    pub(crate) secret: SecretString,
}

impl ApiKey {
    /// A key in an organisation of its own, with weight 1.
    pub fn new(label: impl Into<String>, secret: impl Into<SecretString>) -> Self {
        Self {
            label: label.into(),
            organisation: None,
            weight: 1,
            secret: secret.into(),
        }
    }

    /// The same key in an organisation.
    pub fn with_organisation(self, organisation: Option<String>) -> Self {
        Self {
            organisation,
            ..self
        }
    }

    /// The same key with another weight.
    pub fn with_weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    /// Names the cooldowns of this key. A new secret under the same label is another key.
    pub(crate) fn cooldown_key(&self) -> String {
        format!("k:{}:{}", self.label, self.fingerprint())
    }

    /// Names the cooldowns that all keys of its organisation share.
    pub(crate) fn organisation_cooldown_key(&self) -> String {
        match &self.organisation {
            Some(organisation) => format!("o:{organisation}"),
            None => format!("o:={}:{}", self.label, self.fingerprint()),
        }
    }

    /// Weighted rendezvous hash: the available key with the highest score gets the conversation.
    ///
    /// Every instance chooses the same key, shares follow the weights, and adding or removing a key moves no
    /// conversation between the others.
    pub(crate) fn rendezvous_score(&self, conversation: Uuid) -> f64 {
        let hash = Sha256::new()
            .chain_update(self.label.as_bytes())
            .chain_update(conversation.as_bytes())
            .finalize();
        let bits = hash
            .iter()
            .take(6)
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));

        // Between 0 and 1, both excluded.
        let uniform = (bits as f64 + 0.5) / (1_u64 << 48) as f64;
        f64::from(self.weight) / -uniform.ln()
    }

    /// Distinguishes secrets without revealing them: they are random, so a short hash reveals nothing.
    fn fingerprint(&self) -> String {
        let hash = Sha256::digest(self.secret.expose_secret().as_bytes());
        hex::encode(&hash[..4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn winner(keys: &[ApiKey], conversation: u128) -> String {
        let score = |key: &&ApiKey| key.rendezvous_score(Uuid::from_u128(conversation));
        let best = keys.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
        best.unwrap().label.clone()
    }

    #[test]
    fn conversations_follow_the_weights_and_stay_when_another_key_goes() {
        let keys = [
            ApiKey::new("a", "1").with_weight(3),
            ApiKey::new("b", "2"),
            ApiKey::new("c", "3"),
        ];
        let before: Vec<String> = (0..10_000).map(|talk| winner(&keys, talk)).collect();
        let share = |label: &str| before.iter().filter(|winner| *winner == label).count();

        assert!(share("a").abs_diff(6_000) < 300, "{}", share("a"));
        assert!(share("b").abs_diff(2_000) < 300, "{}", share("b"));

        for (talk, before) in (0..).zip(&before) {
            let after = winner(&keys[..2], talk);
            assert!(before == "c" || *before == after, "conversation {talk}");
        }
    }

    #[test]
    fn a_new_secret_under_the_same_label_is_another_key() {
        let old = ApiKey::new("a", "1");
        let new = ApiKey::new("a", "2");
        assert_ne!(old.cooldown_key(), new.cooldown_key());
        assert_ne!(
            old.organisation_cooldown_key(),
            new.organisation_cooldown_key()
        );

        let in_acme = |key: ApiKey| key.with_organisation(Some("acme".into()));
        assert_eq!(
            in_acme(old).organisation_cooldown_key(),
            in_acme(new).organisation_cooldown_key()
        );
    }
}
