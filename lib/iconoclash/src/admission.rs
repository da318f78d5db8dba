//! Who may send now: the day's messages, taken by one atomic script and given back when nothing came of them.
//!
//! A subject is what messages count for: a user, or a visitor's network. Redis does not know a subject's plan until
//! Postgres has told it once; until then the free plan's limit is assumed, and only where that limit is what refuses
//! does the caller ask again with the plan.

use std::{sync::LazyLock, time::Duration};
use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Command, Redis, Script};
use uuid::Uuid;

use crate::{
    app::App,
    auth::Session,
    config::Quotas,
    error::{Error, Result},
    plan::Plan,
    quota::Quota,
};

static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admission/take.lua")));
static REFUND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admission/refund.lua")));

/// Longer than a day, so that a reply that ends after midnight can still give its message back.
const KEEP_DAY: Duration = Duration::from_secs(48 * 3600);
const KEEP_PLAN: Duration = Duration::from_secs(600);

/// What messages count for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(String);

impl Subject {
    /// A user's own id, or the network of a guest, who could otherwise start over with a new account.
    pub fn of(session: &Session, app: &App) -> Result<Self> {
        if session.claims.guest {
            let key = app.config().credentials_key.clone()?;
            Ok(Self(format!("ip:{}", session.network.pseudonym(&key.0))))
        } else {
            Ok(Self(format!("u:{}", session.claims.sub)))
        }
    }

    /// As the ledger stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One request for one of today's messages.
#[derive(Debug)]
pub struct Admission<'a> {
    redis: &'a Redis,
    quotas: Quotas,
    subject: &'a Subject,
    request: Uuid,
    now: OffsetDateTime,
}

/// What admission said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A message is taken; so many are by now.
    Admitted(u32),
    /// All are taken.
    Exhausted(u32),
    /// All that the free plan has are taken, but the plan may be another one.
    PlanUnknown,
}

impl<'a> Admission<'a> {
    /// Prepares the request; nothing is asked yet.
    pub fn new(app: &'a App, subject: &'a Subject, request: Uuid, now: OffsetDateTime) -> Result<Self> {
        Ok(Self { redis: app.redis()?, quotas: app.config().quotas.clone()?, subject, request, now })
    }

    /// Takes a message, `plan` being what Postgres said if it was asked already. Safe to repeat.
    pub async fn take(&self, plan: Option<Plan>) -> Result<Decision> {
        let guest = self.subject.0.starts_with("ip:").then_some(Plan::Guest);
        // That a network is a guest is no news, and each command is billed.
        let keep_plan = if guest.is_some() { 0 } else { KEEP_PLAN.as_secs() };
        let mut args: Vec<Arg> = vec![self.request.to_string().into(), guest.or(plan).map_or("", Plan::name).into()];
        args.extend(Plan::ALL.map(|plan| plan.messages_per_day(&self.quotas).into()));
        args.extend([KEEP_DAY.as_secs().into(), keep_plan.into()]);
        let keys = [day_key(self.subject, self.now), format!("{{rl}}:pl:{}", self.subject.0)];
        let keys = keys.each_ref().map(String::as_str);
        match self.redis.exec::<(u32, u32)>(&TAKE.command(&keys, &args).idempotent()).await? {
            (0, taken) => Ok(Decision::Admitted(taken)),
            (1, taken) => Ok(Decision::Exhausted(taken)),
            (2, _) => Ok(Decision::PlanUnknown),
            (code, _) => Err(Error::Internal(format!("admission answered {code}").into())),
        }
    }

    /// Gives the message back if it was taken, and says how many remain taken. Safe to repeat.
    pub async fn refund(&self) -> Result<u32> {
        let key = day_key(self.subject, self.now);
        Ok(self.redis.exec(&REFUND.command(&[&key], &[self.request.to_string().into()]).idempotent()).await?)
    }

    /// The day as answers show it.
    pub fn quota(&self, plan: Plan, taken: u32) -> Quota {
        Quota::new(plan.messages_per_day(&self.quotas), taken, self.now)
    }
}

/// The day of a subject, without taking anything.
pub async fn quota(app: &App, subject: &Subject, plan: Plan, now: OffsetDateTime) -> Result<Quota> {
    let command = Command::new("HGET").arg(day_key(subject, now)).arg("n").idempotent();
    let taken: Option<String> = app.redis()?.exec(&command).await?;
    let taken = taken.and_then(|taken| taken.parse().ok()).unwrap_or(0);
    Ok(Quota::new(plan.messages_per_day(&app.config().quotas.clone()?), taken, now))
}

fn day_key(subject: &Subject, now: OffsetDateTime) -> String {
    format!("{{rl}}:{}:{}", subject.0, now.to_offset(time::UtcOffset::UTC).date())
}
