//! Postgres, PgBouncer and Redis of one instance.

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    install::{self, Need},
    instance::Instance,
    pgbouncer,
    pgbouncer::PgBouncer,
    postgres,
    postgres::Postgres,
    process,
    progress::note,
    redis,
    redis::Redis,
    secrets,
    secrets::Secrets,
};

/// The running services.
#[derive(Debug)]
pub struct Services {
    /// The pinned Postgres.
    pub postgres: Postgres,
    /// The pooler, where there is one.
    pub pgbouncer: Option<PgBouncer>,
    /// The pinned Valkey, or another Redis.
    pub redis: Redis,
    /// Their passwords.
    pub secrets: Secrets,
}

impl Services {
    /// Starts the services. With `Need::Required` exactly the pinned ones, with a pooler.
    pub fn start(instance: &Instance, need: Need) -> Result<Self> {
        allow_many_files();
        let paths = &instance.paths;
        if let Some(account) = &paths.account {
            note(&format!(
                "this runs as root, so the services run as {}, in {}",
                account.name,
                paths.store.display()
            ));
        }

        let native = install::postgres_package(paths)?;
        let postgres_program = postgres::pinned(&native)?;
        let pgbouncer_program = pgbouncer::program(paths, need)?;
        let redis_program = redis::pinned(paths, need)?;

        let secrets = secrets::load_or_create(&instance.data)?;
        let password = secrets.postgres_password.as_str();
        let postgres = Postgres::start(instance, &postgres_program, password)?;
        let pgbouncer = pgbouncer_program
            .map(|program| PgBouncer::start(instance, &program, postgres.address, password))
            .transpose()?;
        let redis = Redis::start(instance, &redis_program)?;

        Ok(Self {
            postgres,
            pgbouncer,
            redis,
            secrets,
        })
    }

    /// The pooled URL without a database; the direct one where there is no pooler.
    pub fn pooled_base_url(&self) -> String {
        let pooler = self.pgbouncer.as_ref();
        let address = pooler.map_or(self.postgres.address, |pooler| pooler.address);

        postgres::base_url(address, &self.secrets.postgres_password)
    }

    /// Fails if a service has ended.
    pub fn check(&mut self, instance: &Instance) -> Result<()> {
        let pgbouncer = self.pgbouncer.as_mut().map(|pooler| &mut pooler.child);
        let children = [
            ("postgres", Some(&mut self.postgres.child)),
            ("pgbouncer", pgbouncer),
            ("redis", Some(&mut self.redis.child)),
        ];

        for (name, child) in children {
            if let Some(status) = child.map(|child| child.try_wait()).transpose()?.flatten() {
                let log = instance.log(name);
                bail!(
                    "{name} ended ({status}); the end of {}:\n{}",
                    log.display(),
                    process::tail(&log)
                );
            }
        }

        Ok(())
    }
}

/// Servers of the oldest supported versions, where they are installed or can be.
#[derive(Debug)]
pub struct OldestServices {
    /// Postgres 15, without a pooler.
    pub postgres: Option<Postgres>,
    /// Redis 7.0.
    pub redis: Option<Redis>,
}

impl OldestServices {
    /// Starts those that are there, and says which are not.
    pub fn start(instance: &Instance, secrets: &Secrets) -> Result<Self> {
        let paths = &instance.paths;
        let postgres = install::debian_postgres_15(paths).and_then(postgres::oldest);
        let redis = redis::oldest(paths);

        let postgres = available("Postgres 15", postgres)
            .map(|program| Postgres::start(instance, &program, &secrets.postgres_password))
            .transpose()?;
        let redis = available("Redis 7.0", redis)
            .map(|program| Redis::start(instance, &program))
            .transpose()?;

        Ok(Self { postgres, redis })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.postgres.is_none() && self.redis.is_none()
    }

    /// Products and versions: `Postgres 15.18 and Redis 7.0.15`.
    pub fn labels(&self) -> String {
        let postgres = self.postgres.as_ref().map(|server| server.label.as_str());
        let redis = self.redis.as_ref().map(|server| server.label.as_str());
        let labels: Vec<&str> = postgres.into_iter().chain(redis).collect();

        labels.join(" and ")
    }
}

fn available<T>(name: &str, program: Result<T>) -> Option<T> {
    program
        .inspect_err(|error| {
            note(&format!(
                "there is no {name} here, so the tests do not run on it: {error:#}"
            ));
        })
        .ok()
}

/// PgBouncer's 2,000 clients need more files than the default limit (256 on macOS). Children
/// inherit the limit.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(10_000)), hard);
    }
}
