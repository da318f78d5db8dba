//! Admission control: who may send a message now, and the hold that reserves its maximum cost.
//!
//! One atomic Redis script checks revocation, plan, daily quota, burst and spending limits, and reserves the hold. It
//! runs while Postgres is asked, so it may not know the plan, the prompt or the limits, and Redis may have lost data.
//! [`Admission::decide`] compares its decision with the ledger, tells Redis what the ledger knows, and asks once more
//! where that matters. The ledger re-checks every limit ([`Permit`]); without Redis it decides alone.

pub(crate) mod background;
mod decision;
mod permit;

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Command, Script};
use uuid::Uuid;

use self::decision::Code;
pub use self::{decision::Decision, permit::Permit};
use crate::{
    app::App,
    clock::{epoch_ms, month_end, utc_day},
    config::Quotas,
    http::{
        error::{Error, Result},
        request_log,
    },
    identity::session::{self, Session},
    redis,
    spending::{
        budgets::{self, Budgets},
        ledger::{self, Limits},
        open_hold::OpenHold,
        plan::Plan,
        price,
        quota::Quota,
        redis_keys::{self, DAY_TTL, OPEN_HOLDS, PLAN_TTL, SUBJECT_DAY_TTL},
        subject::Subject,
    },
};

static RESERVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/reserve.lua")));
static SYNC_FROM_LEDGER: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/sync_from_ledger.lua")));

/// Clock skew between two instances that the burst limit tolerates.
const CLOCK_TOLERANCE_MS: i64 = 250;
/// `held` of an admission that holds nothing in Redis.
const NOTHING_HELD: i64 = -1;

/// One request for one of the day's messages, and its hold in Redis.
#[derive(Debug)]
pub struct Admission<'a> {
    app: &'a App,
    subject: &'a Subject,
    session: &'a Session,
    request: Uuid,
    now: OffsetDateTime,
    quotas: Quotas,
    /// Prices of each plan's model: of a million prompt tokens, and of the longest reply times a million.
    prices: [(u64, u64); 3],
    /// The amount that Redis holds, or [`NOTHING_HELD`].
    held: AtomicI64,
}

/// What Postgres knew while Redis was asked.
#[derive(Clone, Debug)]
pub struct LedgerSnapshot {
    /// The user's plan.
    pub plan: Plan,
    /// Length of the prompt. No token is shorter than a byte.
    pub prompt_bytes: usize,
    /// The subject's messages today.
    pub messages: i64,
    /// The subject's spending today, held or settled.
    pub spent: i64,
    /// When the burst allowance is whole again (GCRA's theoretical arrival time).
    pub burst_ms: i64,
    /// Everybody's spending today.
    pub today: i64,
    /// Everybody's spending this month.
    pub month: i64,
    /// The subject's running calls: request and hold.
    pub running: Vec<(Uuid, i64)>,
    /// The spending limits.
    pub budgets: Budgets,
}

impl<'a> Admission<'a> {
    /// Prepares a request. Nothing is sent yet.
    pub fn new(
        app: &'a App,
        subject: &'a Subject,
        session: &'a Session,
        request: Uuid,
        now: OffsetDateTime,
    ) -> Result<Self> {
        let quotas = *app.config().quotas()?;
        let models = app.config().models()?;
        let longest = u32::try_from(Plan::MAX_PROMPT_BYTES).expect("a prompt is short");

        let prices = Plan::ALL.map(|plan| {
            let rates = price::max_rates(plan.model(models), longest, now);
            let rates = rates.expect("configuration accepts only models with a price");
            let longest_reply = rates.output * u64::from(plan.max_output_tokens());
            (rates.prompt, longest_reply)
        });

        Ok(Self {
            app,
            subject,
            session,
            request,
            now,
            quotas,
            prices,
            held: AtomicI64::new(NOTHING_HELD),
        })
    }

    /// Asks Redis before Postgres has answered, for a prompt of at most `max_prompt_bytes`.
    pub async fn reserve(&self, max_prompt_bytes: usize) -> Result<Decision, redis::Error> {
        let plan = self.subject.is_network().then_some(Plan::Guest);
        let command = self.reserve_command(plan, max_prompt_bytes, None);

        let words = self.app.redis_exec::<[i64; 8]>(&command).await?;
        let decision = Decision::from_words(words, max_prompt_bytes);
        self.remember_hold(&decision);
        Ok(decision)
    }

    /// Turns Redis' decision and the ledger's knowledge into a permit or a refusal.
    pub async fn decide(
        &self,
        first: Result<Decision, redis::Error>,
        ledger: &LedgerSnapshot,
    ) -> Result<Permit> {
        let decision = match first {
            Ok(decision) if decision.agrees_with(ledger) => Ok(decision),
            Ok(_) => self.reserve_again(ledger).await,
            Err(error) => Err(error),
        };

        match decision {
            Ok(decision) => self.permit(&decision, ledger),
            Err(cause) => {
                request_log::degraded(&cause);
                self.permit_without_redis(ledger)
            }
        }
    }

    /// Tells Redis what the ledger knows, and asks again with the true plan and prompt.
    async fn reserve_again(&self, ledger: &LedgerSnapshot) -> Result<Decision, redis::Error> {
        let bytes = ledger.prompt_bytes;
        let commands = [
            self.sync_command(ledger),
            self.reserve_command(Some(ledger.plan), bytes, Some(&ledger.budgets)),
        ];
        let ask = async || {
            let last = self.app.redis_pipeline(&commands).await?.pop();
            let words = last.unwrap_or(Err(upstash_redis_rs::Error::Timeout))?;
            let words = serde_json::from_value(words)
                .map_err(|error| upstash_redis_rs::Error::Redis(error.to_string()))?;
            Ok::<_, redis::Error>(Decision::from_words(words, bytes))
        };

        let mut decision = ask().await?;
        if decision.code() == Code::Unknown {
            // Redis did not have the first script, so it ran after the second.
            decision = ask().await?;
        }
        self.remember_hold(&decision);
        Ok(decision)
    }

    fn permit(&self, decision: &Decision, ledger: &LedgerSnapshot) -> Result<Permit> {
        // Redis may have reserved for the longest prompt, before the true one was known.
        let max_cost = decision.hold.min(self.max_cost(ledger));
        let permit = self.permit_for(ledger, max_cost);
        let used = decision.messages;

        match decision.code() {
            Code::Admitted => Ok(permit),
            Code::Revoked => Err(session::INVALID_TOKEN),
            Code::Quota => Err(permit.quota(permit.messages_per_day).exceeded(ledger.plan)),
            Code::Burst => Err(permit.quota(used).burst_exceeded(decision.wait)),
            Code::Spend => Err(permit.quota(used).spend_limit()),
            Code::Day => Err(budgets::exhausted(permit.quota(0).reset_at, self.now)),
            Code::Month => Err(budgets::exhausted(month_end(utc_day(self.now)), self.now)),
            Code::Unknown => Err(Error::internal(
                "Redis knows too little to decide, although it was told",
            )),
        }
    }

    /// Leaves the decision to the ledger, but refuses without a write what is certain already.
    fn permit_without_redis(&self, ledger: &LedgerSnapshot) -> Result<Permit> {
        let mut permit = self.permit_for(ledger, self.max_cost(ledger));

        let interval = self.burst_interval_ms();
        let tolerance = self.burst_tolerance_ms();
        let now = epoch_ms(self.now);
        let wait = ledger.burst_ms.max(now) + interval - now - tolerance;
        let wait = if wait > 0 { wait } else { interval };
        permit.burst_wait = Duration::from_millis(u64::try_from(wait).unwrap_or_default());
        permit.limits.burst_tolerance_ms = Some(tolerance);

        if ledger.messages >= permit.messages_per_day {
            return Err(permit.quota(permit.messages_per_day).exceeded(ledger.plan));
        }
        Ok(permit)
    }

    /// The most that the reply can cost, now that its plan and its prompt are known.
    fn max_cost(&self, ledger: &LedgerSnapshot) -> i64 {
        let (prompt_rate, longest_reply) = self.prices[ledger.plan as usize];
        let cost = (ledger.prompt_bytes as u64 * prompt_rate + longest_reply).div_ceil(1_000_000);
        i64::try_from(cost).unwrap_or(i64::MAX)
    }

    fn permit_for(&self, ledger: &LedgerSnapshot, max_cost: i64) -> Permit {
        let budgets = &ledger.budgets;
        let messages_per_day = i64::from(ledger.plan.messages_per_day(&self.quotas));

        Permit {
            max_cost,
            limits: Limits {
                messages: Some(messages_per_day),
                subject_microusd: Some(budgets.of_plan(ledger.plan)),
                day_microusd: Some(budgets.day),
                month_microusd: Some(budgets.month),
                burst_interval_ms: self.burst_interval_ms(),
                burst_tolerance_ms: None,
            },
            plan: ledger.plan,
            messages_per_day,
            messages_before: ledger.messages,
            burst_per_minute: self.quotas.burst_per_minute,
            burst_wait: Duration::ZERO,
            now: self.now,
        }
    }

    /// The quota of a plan's day in which `used` messages are sent.
    pub fn quota(&self, plan: Plan, used: i64) -> Quota {
        let limit = plan.messages_per_day(&self.quotas);
        let used = u32::try_from(used).unwrap_or_default();
        Quota::new(limit, used, self.now).with_burst(self.quotas.burst_per_minute)
    }

    /// Replaces the hold by the cost. If this fails, reconciliation settles the hold.
    pub async fn settle(&self, cost_microusd: i64) {
        if let Some(hold) = self.take_hold() {
            self.send_settlement(hold.settle(cost_microusd)).await;
        }
    }

    /// Releases the message with its hold and its share of the burst.
    pub async fn release(&self) {
        self.settle_uncounted(0).await;
    }

    /// Replaces the hold by the cost of a message that does not count.
    pub(crate) async fn settle_uncounted(&self, cost_microusd: i64) {
        if let Some(hold) = self.take_hold() {
            let command = hold.settle_uncounted(cost_microusd, self.burst_interval_ms());
            self.send_settlement(command).await;
        }
    }

    fn take_hold(&self) -> Option<OpenHold> {
        let amount = self.held.swap(NOTHING_HELD, Ordering::Relaxed);
        (amount != NOTHING_HELD).then(|| self.open_hold(self.request, amount))
    }

    async fn send_settlement(&self, command: Command) {
        if let Err(error) = self.app.redis_exec::<i64>(&command).await {
            let cause = request_log::error_chain(&error);
            tracing::warn!(
                request.id = %self.request,
                cause,
                "a hold was not settled; reconciliation settles it"
            );
        }
    }

    fn remember_hold(&self, decision: &Decision) {
        if decision.code() == Code::Admitted {
            self.held.store(decision.hold, Ordering::Relaxed);
        }
    }

    fn open_hold(&self, request: Uuid, amount: i64) -> OpenHold {
        OpenHold {
            day: utc_day(self.now),
            subject: self.subject.as_str().to_owned(),
            request,
            amount,
            is_message: true,
        }
    }

    /// Messages that are sent at once do not arrive in the order of their instances' clocks.
    fn burst_tolerance_ms(&self) -> i64 {
        let interval = self.burst_interval_ms();
        let burst = interval * i64::from(self.quotas.burst_per_minute);
        burst + CLOCK_TOLERANCE_MS.min(interval / 2)
    }

    fn burst_interval_ms(&self) -> i64 {
        60_000 / i64::from(self.quotas.burst_per_minute.max(1))
    }

    fn reserve_command(
        &self,
        plan: Option<Plan>,
        prompt_bytes: usize,
        budgets: Option<&Budgets>,
    ) -> Command {
        let subject = self.subject.as_str();
        let claims = &self.session.claims;
        let day = utc_day(self.now);

        let mut keys = vec![
            redis_keys::subject_day(subject, day),
            OPEN_HOLDS.to_owned(),
            redis_keys::subject_day(subject, day.previous_day().unwrap_or(day)),
            redis_keys::day(day),
            redis_keys::revoked_session(claims.sid),
            redis_keys::token_version(claims.sub),
            redis_keys::plan(subject),
            budgets::REDIS_KEY.to_owned(),
            redis_keys::month(day),
        ];
        keys.extend(redis_keys::earlier_days(day));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();

        // A network is always a guest, and each command is billed, so its plan is not cached.
        let plan_ttl = if self.subject.is_network() {
            0
        } else {
            PLAN_TTL.as_secs()
        };
        let mut args: Vec<Arg> = vec![
            self.request.to_string().into(),
            epoch_ms(self.now).into(),
            claims.ver.into(),
            plan.map_or("", Plan::as_str).into(),
            plan_ttl.into(),
            prompt_bytes.into(),
            format!("{day} {subject} {} ", self.request).into(),
            budgets.map_or(String::new(), Budgets::as_words).into(),
            self.burst_interval_ms().into(),
            self.burst_tolerance_ms().into(),
            SUBJECT_DAY_TTL.as_secs().into(),
        ];
        for (plan, (prompt_rate, longest_reply)) in Plan::ALL.into_iter().zip(self.prices) {
            let messages = plan.messages_per_day(&self.quotas);
            args.extend([messages.into(), prompt_rate.into(), longest_reply.into()]);
        }

        RESERVE.command(&keys, &args).idempotent()
    }

    fn sync_command(&self, ledger: &LedgerSnapshot) -> Command {
        let day = utc_day(self.now);
        let mut keys = vec![
            redis_keys::subject_day(self.subject.as_str(), day),
            OPEN_HOLDS.to_owned(),
            redis_keys::day(day),
            redis_keys::month(day),
        ];
        keys.extend(redis_keys::earlier_days(day));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();

        // This request's own message and hold come on top of what the ledger knows.
        let held = self.held.load(Ordering::Relaxed);
        let own_message = i64::from(held != NOTHING_HELD);
        let own_hold = held.max(0);
        let mut args: Vec<Arg> = vec![
            (ledger.messages + own_message).into(),
            (ledger.spent + own_hold).into(),
            ledger.burst_ms.into(),
            (ledger.today + own_hold).into(),
            (ledger.month + own_hold).into(),
            epoch_ms(self.now).into(),
            SUBJECT_DAY_TTL.as_secs().into(),
            DAY_TTL.as_secs().into(),
        ];
        let running = ledger.running.iter();
        args.extend(running.map(|(request, hold)| {
            let open = self.open_hold(*request, *hold);
            Arg::from(open.to_string())
        }));

        SYNC_FROM_LEDGER.command(&keys, &args).idempotent()
    }
}

/// Has Redis refuse the messages of a session, or of a user's tokens below a version, that Postgres has ended.
///
/// Best effort: Postgres, which is asked at the same time, refuses them by itself.
pub(crate) async fn revoke(
    app: &App,
    session: Option<(Uuid, Duration)>,
    user: Uuid,
    version: Option<i32>,
) {
    let commands = redis_keys::revoke_commands(session, user, version);
    let revoked = app.redis_pipeline(&commands).await.and_then(|results| {
        let mut results = results.into_iter();
        results
            .try_for_each(|result| result.map(drop))
            .map_err(redis::Error::from)
    });

    if let Err(cause) = revoked {
        request_log::degraded(&cause);
    }
}

/// The subject's messages today, as the ledger counts them. Redis is told, if it does not know them.
pub async fn messages(app: &App, subject: &Subject, now: OffsetDateTime) -> Result<i64> {
    let messages = ledger::messages_today(app.db()?, subject.as_str(), now).await?;

    let key = redis_keys::subject_day(subject.as_str(), utc_day(now));
    // HSETNX, because a message that is being admitted is in Redis first.
    let store = Command::new("HSETNX").arg(&key).arg("n").arg(messages);
    let expire = Command::new("EXPIRE")
        .arg(&key)
        .arg(SUBJECT_DAY_TTL.as_secs());
    let commands = [store.idempotent(), expire.idempotent()];
    if let Err(cause) = app.redis_pipeline(&commands).await {
        request_log::degraded(&cause);
    }
    Ok(messages)
}
