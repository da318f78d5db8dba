//! A whole stack: services, the Upstash front, stand-ins, and the environment made of them all.

use std::{collections::BTreeMap, env, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::runtime::Handle;

use iconoclash_fakes::{claude, mail, stripe, upstash};

use crate::{
    ports,
    profile::Profile,
    progress::{note, step},
    services::Services,
};

/// The database of `cargo local`.
const DATABASE: &str = "iconoclash";

/// Settings that a developer may have in the shell. Databases are not among them: `cargo local` in a shell
/// that knows production must not touch it.
const FROM_SHELL: &[&str] = &[
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_API_KEYS",
    "ANTHROPIC_BASE_URL",
    "CLAUDE_MODEL_PRO",
    "CLAUDE_MODEL_FREE",
    "CLAUDE_MODEL_SMALL",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_PRICE_PRO",
    "STRIPE_BASE_URL",
    "SENTRY_DSN",
    "MAIL_FROM",
    "ALERT_EMAIL_TO",
    "RESEND_API_KEY",
    "RESEND_BASE_URL",
    "SMTP_URL",
    "ALERT_WEBHOOK_URL",
    "SIGNING_KEYS",
    "QUOTA_GUEST",
    "QUOTA_FREE",
    "QUOTA_PRO",
    "BURST_PER_MINUTE",
];

/// Every setting that the application reads: no test may see a developer's.
pub const NEVER_IN_TESTS: &[&str] = &[
    "DATABASE_URL",
    "DATABASE_URL_UNPOOLED",
    "DATABASE_REPLICA_URL",
    "DATABASE_POOL_SIZE",
    "UPSTASH_REDIS_REST_URL",
    "UPSTASH_REDIS_REST_TOKEN",
    "KV_REST_API_URL",
    "KV_REST_API_TOKEN",
    "JWT_KEYS",
    "CRON_SECRET",
    "CREDENTIALS_KEY",
    "PUBLIC_URL",
    "CORS_ALLOWED_ORIGINS",
    "TRUSTED_PROXY_SECRET",
];

/// Everything that a developer's server talks to.
pub struct Stack {
    /// The services.
    pub services: Services,
    /// What the server and every other program on this stack gets.
    pub environment: BTreeMap<String, String>,
    // They answer as long as they are held.
    _front: upstash::RestProxy,
    _claude: Option<claude::FakeClaude>,
    stripe: Option<stripe::FakeStripe>,
    _mail: Option<mail::FakeMail>,
}

impl Stack {
    /// The stack's own database, whatever `.env` says: only that one is migrated.
    pub fn database_url(&self) -> String {
        self.services.postgres.url(DATABASE)
    }

    /// Shows the stand-ins' own pages where the development server is, which passes them on.
    pub fn pages_at(&self, url: &str) {
        if let Some(stripe) = &self.stripe {
            stripe.set_pages_url(url.to_owned());
        }
    }

    /// Starts the development stack; the application will be at `http://localhost:{port}`.
    pub fn start(runtime: &Handle, profile: &Profile, port: u16) -> Result<Self> {
        let services = Services::start(profile)?;
        services.postgres.create_database(DATABASE, "template0")?;
        migrate(runtime, &services, DATABASE)?;

        let front_address = ports::kept(&profile.data.join("upstash.port"))?;
        let front = step("Upstash REST front: starting", || {
            Ok(
                runtime.block_on(upstash::RestProxy::start(upstash::RestProxyConfig {
                    redis: services.redis.address,
                    database: 0,
                    token: services.secrets.redis_token.clone(),
                    listen: front_address,
                }))?,
            )
        })?;

        let mut environment = defaults(&services, port);
        environment.insert("UPSTASH_REDIS_REST_URL".into(), front.url().to_owned());
        let chosen = chosen(&profile.places.root)?;
        let has_key = ["ANTHROPIC_API_KEYS", "ANTHROPIC_API_KEY"]
            .iter()
            .any(|name| chosen.contains_key(*name));
        let claude = if has_key {
            note("Claude itself answers, on your ANTHROPIC_API_KEYS: this costs money");
            None
        } else {
            let address = ports::kept(&profile.data.join("claude.port"))?;
            let stand_in = start_claude(runtime, address, Duration::from_millis(40))?;
            note(
                "no ANTHROPIC_API_KEYS is set, so a stand-in answers for Claude, and costs nothing",
            );
            environment.insert("ANTHROPIC_API_KEYS".into(), format!("local={CLAUDE_KEY}"));
            environment.insert("ANTHROPIC_BASE_URL".into(), stand_in.url());
            Some(stand_in)
        };
        let stripe = match chosen.contains_key("STRIPE_SECRET_KEY") {
            true => None,
            false => Some(start_stripe(runtime, profile, port, &mut environment)?),
        };
        let mail = match chosen.contains_key("RESEND_API_KEY") {
            true => None,
            false => Some(start_mail(runtime, profile, &mut environment)?),
        };
        environment.extend(chosen);
        profile.publish(&environment)?;
        Ok(Self {
            services,
            environment,
            _front: front,
            _claude: claude,
            stripe,
            _mail: mail,
        })
    }
}

/// Where the development server finds the pages of the stand-ins; no setting of the application.
pub const STRIPE_PAGES: &str = "ICONOCLASH_LOCAL_STRIPE";
/// As above, for mail.
pub const MAIL_PAGES: &str = "ICONOCLASH_LOCAL_MAIL";

/// The only key that a stand-in takes.
const CLAUDE_KEY: &str = "sk-ant-local";

fn start_claude(
    runtime: &Handle,
    listen: SocketAddr,
    pace: Duration,
) -> Result<claude::FakeClaude> {
    step("Claude stand-in: starting", || {
        let config = claude::Config {
            listen,
            keys: vec![CLAUDE_KEY.into()],
            pace,
            style: claude::Style::Conversation,
        };
        Ok(runtime.block_on(claude::FakeClaude::start(config))?)
    })
}

/// Without an account at Stripe nobody is charged, and events come here by themselves.
fn start_stripe(
    runtime: &Handle,
    profile: &Profile,
    port: u16,
    environment: &mut BTreeMap<String, String>,
) -> Result<stripe::FakeStripe> {
    let listen = ports::kept(&profile.data.join("stripe.port"))?;
    let webhook_url = Some(format!("http://localhost:{port}/api/billing/webhook"));
    let config = stripe::Config {
        listen,
        webhook_url,
        ..stripe::Config::default()
    };
    let settings = [
        ("STRIPE_SECRET_KEY", config.key.clone()),
        ("STRIPE_WEBHOOK_SECRET", config.webhook_secret.clone()),
        ("STRIPE_PRICE_PRO", stripe::PRICE.to_owned()),
    ];
    let stand_in = step("Stripe stand-in: starting", || {
        Ok(runtime.block_on(stripe::FakeStripe::start(config.clone()))?)
    })?;
    note("no STRIPE_SECRET_KEY is set, so a stand-in takes the payments, and no card is charged");
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    environment.insert("STRIPE_BASE_URL".into(), stand_in.url());
    environment.insert(STRIPE_PAGES.into(), stand_in.url());
    Ok(stand_in)
}

fn start_mail(
    runtime: &Handle,
    profile: &Profile,
    environment: &mut BTreeMap<String, String>,
) -> Result<mail::FakeMail> {
    let listen = ports::kept(&profile.data.join("mail.port"))?;
    let stand_in = step("mail stand-in: starting", || {
        Ok(runtime.block_on(mail::FakeMail::start(listen))?)
    })?;
    note("no RESEND_API_KEY is set, so mail goes to /local/mail and no further");
    let settings = [
        ("RESEND_API_KEY", mail::KEY.to_owned()),
        ("RESEND_BASE_URL", stand_in.url()),
        ("MAIL_FROM", "Iconoclash <hello@localhost>".to_owned()),
        ("ALERT_EMAIL_TO", "operators@localhost".to_owned()),
        (MAIL_PAGES, stand_in.url()),
    ];
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    Ok(stand_in)
}

/// Brings a database of our own to the newest schema, with its seed.
pub fn migrate(runtime: &Handle, services: &Services, database: &str) -> Result<()> {
    let pooled = format!("{}/{database}", services.pooled_base_url());
    migrate_url(runtime, &services.postgres.url(database), Some(&pooled))
}

/// The same for a server child, which knows its database by URL only.
pub fn migrate_url(runtime: &Handle, direct: &str, pooled: Option<&str>) -> Result<()> {
    step("migrating and seeding the database", || {
        Ok(
            runtime.block_on(iconoclash_cli::migrate(direct, pooled, &mut |line| {
                note(&line)
            }))?,
        )
    })
}

fn defaults(services: &Services, port: u16) -> BTreeMap<String, String> {
    let Services {
        secrets, postgres, ..
    } = services;
    let url = format!("http://localhost:{port}");
    BTreeMap::from(
        [
            (
                "DATABASE_URL",
                format!("{}/{DATABASE}", services.pooled_base_url()),
            ),
            ("DATABASE_URL_UNPOOLED", postgres.url(DATABASE)),
            ("UPSTASH_REDIS_REST_TOKEN", secrets.redis_token.clone()),
            ("JWT_KEYS", format!("local:{}", secrets.jwt_seed)),
            ("CRON_SECRET", secrets.cron_secret.clone()),
            ("CREDENTIALS_KEY", secrets.credentials_key.clone()),
            ("CORS_ALLOWED_ORIGINS", url.clone()),
            ("PUBLIC_URL", url),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

/// What the developer chose: the shell's settings, and over them those of `.env`.
fn chosen(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut settings: BTreeMap<String, String> = FROM_SHELL
        .iter()
        .filter_map(|name| {
            Some((
                (*name).to_owned(),
                env::var(name).ok().filter(|value| !value.is_empty())?,
            ))
        })
        .collect();
    let file = root.join(".env");
    if fs::exists(&file)? {
        for item in dotenvy::from_path_iter(&file)? {
            let (name, value) =
                item.with_context(|| format!("{} is no list of NAME=value", file.display()))?;
            settings.insert(name, value);
        }
        note(".env is read; its settings go over those of the stack");
    }
    Ok(settings)
}

/// Removes every setting of the application from a command's environment.
pub fn forget_settings(command: &mut std::process::Command) {
    for name in FROM_SHELL.iter().chain(NEVER_IN_TESTS) {
        command.env_remove(name);
    }
}
