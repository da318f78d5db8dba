//! The development stack: services, the Upstash REST proxy, fake vendors, and the environment
//! that connects an application to them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use iconoclash_fakes::{claude, mail, stripe, upstash};
use tokio::runtime::Handle;

use crate::{
    install::Need,
    instance::Instance,
    ports,
    progress::{note, step},
    services::Services,
    settings,
};

// Variables for the development server, which are no settings of the application: the base URLs
// of the fake vendors that run.
pub(crate) const FAKE_CLAUDE: &str = "ICONOCLASH_LOCAL_CLAUDE";
pub(crate) const STRIPE_PAGES: &str = "ICONOCLASH_LOCAL_STRIPE";
pub(crate) const MAIL_PAGES: &str = "ICONOCLASH_LOCAL_MAIL";

/// The database of `cargo local`.
const DATABASE: &str = "iconoclash";
/// The only key that the fake Claude accepts.
const CLAUDE_KEY: &str = "sk-ant-local";

type Environment = BTreeMap<String, String>;

/// A running development stack.
pub struct Stack {
    /// The services.
    pub services: Services,
    /// The environment of the server and every other program on this stack.
    pub environment: Environment,
    // Dropping these stops the servers.
    _upstash: upstash::RestProxy,
    _claude: Option<claude::FakeClaude>,
    stripe: Option<stripe::FakeStripe>,
    _mail: Option<mail::FakeMail>,
}

impl Stack {
    /// Starts the stack; the application will be at `http://localhost:{port}`.
    pub fn start(runtime: &Handle, instance: &Instance, port: u16) -> Result<Self> {
        let services = Services::start(instance, Need::Wanted)?;
        services.postgres.create_database(DATABASE, "template0")?;
        migrate(runtime, &services, DATABASE)?;
        let upstash = start_upstash(runtime, instance, &services)?;

        let mut environment = settings::stack_defaults(&services, DATABASE, port);
        environment.insert("UPSTASH_REDIS_REST_URL".into(), upstash.url().to_owned());

        let developers = settings::from_developer(&instance.paths.root)?;
        let is_real = |names: &[&str]| names.iter().any(|name| developers.contains_key(*name));
        let claude = if is_real(&["ANTHROPIC_API_KEYS", "ANTHROPIC_API_KEY"]) {
            note("ANTHROPIC_API_KEYS is set: the real Claude answers, and costs money");
            None
        } else {
            Some(add_claude(runtime, instance, &mut environment)?)
        };
        let stripe = if is_real(&["STRIPE_SECRET_KEY"]) {
            None
        } else {
            Some(add_stripe(runtime, instance, port, &mut environment)?)
        };
        let mail = if is_real(&["RESEND_API_KEY"]) {
            None
        } else {
            Some(add_mail(runtime, instance, &mut environment)?)
        };

        environment.extend(developers);
        instance.publish(&environment)?;

        Ok(Self {
            services,
            environment,
            _upstash: upstash,
            _claude: claude,
            stripe,
            _mail: mail,
        })
    }

    /// The URL of the stack's own database, even if `.env` names another one: only this one is
    /// migrated.
    pub fn database_url(&self) -> String {
        self.services.postgres.url(DATABASE)
    }

    /// Lets the fake Stripe link to its pages at the development server, which forwards to them.
    pub fn show_pages_at(&self, url: &str) {
        if let Some(stripe) = &self.stripe {
            stripe.set_pages_url(url.to_owned());
        }
    }
}

fn start_upstash(
    runtime: &Handle,
    instance: &Instance,
    services: &Services,
) -> Result<upstash::RestProxy> {
    let listen = ports::sticky_port(&instance.data.join("upstash.port"))?;
    let config = upstash::RestProxyConfig {
        redis: services.redis.address,
        database: 0,
        token: services.secrets.redis_token.clone(),
        listen,
    };

    step("Upstash REST proxy: starting", || {
        Ok(runtime.block_on(upstash::RestProxy::start(config))?)
    })
}

fn add_claude(
    runtime: &Handle,
    instance: &Instance,
    environment: &mut Environment,
) -> Result<claude::FakeClaude> {
    let listen = ports::sticky_port(&instance.data.join("claude.port"))?;
    let fake = start_claude(runtime, listen, Duration::from_millis(40))?;
    note("ANTHROPIC_API_KEYS is not set: a fake Claude answers, and costs nothing");

    environment.insert("ANTHROPIC_API_KEYS".into(), format!("local={CLAUDE_KEY}"));
    environment.insert("ANTHROPIC_BASE_URL".into(), fake.url());
    environment.insert(FAKE_CLAUDE.into(), fake.url());

    Ok(fake)
}

fn start_claude(
    runtime: &Handle,
    listen: SocketAddr,
    pace: Duration,
) -> Result<claude::FakeClaude> {
    step("fake Claude: starting", || {
        let config = claude::Config {
            listen,
            keys: vec![CLAUDE_KEY.into()],
            pace,
            style: claude::Style::Conversation,
        };
        Ok(runtime.block_on(claude::FakeClaude::start(config))?)
    })
}

fn add_stripe(
    runtime: &Handle,
    instance: &Instance,
    port: u16,
    environment: &mut Environment,
) -> Result<stripe::FakeStripe> {
    let config = stripe::Config {
        listen: ports::sticky_port(&instance.data.join("stripe.port"))?,
        webhook_url: Some(format!("http://localhost:{port}/api/billing/webhook")),
        ..stripe::Config::default()
    };
    let fake = step("fake Stripe: starting", || {
        Ok(runtime.block_on(stripe::FakeStripe::start(config.clone()))?)
    })?;
    note("STRIPE_SECRET_KEY is not set: a fake Stripe takes the payments, and charges no card");

    let settings = [
        ("STRIPE_SECRET_KEY", config.key),
        ("STRIPE_WEBHOOK_SECRET", config.webhook_secret),
        ("STRIPE_PRICE_PRO", stripe::PRICE.to_owned()),
        ("STRIPE_BASE_URL", fake.url()),
        (STRIPE_PAGES, fake.url()),
    ];
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));

    Ok(fake)
}

fn add_mail(
    runtime: &Handle,
    instance: &Instance,
    environment: &mut Environment,
) -> Result<mail::FakeMail> {
    let listen = ports::sticky_port(&instance.data.join("mail.port"))?;
    let fake = step("fake mail provider: starting", || {
        Ok(runtime.block_on(mail::FakeMail::start(listen))?)
    })?;
    note("RESEND_API_KEY is not set: mail is shown at /local/mail, and not sent");

    let settings = [
        ("RESEND_API_KEY", mail::KEY.to_owned()),
        ("RESEND_BASE_URL", fake.url()),
        ("MAIL_FROM", "Iconoclash <hello@localhost>".to_owned()),
        ("ALERT_EMAIL_TO", "operators@localhost".to_owned()),
        (MAIL_PAGES, fake.url()),
    ];
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));

    Ok(fake)
}

/// Migrates and seeds one of the stack's own databases.
pub fn migrate(runtime: &Handle, services: &Services, database: &str) -> Result<()> {
    let pooled = format!("{}/{database}", services.pooled_base_url());

    migrate_url(runtime, &services.postgres.url(database), Some(&pooled))
}

/// Migrates and seeds the database at this URL.
pub fn migrate_url(runtime: &Handle, direct: &str, pooled: Option<&str>) -> Result<()> {
    let mut print = |line: String| note(&line);

    step("migrating and seeding the database", || {
        Ok(runtime.block_on(iconoclash_cli::migrate(direct, pooled, &mut print))?)
    })
}
