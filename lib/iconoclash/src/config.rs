//! Every setting, read from the environment once and nowhere else.
//!
//! Reading never fails: a setting that is missing or malformed is an error *value*, met by the first request that
//! needs it. A function without a database still answers its health, and the log line names the variable.

mod billing;
mod claude;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use secrecy::SecretString;
use std::{fmt, time::Duration};

use crate::{crash_point::Freeze, http::error::Error};

pub use billing::{AlertsConfig, MailConfig, StripeConfig};
pub use claude::{Claude, Models};

/// A setting, or why it cannot be used.
pub type Setting<T> = Result<T, Invalid>;

/// Why a setting cannot be used. It names the variable and never shows the value.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct Invalid {
    variable: &'static str,
    problem: String,
}

impl From<Invalid> for Error {
    fn from(error: Invalid) -> Self {
        Self::unavailable(error)
    }
}

/// All settings of a process.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`, `DATABASE_POOL_SIZE`: Postgres through the pooler.
    pub database: Setting<Database>,
    /// `UPSTASH_REDIS_REST_URL`, `UPSTASH_REDIS_REST_TOKEN` (or `KV_REST_API_URL`, `KV_REST_API_TOKEN`).
    pub redis: Setting<Redis>,
    /// `ANTHROPIC_API_KEYS` (or `ANTHROPIC_API_KEY`), `ANTHROPIC_BASE_URL`.
    pub claude: Setting<Claude>,
    /// `CLAUDE_MODEL_PRO`, `CLAUDE_MODEL_FREE`, `CLAUDE_MODEL_SMALL`.
    pub models: Setting<Models>,
    /// `JWT_KEYS`: the first signs, all verify.
    pub jwt_keys: Setting<Vec<JwtKey>>,
    /// `CREDENTIALS_KEY`, the first of it: 32 bytes that seal credentials and from which keyed hashes are made.
    pub credentials_key: Setting<Key>,
    /// `CREDENTIALS_KEY`, the second of it while it is rotated: opens what it once sealed.
    pub former_credentials_key: Option<Key>,
    /// `CRON_SECRET`: what crons and deep health checks present.
    pub cron_secret: Setting<SecretString>,
    /// `PUBLIC_URL`: where people reach the service; issuer of the tokens.
    pub public_url: String,
    /// `CORS_ALLOWED_ORIGINS`: who may call from a browser, besides `PUBLIC_URL`.
    pub allowed_origins: Vec<String>,
    /// `TRUSTED_PROXY_SECRET`: what a trusted proxy presents before its client address is believed.
    pub proxy_secret: Option<SecretString>,
    /// `STRIPE_SECRET_KEY`, `STRIPE_BASE_URL`: subscriptions.
    pub stripe: Setting<StripeConfig>,
    /// `STRIPE_WEBHOOK_SECRET`: what signs Stripe's events; several while one is replaced by another.
    pub stripe_webhook_secrets: Setting<Vec<SecretString>>,
    /// `STRIPE_PRICE_PRO`: what a checkout sells.
    pub stripe_price_pro: Setting<String>,
    /// `RESEND_API_KEY`, `RESEND_BASE_URL`, `MAIL_FROM`: outgoing mail.
    pub mail: Setting<MailConfig>,
    /// `ALERT_EMAIL_TO`, `ALERT_WEBHOOK_URL`: where operators are told.
    pub alerts: AlertsConfig,
    /// `QUOTA_GUEST`, `QUOTA_FREE`, `QUOTA_PRO`: messages a UTC day; `BURST_PER_MINUTE`: messages in quick succession.
    pub quotas: Setting<Quotas>,
    /// `VERCEL_REGION`, else `AWS_REGION`.
    pub region: String,
    /// `VERCEL_GIT_COMMIT_SHA`, else the crate's version.
    pub version: String,
    /// What is given up, and when; no settings, but shorter in tests.
    pub patience: Patience,
    /// `ICONOCLASH_FREEZE_AT`, in debug builds only: where a test has the process stop for good.
    pub freeze: Option<Freeze>,
}

/// How long a function goes on with what it could leave. The platform ends it after 300 seconds, whatever it does.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A title or a summary, of what the reply leaves of that time.
    pub aside: Duration,
    /// A running reply that somebody follows; the client then comes back with the last id that it has.
    pub follow: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            aside: Duration::from_secs(20),
            follow: Duration::from_secs(280),
        }
    }
}

/// Whether AWS Lambda runs this process.
#[cfg(feature = "lambda")]
#[expect(
    clippy::disallowed_methods,
    reason = "the environment is read in this file"
)]
pub(crate) fn on_lambda() -> bool {
    std::env::var("AWS_LAMBDA_RUNTIME_API").is_ok()
}

/// Where Postgres is.
#[derive(Clone, Debug)]
pub struct Database {
    /// Pooled connection string.
    pub url: SecretString,
    /// Connections that one process may hold.
    pub pool_size: usize,
}

/// Where Redis is.
#[derive(Clone, Debug)]
pub struct Redis {
    /// REST endpoint.
    pub url: String,
    /// Bearer token.
    pub token: SecretString,
}

/// Messages a UTC day of each plan.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// By network, for visitors without an account.
    pub guest: u32,
    /// By user.
    pub free: u32,
    /// By user.
    pub pro: u32,
    /// Messages a minute, whatever the plan; all of them may come at once.
    pub burst_per_minute: u32,
}

/// 32 secret bytes.
#[derive(Clone)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// An Ed25519 signing key by its id.
#[derive(Clone, Debug)]
pub struct JwtKey {
    /// `kid` of the tokens that it signs.
    pub kid: String,
    /// The private seed.
    pub seed: Key,
}

impl Config {
    /// Reads the process environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads settings from any source; an empty value counts as absent, as Vercel's dashboard stores it.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let env = Env(&|name| {
            lookup(name)
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty())
        });
        let (credentials_key, former_credentials_key) = env.credentials_keys();
        Self {
            database: env.database(),
            redis: env.redis(),
            claude: env.claude(),
            models: env.models(),
            jwt_keys: env.jwt_keys(),
            credentials_key,
            former_credentials_key,
            cron_secret: env.required("CRON_SECRET").map(SecretString::from),
            public_url: env
                .or("PUBLIC_URL", "http://localhost:3000")
                .trim_end_matches('/')
                .to_owned(),
            allowed_origins: env
                .or("CORS_ALLOWED_ORIGINS", "")
                .split(',')
                .map(|origin| origin.trim().trim_end_matches('/').to_owned())
                .filter(|origin| !origin.is_empty())
                .collect(),
            stripe: env.stripe(),
            stripe_webhook_secrets: env.stripe_webhook_secrets(),
            stripe_price_pro: env.required("STRIPE_PRICE_PRO"),
            mail: env.mail(),
            alerts: env.alerts(),
            proxy_secret: env.optional("TRUSTED_PROXY_SECRET").map(SecretString::from),
            quotas: env.quotas(),
            region: env
                .optional("VERCEL_REGION")
                .or_else(|| env.optional("AWS_REGION"))
                .unwrap_or_else(|| "local".to_owned()),
            version: env
                .optional("VERCEL_GIT_COMMIT_SHA")
                .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            patience: Patience::default(),
            freeze: env
                .optional("ICONOCLASH_FREEZE_AT")
                .and_then(|place| Freeze::parse(&place)),
        }
    }

    /// Whether a browser page of this origin may act for its user.
    pub fn allows_origin(&self, origin: &str) -> bool {
        origin == self.public_url || self.allowed_origins.iter().any(|allowed| allowed == origin)
    }
}

struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn optional(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn or(&self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    fn required(&self, name: &'static str) -> Setting<String> {
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

    fn database(&self) -> Setting<Database> {
        let pool_size = self.number("DATABASE_POOL_SIZE", 10)?;
        if pool_size == 0 {
            return Err(invalid("DATABASE_POOL_SIZE", "must be at least 1"));
        }
        Ok(Database {
            url: SecretString::from(self.required("DATABASE_URL")?),
            pool_size,
        })
    }

    fn redis(&self) -> Setting<Redis> {
        let url = self
            .optional("UPSTASH_REDIS_REST_URL")
            .or_else(|| self.optional("KV_REST_API_URL"));
        let token = self
            .optional("UPSTASH_REDIS_REST_TOKEN")
            .or_else(|| self.optional("KV_REST_API_TOKEN"));
        Ok(Redis {
            url: url.ok_or_else(|| invalid("UPSTASH_REDIS_REST_URL", "is not set"))?,
            token: SecretString::from(
                token.ok_or_else(|| invalid("UPSTASH_REDIS_REST_TOKEN", "is not set"))?,
            ),
        })
    }

    fn credentials_keys(&self) -> (Setting<Key>, Option<Key>) {
        const VARIABLE: &str = "CREDENTIALS_KEY";
        let listed = self.required(VARIABLE).and_then(|list| {
            let keys: Vec<Key> = list
                .split(',')
                .map(|it| key(VARIABLE, it.trim()))
                .collect::<Setting<_>>()?;
            if keys.len() > 2 {
                Err(invalid(VARIABLE, "holds more than two keys"))
            } else {
                Ok(keys)
            }
        });
        match listed.map(|keys| (keys.first().cloned(), keys.get(1).cloned())) {
            Ok((Some(first), former)) => (Ok(first), former),
            Ok((None, _)) => (Err(invalid(VARIABLE, "is not set")), None),
            Err(error) => (Err(error), None),
        }
    }

    fn jwt_keys(&self) -> Setting<Vec<JwtKey>> {
        pairs("JWT_KEYS", &self.required("JWT_KEYS")?, ':')?
            .into_iter()
            .map(|(kid, seed)| {
                Ok(JwtKey {
                    kid,
                    seed: key("JWT_KEYS", &seed)?,
                })
            })
            .collect()
    }

    fn quotas(&self) -> Setting<Quotas> {
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
}

fn invalid(variable: &'static str, problem: &str) -> Invalid {
    Invalid {
        variable,
        problem: problem.to_owned(),
    }
}

fn key(variable: &'static str, value: &str) -> Setting<Key> {
    let bytes = BASE64
        .decode(value)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(Key)
        .ok_or_else(|| invalid(variable, "must hold 32 bytes in base64"))
}

/// `name<separator>value, …`, at least one, no name twice.
fn pairs(variable: &'static str, list: &str, separator: char) -> Setting<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for item in list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let (name, value) = item
            .split_once(separator)
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or_else(|| Invalid {
                variable,
                problem: format!("must list name{separator}value, …"),
            })?;
        if found.iter().any(|(known, _)| known == name) {
            return Err(Invalid {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[(&str, &str)]) -> Config {
        let settings: Vec<(String, String)> = settings
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Config::from_lookup(|name| {
            settings
                .iter()
                .find(|(k, _)| k == name)
                .map(|(_, v)| v.clone())
        })
    }

    #[test]
    fn an_empty_environment_names_each_variable_that_is_missing() {
        let config = config(&[]);
        assert_eq!(
            config.database.unwrap_err().to_string(),
            "DATABASE_URL is not set"
        );
        assert_eq!(
            config.redis.unwrap_err().to_string(),
            "UPSTASH_REDIS_REST_URL is not set"
        );
        assert_eq!(
            config.claude.unwrap().keys.len(),
            0,
            "they may all be in the database"
        );
        assert_eq!(
            config.jwt_keys.unwrap_err().to_string(),
            "JWT_KEYS is not set"
        );
        assert_eq!(
            config.stripe.unwrap_err().to_string(),
            "STRIPE_SECRET_KEY is not set"
        );
        assert_eq!(
            config.mail.unwrap_err().to_string(),
            "RESEND_API_KEY is not set"
        );
        assert_eq!(config.quotas.unwrap().free, 10);
    }

    #[test]
    fn malformed_settings_say_what_is_wrong_and_never_show_the_value() {
        let config = config(&[
            ("JWT_KEYS", "k1:c2hvcnQ="),
            ("QUOTA_FREE", "ten"),
            ("CLAUDE_MODEL_PRO", "gpt"),
            ("ANTHROPIC_API_KEYS", "a=secret-1,a=secret-2"),
        ]);
        assert_eq!(
            config.jwt_keys.unwrap_err().to_string(),
            "JWT_KEYS must hold 32 bytes in base64"
        );
        assert_eq!(
            config.quotas.unwrap_err().to_string(),
            "QUOTA_FREE is not a whole number"
        );
        assert_eq!(
            config.claude.unwrap_err().to_string(),
            "ANTHROPIC_API_KEYS names a twice"
        );
        assert_eq!(
            config.models.unwrap_err().to_string(),
            "CLAUDE_MODEL_PRO names a model without a price"
        );
    }

    #[test]
    fn credentials_may_be_sealed_by_two_keys_while_one_replaces_the_other() {
        let base64 = |byte: u8| BASE64.encode([byte; 32]);
        let keys = |list: &str| {
            let config = config(&[("CREDENTIALS_KEY", list)]);
            (
                config.credentials_key.map(|key| key.0[0]),
                config.former_credentials_key.map(|key| key.0[0]),
            )
        };
        let (first, former) = keys(&base64(1));
        assert_eq!((first.unwrap(), former), (1, None));
        let (first, former) = keys(&format!("{}, {}", base64(2), base64(1)));
        assert_eq!((first.unwrap(), former), (2, Some(1)));
        assert!(keys(&vec![base64(1); 3].join(",")).0.is_err() && keys("short").0.is_err());
    }

    #[test]
    fn vercels_own_names_for_redis_are_accepted_and_empty_values_are_absent() {
        let config = config(&[
            ("UPSTASH_REDIS_REST_URL", " "),
            ("KV_REST_API_URL", "https://kv"),
            ("KV_REST_API_TOKEN", "t"),
        ]);
        assert_eq!(config.redis.unwrap().url, "https://kv");
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!(
            "{:?}",
            config(&[
                ("DATABASE_URL", "postgres://u:hunter2@h/d"),
                ("ANTHROPIC_API_KEYS", "a=hunter2"),
                ("CRON_SECRET", "hunter2"),
                ("UPSTASH_REDIS_REST_URL", "https://kv"),
                ("UPSTASH_REDIS_REST_TOKEN", "hunter2"),
                ("STRIPE_SECRET_KEY", "hunter2"),
                ("STRIPE_WEBHOOK_SECRET", "hunter2"),
                ("RESEND_API_KEY", "hunter2"),
                ("MAIL_FROM", "Iconoclash <hello@example.org>"),
                ("ALERT_WEBHOOK_URL", "https://chat.example.org/hunter2"),
            ])
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
