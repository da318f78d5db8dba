//! Postgres, PgBouncer and Redis together.

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    install, pgbouncer,
    pgbouncer::{Need, PgBouncer},
    postgres,
    postgres::Postgres,
    process,
    profile::Profile,
    progress::note,
    redis,
    redis::Redis,
    secrets,
    secrets::Secrets,
};

/// The running services of one profile.
#[derive(Debug)]
pub struct Services {
    /// Postgres 18.
    pub postgres: Postgres,
    /// The pooler, where there is one.
    pub pgbouncer: Option<PgBouncer>,
    /// Redis or Valkey.
    pub redis: Redis,
    /// Debian's Postgres 15, for tests only and where there is one.
    pub postgres_15: Option<Postgres>,
    /// What opens them.
    pub secrets: Secrets,
}

impl Services {
    /// What `cargo local` needs.
    pub fn start(profile: &Profile) -> Result<Self> {
        Self::start_with(profile, Need::Wanted)
    }

    /// What the tests need: the pooler whatever it takes, and the oldest Postgres that we promise.
    pub fn start_for_tests(profile: &Profile) -> Result<Self> {
        let mut services = Self::start_with(profile, Need::Required)?;
        match install::debian_postgres_15(&profile.places) {
            Ok(bin) => {
                let version = postgres::version_15(&bin);
                let server =
                    Postgres::start(profile, &version, &services.secrets.postgres_password)?;
                services.postgres_15 = Some(server);
            }
            Err(error) => note(&format!(
                "no Postgres 15 here, so the tests run on Postgres 18 alone: {error:#}"
            )),
        }
        Ok(services)
    }

    fn start_with(profile: &Profile, need: Need) -> Result<Self> {
        allow_many_files();
        let places = &profile.places;
        if let Some(account) = &places.account {
            note(&format!(
                "as root, the services run as {}, below {}",
                account.name,
                places.store.display()
            ));
        }
        let native = install::postgres_package(places)?;
        let bouncer = pgbouncer::program(places, need)?;
        let redis = redis::program(places)?;

        let secrets = secrets::kept(&profile.data)?;
        let password = secrets.postgres_password.as_str();
        let postgres = Postgres::start(profile, &postgres::version_18(&native), password)?;
        let pgbouncer = bouncer
            .map(|program| PgBouncer::start(profile, &program, postgres.address, password))
            .transpose()?;
        let redis = Redis::start(profile, &redis)?;
        Ok(Self {
            postgres,
            pgbouncer,
            redis,
            postgres_15: None,
            secrets,
        })
    }

    /// The pooled URL without a database; the direct one where there is no pooler.
    pub fn pooled_base_url(&self) -> String {
        let address = self
            .pgbouncer
            .as_ref()
            .map_or(self.postgres.address, |pooler| pooler.address);
        postgres::base_url(address, &self.secrets.postgres_password)
    }

    /// Fails if a service has ended by itself.
    pub fn check(&mut self, profile: &Profile) -> Result<()> {
        let children = [
            ("postgres", Some(&mut self.postgres.child)),
            (
                "pgbouncer",
                self.pgbouncer.as_mut().map(|pooler| &mut pooler.child),
            ),
            ("redis", Some(&mut self.redis.child)),
        ];
        for (name, child) in children {
            if let Some(status) = child.map(Child::try_wait).transpose()?.flatten() {
                let log = profile.log(name);
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

/// Asks again and again until the service is there, unless its process ends first.
pub fn wait_until(child: &mut Child, mut ready: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let Err(error) = ready() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status})");
        }
        if Instant::now() > deadline {
            return Err(error.context("it does not answer after a minute"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// 2,000 clients need more files than a shell allows by default (256 on macOS); children inherit this.
fn allow_many_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(10_000)), hard);
    }
}
