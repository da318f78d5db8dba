//! Reads single variables, and the settings that are made of a few.

use secrecy::SecretString;

use super::{ConfigError, DatabaseConfig, Quotas, RedisConfig, Setting, invalid};

/// A source of variables, whose values are trimmed and never empty.
pub(super) struct Env<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    pub(super) fn optional(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    pub(super) fn or(&self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn required(&self, name: &'static str) -> Setting<String> {
        self.optional(name)
            .ok_or_else(|| invalid(name, "is not set"))
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str, default: T) -> Setting<T> {
        match self.optional(name) {
            None => Ok(default),
            Some(value) => value
                .parse()
                .map_err(|_| invalid(name, "is not a whole number")),
        }
    }

    pub(super) fn database(&self) -> Setting<DatabaseConfig> {
        let pool_size = self.number("DATABASE_POOL_SIZE", 10)?;
        if pool_size == 0 {
            return Err(invalid("DATABASE_POOL_SIZE", "must be at least 1"));
        }

        Ok(DatabaseConfig {
            url: SecretString::from(self.required("DATABASE_URL")?),
            pool_size,
        })
    }

    pub(super) fn redis(&self) -> Setting<RedisConfig> {
        let url = self
            .optional("UPSTASH_REDIS_REST_URL")
            .or_else(|| self.optional("KV_REST_API_URL"));
        let token = self
            .optional("UPSTASH_REDIS_REST_TOKEN")
            .or_else(|| self.optional("KV_REST_API_TOKEN"));

        Ok(RedisConfig {
            url: url.ok_or_else(|| invalid("UPSTASH_REDIS_REST_URL", "is not set"))?,
            token: token
                .map(SecretString::from)
                .ok_or_else(|| invalid("UPSTASH_REDIS_REST_TOKEN", "is not set"))?,
        })
    }

    pub(super) fn public_url(&self) -> String {
        self.or("PUBLIC_URL", "http://localhost:3000")
            .trim_end_matches('/')
            .to_owned()
    }

    pub(super) fn allowed_origins(&self) -> Vec<String> {
        self.or("CORS_ALLOWED_ORIGINS", "")
            .split(',')
            .map(|origin| origin.trim().trim_end_matches('/').to_owned())
            .filter(|origin| !origin.is_empty())
            .collect()
    }

    pub(super) fn quotas(&self) -> Setting<Quotas> {
        let burst_per_minute = self.number("BURST_PER_MINUTE", 5)?;
        if !(1..=6_000).contains(&burst_per_minute) {
            return Err(invalid("BURST_PER_MINUTE", "must be 1 to 6000"));
        }

        Ok(Quotas {
            burst_per_minute,
            guest: self.number("QUOTA_GUEST", 3)?,
            free: self.number("QUOTA_FREE", 10)?,
            pro: self.number("QUOTA_PRO", 100)?,
        })
    }

    pub(super) fn region(&self) -> String {
        self.optional("VERCEL_REGION")
            .or_else(|| self.optional("AWS_REGION"))
            .unwrap_or_else(|| "local".to_owned())
    }

    pub(super) fn version(&self) -> String {
        self.or("VERCEL_GIT_COMMIT_SHA", env!("CARGO_PKG_VERSION"))
    }
}

/// Parses `name<separator>value, …`: at least one pair, each name once.
pub(super) fn pairs(
    variable: &'static str,
    list: &str,
    separator: char,
) -> Setting<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    let items = list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());

    for item in items {
        let (name, value) = item
            .split_once(separator)
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or_else(|| ConfigError {
                variable,
                problem: format!("must list name{separator}value, …"),
            })?;

        if found.iter().any(|(known, _)| known == name) {
            return Err(ConfigError {
                variable,
                problem: format!("names {name} twice"),
            });
        }
        found.push((name.to_owned(), value.to_owned()));
    }

    if found.is_empty() {
        Err(invalid(variable, "lists nothing"))
    } else {
        Ok(found)
    }
}
