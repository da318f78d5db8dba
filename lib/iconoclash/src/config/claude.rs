//! Settings of the Claude API: keys, address and models.

use super::{ConfigError, Env, Setting, invalid, pairs};
use claude::{ApiKey, Deadlines};

use crate::spending::price;

const KEYS: &str = "ANTHROPIC_API_KEYS";

/// Access to the Claude API.
#[derive(Clone, Debug)]
pub struct ClaudeConfig {
    /// API root, without a trailing slash.
    pub base_url: String,
    /// Keys of the environment. May be empty, because operators can store keys in the database.
    pub keys: Vec<ApiKey>,
    /// Deadlines of a reply. Not a setting; tests shorten them.
    pub deadlines: Deadlines,
}

/// The model of each plan. Every model has a price.
#[derive(Clone, Debug)]
pub struct Models {
    /// For plan `pro`.
    pub pro: String,
    /// For plans `free` and `guest`.
    pub free: String,
    /// For titles and summaries, and the fallback of more expensive models.
    pub small: String,
}

impl Env<'_> {
    pub(super) fn claude(&self) -> Setting<ClaudeConfig> {
        let base_url = self.or("ANTHROPIC_BASE_URL", "https://api.anthropic.com");
        let keys = match self.optional(KEYS) {
            Some(list) => api_keys(&list)?,
            None => self
                .optional("ANTHROPIC_API_KEY")
                .map(|key| ApiKey::new("default", key))
                .into_iter()
                .collect(),
        };

        Ok(ClaudeConfig {
            base_url: base_url.trim_end_matches('/').to_owned(),
            keys,
            deadlines: Deadlines::default(),
        })
    }

    pub(super) fn models(&self) -> Setting<Models> {
        let priced = |variable: &'static str, default| {
            let model = self.or(variable, default);
            if price::is_known(&model) {
                Ok(model)
            } else {
                Err(invalid(variable, "names a model without a price"))
            }
        };

        Ok(Models {
            pro: priced("CLAUDE_MODEL_PRO", "claude-sonnet-5-5")?,
            free: priced("CLAUDE_MODEL_FREE", "claude-haiku-5-5")?,
            small: priced("CLAUDE_MODEL_SMALL", "claude-haiku-5-5")?,
        })
    }
}

/// Reads `label[@organisation][*weight]=key, …`. Labels are unique.
fn api_keys(list: &str) -> Setting<Vec<ApiKey>> {
    let mut keys: Vec<ApiKey> = Vec::new();

    for (name, secret) in pairs(KEYS, list, '=')? {
        let key = api_key(&name, secret)?;
        if keys.iter().any(|known| known.label == key.label) {
            return Err(ConfigError {
                variable: KEYS,
                problem: format!("names {} twice", key.label),
            });
        }
        keys.push(key);
    }
    Ok(keys)
}

fn api_key(name: &str, secret: String) -> Setting<ApiKey> {
    let (name, weight) = match name.split_once('*') {
        None => (name, 1),
        Some((name, text)) => (name, weight(text)?),
    };
    let (label, organisation) = match name.split_once('@') {
        None => (name, None),
        Some((label, organisation)) => (label, Some(organisation.to_owned())),
    };
    if label.is_empty() || organisation.as_deref() == Some("") {
        return Err(invalid(
            KEYS,
            "must list label[@organisation][*weight]=key, …",
        ));
    }

    let key = ApiKey::new(label, secret);
    Ok(key.with_organisation(organisation).with_weight(weight))
}

fn weight(text: &str) -> Setting<u32> {
    match text.parse() {
        Ok(weight @ 1..=100) => Ok(weight),
        _ => Err(invalid(KEYS, "has a weight that is not 1 to 100")),
    }
}

#[cfg(test)]
mod tests {

    fn config(settings: &[(&'static str, &'static str)]) -> crate::config::Config {
        crate::config::Config::from_lookup(|name| {
            settings
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn a_key_may_name_its_organisation_and_its_weight() {
        let keys = config(&[(
            "ANTHROPIC_API_KEYS",
            "a=s1, b@acme=s2=, c@acme*3=s3, d*2=s4",
        )])
        .claude
        .unwrap()
        .keys;

        let seen: Vec<_> = keys
            .iter()
            .map(|key| (key.label.as_str(), key.organisation.as_deref(), key.weight))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", None, 1),
                ("b", Some("acme"), 1),
                ("c", Some("acme"), 3),
                ("d", None, 2)
            ]
        );
        for (list, problem) in [
            ("a@=s", "must list label[@organisation][*weight]=key, …"),
            ("@acme=s", "must list label[@organisation][*weight]=key, …"),
            ("a*0=s", "has a weight that is not 1 to 100"),
            ("a*many=s", "has a weight that is not 1 to 100"),
            ("a=s,a@acme=t", "names a twice"),
            ("a", "must list name=value, …"),
        ] {
            let error = config(&[("ANTHROPIC_API_KEYS", list)]).claude.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("ANTHROPIC_API_KEYS {problem}"),
                "{list}"
            );
        }
    }

    #[test]
    fn a_model_without_a_price_is_rejected_in_every_setting() {
        for variable in [
            "CLAUDE_MODEL_PRO",
            "CLAUDE_MODEL_FREE",
            "CLAUDE_MODEL_SMALL",
        ] {
            let refused = config(&[(variable, "claude-9")]).models.unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!("{variable} names a model without a price")
            );
        }
    }
}
