//! The application's settings, as far as an instance sets, passes on or hides them.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{progress::note, services::Services};

/// Every setting that the application reads.
const SETTINGS: &[&str] = &[
    "ALERT_EMAIL_TO",
    "ALERT_WEBHOOK_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_API_KEYS",
    "ANTHROPIC_BASE_URL",
    "BURST_PER_MINUTE",
    "CLAUDE_MODEL_FREE",
    "CLAUDE_MODEL_PRO",
    "CLAUDE_MODEL_SMALL",
    "CORS_ALLOWED_ORIGINS",
    "CREDENTIALS_KEY",
    "CRON_SECRET",
    "DATABASE_POOL_SIZE",
    "DATABASE_URL",
    "DATABASE_URL_UNPOOLED",
    "JWT_KEYS",
    "KV_REST_API_TOKEN",
    "KV_REST_API_URL",
    "MAIL_FROM",
    "PUBLIC_URL",
    "QUOTA_FREE",
    "QUOTA_GUEST",
    "QUOTA_PRO",
    "RESEND_API_KEY",
    "RESEND_BASE_URL",
    "STRIPE_BASE_URL",
    "STRIPE_PRICE_PRO",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "TRUSTED_PROXY_SECRET",
    "UPSTASH_REDIS_REST_TOKEN",
    "UPSTASH_REDIS_REST_URL",
];

/// Settings that the stack makes itself and never takes from the shell: `cargo local` in a shell
/// with production's settings must not use production's databases and secrets.
const NEVER_FROM_SHELL: &[&str] = &[
    "CORS_ALLOWED_ORIGINS",
    "CREDENTIALS_KEY",
    "CRON_SECRET",
    "DATABASE_POOL_SIZE",
    "DATABASE_URL",
    "DATABASE_URL_UNPOOLED",
    "JWT_KEYS",
    "KV_REST_API_TOKEN",
    "KV_REST_API_URL",
    "PUBLIC_URL",
    "TRUSTED_PROXY_SECRET",
    "UPSTASH_REDIS_REST_TOKEN",
    "UPSTASH_REDIS_REST_URL",
];

/// The settings that the stack makes itself, for an application at `http://localhost:{port}`.
pub(crate) fn stack_defaults(
    services: &Services,
    database: &str,
    port: u16,
) -> BTreeMap<String, String> {
    let secrets = &services.secrets;
    let pooled = format!("{}/{database}", services.pooled_base_url());
    let url = format!("http://localhost:{port}");
    let settings = [
        ("DATABASE_URL", pooled),
        ("DATABASE_URL_UNPOOLED", services.postgres.url(database)),
        ("UPSTASH_REDIS_REST_TOKEN", secrets.redis_token.clone()),
        ("JWT_KEYS", format!("local:{}", secrets.jwt_seed)),
        ("CRON_SECRET", secrets.cron_secret.clone()),
        ("CREDENTIALS_KEY", secrets.credentials_key.clone()),
        ("CORS_ALLOWED_ORIGINS", url.clone()),
        ("PUBLIC_URL", url),
    ];

    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The developer's own settings: those of the shell, overridden by those of `.env`.
pub(crate) fn from_developer(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    for name in SETTINGS {
        let value = env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(value) = value
            && !NEVER_FROM_SHELL.contains(name)
        {
            settings.insert((*name).to_owned(), value);
        }
    }

    let file = root.join(".env");
    if fs::exists(&file)? {
        for item in dotenvy::from_path_iter(&file)? {
            let (name, value) = item
                .with_context(|| format!("{} has a line that is not NAME=value", file.display()))?;
            settings.insert(name, value);
        }
        note("settings in .env override those of the stack");
    }

    Ok(settings)
}

/// Removes every setting of the application from a command's environment.
pub(crate) fn remove_settings(command: &mut Command) {
    for name in SETTINGS {
        command.env_remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_settings_are_kept_from_the_shell() {
        for name in NEVER_FROM_SHELL {
            assert!(SETTINGS.contains(name), "{name} is not a setting");
        }
    }
}
