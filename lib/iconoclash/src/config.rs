//! Every setting, read from the environment once and nowhere else.
//!
//! Reading never fails: a setting that is missing or malformed is stored as an error, which the first request that
//! needs the setting returns. So a function without a database still answers its health check, and the log line
//! names the variable.

mod billing;
mod claude;
mod env;
mod keys;
#[cfg(test)]
mod tests;

use std::time::Duration;

use secrecy::SecretString;

use crate::{crash_point::CrashTrigger, http::error::Error};

use env::{Env, pairs};

pub use billing::{AlertsConfig, MailConfig, StripeConfig};
pub use claude::{ClaudeConfig, Models};
pub use keys::{JwtKey, Key};

/// Every variable that an operator may set. `.env.example` documents each of them.
pub const SETTINGS: &[&str] = &[
    "DATABASE_URL",
    "DATABASE_POOL_SIZE",
    "UPSTASH_REDIS_REST_URL",
    "UPSTASH_REDIS_REST_TOKEN",
    "KV_REST_API_URL",
    "KV_REST_API_TOKEN",
    "ANTHROPIC_API_KEYS",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_MODEL_PRO",
    "CLAUDE_MODEL_FREE",
    "CLAUDE_MODEL_SMALL",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_PRICE_PRO",
    "STRIPE_BASE_URL",
    "RESEND_API_KEY",
    "RESEND_BASE_URL",
    "MAIL_FROM",
    "ALERT_EMAIL_TO",
    "ALERT_WEBHOOK_URL",
    "JWT_KEYS",
    "CREDENTIALS_KEY",
    "CRON_SECRET",
    "PUBLIC_URL",
    "CORS_ALLOWED_ORIGINS",
    "TRUSTED_PROXY_SECRET",
    "QUOTA_GUEST",
    "QUOTA_FREE",
    "QUOTA_PRO",
    "BURST_PER_MINUTE",
];

/// A setting, or why it cannot be used.
pub type Setting<T> = Result<T, ConfigError>;

/// Why a setting cannot be used. Names the variable and never shows the value.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::unavailable(error)
    }
}

/// All settings of a process. Read them through the methods, which borrow.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATABASE_URL`, `DATABASE_POOL_SIZE`: Postgres through the pooler.
    pub database: Setting<DatabaseConfig>,
    /// `UPSTASH_REDIS_REST_URL`, `UPSTASH_REDIS_REST_TOKEN` (or `KV_REST_API_URL`, `KV_REST_API_TOKEN`).
    pub redis: Setting<RedisConfig>,
    /// `ANTHROPIC_API_KEYS` (or `ANTHROPIC_API_KEY`), `ANTHROPIC_BASE_URL`.
    pub claude: Setting<ClaudeConfig>,
    /// `CLAUDE_MODEL_PRO`, `CLAUDE_MODEL_FREE`, `CLAUDE_MODEL_SMALL`.
    pub models: Setting<Models>,
    /// `JWT_KEYS`: the first signs, all verify.
    pub jwt_keys: Setting<Vec<JwtKey>>,
    /// First key of `CREDENTIALS_KEY`: seals credentials; keyed hashes are derived from it.
    pub credentials_key: Setting<Key>,
    /// Second key of `CREDENTIALS_KEY`, during a rotation: opens credentials that it sealed.
    pub former_credentials_key: Option<Key>,
    /// `CRON_SECRET`: authenticates crons and deep health checks.
    pub cron_secret: Setting<SecretString>,
    /// `PUBLIC_URL`: the service's address and the issuer of its tokens.
    pub public_url: String,
    /// `CORS_ALLOWED_ORIGINS`: origins that may call from a browser, in addition to `PUBLIC_URL`.
    pub allowed_origins: Vec<String>,
    /// `TRUSTED_PROXY_SECRET`: authenticates a proxy, whose client address is then trusted.
    pub proxy_secret: Option<SecretString>,
    /// `STRIPE_SECRET_KEY`, `STRIPE_BASE_URL`: subscriptions.
    pub stripe: Setting<StripeConfig>,
    /// `STRIPE_WEBHOOK_SECRET`: signs Stripe's events; several during a rotation.
    pub stripe_webhook_secrets: Setting<Vec<SecretString>>,
    /// `STRIPE_PRICE_PRO`: the price that a checkout sells.
    pub stripe_price_pro: Setting<String>,
    /// `RESEND_API_KEY`, `RESEND_BASE_URL`, `MAIL_FROM`: outgoing mail.
    pub mail: Setting<MailConfig>,
    /// `ALERT_EMAIL_TO`, `ALERT_WEBHOOK_URL`: recipients of alerts.
    pub alerts: AlertsConfig,
    /// `QUOTA_GUEST`, `QUOTA_FREE`, `QUOTA_PRO`: messages per UTC day; `BURST_PER_MINUTE`: messages per minute.
    pub quotas: Setting<Quotas>,
    /// `VERCEL_REGION`, else `AWS_REGION`.
    pub region: String,
    /// `VERCEL_GIT_COMMIT_SHA`, else the crate's version.
    pub version: String,
    /// Not settings: defaults that only tests shorten.
    pub timeouts: Timeouts,
    /// `ICONOCLASH_FREEZE_AT`, in debug builds only: the crash point at which a test stops the process.
    pub crash_trigger: Option<CrashTrigger>,
}

/// Time limits for work that a function may leave unfinished. The platform ends a function after 300 seconds.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a title or a summary, after the reply.
    pub background_call: Duration,
    /// For following a running reply. The client then reconnects with the last event id that it received.
    pub follow: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            background_call: Duration::from_secs(20),
            follow: Duration::from_secs(280),
        }
    }
}

/// The connection to Postgres.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Pooled connection string.
    pub url: SecretString,
    /// Maximum number of connections of one process.
    pub pool_size: usize,
}

/// The connection to Redis.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// REST endpoint.
    pub url: String,
    /// Bearer token.
    pub token: SecretString,
}

/// Message limits of the plans.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Messages per UTC day of a network, for guests.
    pub guest: u32,
    /// Messages per UTC day of a user on the free plan.
    pub free: u32,
    /// Messages per UTC day of a user on the pro plan.
    pub pro: u32,
    /// Messages per minute on any plan; all of them may be sent at once.
    pub burst_per_minute: u32,
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

    /// Reads settings from any source. An empty value counts as absent, because Vercel's dashboard stores empty values.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let env = Env(&|name| {
            lookup(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
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
            public_url: env.public_url(),
            allowed_origins: env.allowed_origins(),
            proxy_secret: env.optional("TRUSTED_PROXY_SECRET").map(SecretString::from),
            stripe: env.stripe(),
            stripe_webhook_secrets: env.stripe_webhook_secrets(),
            stripe_price_pro: env.required("STRIPE_PRICE_PRO"),
            mail: env.mail(),
            alerts: env.alerts(),
            quotas: env.quotas(),
            region: env.region(),
            version: env.version(),
            timeouts: Timeouts::default(),
            crash_trigger: env
                .optional("ICONOCLASH_FREEZE_AT")
                .and_then(|place| CrashTrigger::parse(&place)),
        }
    }

    /// The connection to Postgres.
    pub fn database(&self) -> Setting<&DatabaseConfig> {
        borrow(&self.database)
    }

    /// The connection to Redis.
    pub fn redis(&self) -> Setting<&RedisConfig> {
        borrow(&self.redis)
    }

    /// The connection to Claude.
    pub fn claude(&self) -> Setting<&ClaudeConfig> {
        borrow(&self.claude)
    }

    /// The model of each plan.
    pub fn models(&self) -> Setting<&Models> {
        borrow(&self.models)
    }

    /// The keys of session tokens: the first signs, all verify.
    pub fn jwt_keys(&self) -> Setting<&[JwtKey]> {
        borrow(&self.jwt_keys).map(Vec::as_slice)
    }

    /// The key that seals credentials and that keyed hashes are derived from.
    pub fn credentials_key(&self) -> Setting<&Key> {
        borrow(&self.credentials_key)
    }

    /// The secret of crons and deep health checks.
    pub fn cron_secret(&self) -> Setting<&SecretString> {
        borrow(&self.cron_secret)
    }

    /// The connection to Stripe.
    pub fn stripe(&self) -> Setting<&StripeConfig> {
        borrow(&self.stripe)
    }

    /// The secrets that sign Stripe's events.
    pub fn stripe_webhook_secrets(&self) -> Setting<&[SecretString]> {
        borrow(&self.stripe_webhook_secrets).map(Vec::as_slice)
    }

    /// The price that a checkout sells.
    pub fn stripe_price_pro(&self) -> Setting<&str> {
        borrow(&self.stripe_price_pro).map(String::as_str)
    }

    /// The connection to the mail provider.
    pub fn mail(&self) -> Setting<&MailConfig> {
        borrow(&self.mail)
    }

    /// The message limits of the plans.
    pub fn quotas(&self) -> Setting<&Quotas> {
        borrow(&self.quotas)
    }

    /// Whether a page of this origin may act for its user.
    pub fn allows_origin(&self, origin: &str) -> bool {
        origin == self.public_url || self.allowed_origins.iter().any(|allowed| allowed == origin)
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

fn borrow<T>(setting: &Setting<T>) -> Setting<&T> {
    setting.as_ref().map_err(Clone::clone)
}

fn invalid(variable: &'static str, problem: &str) -> ConfigError {
    ConfigError {
        variable,
        problem: problem.to_owned(),
    }
}
