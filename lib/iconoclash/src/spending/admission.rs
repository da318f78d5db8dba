//! Who may send now, and what it may cost: one atomic script decides over revocation, plan, the day's messages, the
//! burst, and what the user and everybody may spend; Postgres is the truth behind it.
//!
//! A message is admitted with a hold, the most that it can cost, which is settled to the cost or given back. The script
//! runs while Postgres is asked, so it may not know the plan, the prompt or the limits, and Redis may have lost what it
//! knew: [`Admission::decide`] compares the two, tells Redis what the ledger knows, and asks once more where it matters.
//! The statement that writes the ledger checks the same limits again ([`Gate`]); without Redis it alone decides.

pub mod aside;
mod gate;
pub(crate) mod stored;

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

use self::stored::{KEEP_DAY, KEEP_PLAN, KEEP_SUBJECT_DAY, OPEN_HOLDS, OpenHold};

pub(crate) use self::stored::forget_plan_command;
pub use self::{gate::Gate, stored::messages_command};

use pooled_postgres::sql_positional;

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
        plan::Plan,
        price,
        quota::Quota,
    },
};

static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admission/take.lua")));
static RAISE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admission/raise.lua")));

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

    fn is_network(&self) -> bool {
        self.0.starts_with("ip:")
    }
}

/// By how much the clocks of two instances may differ.
const CLOCK_TOLERANCE_MS: i64 = 250;

/// The script's answer where it lacks something that the caller can tell it.
const UNKNOWN: u8 = 7;

/// One request for one of today's messages, and the hold that it has in Redis.
#[derive(Debug)]
pub struct Admission<'a> {
    app: &'a App,
    subject: &'a Subject,
    session: &'a Session,
    request: Uuid,
    now: OffsetDateTime,
    quotas: Quotas,
    /// What each plan's messages cost: of a million tokens of the prompt, and of the longest reply times a million.
    prices: [(u64, u64); 3],
    /// The amount that is held in Redis, or less than zero for none.
    held: AtomicI64,
}

/// What Postgres knows, as it was while Redis was asked.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The user's plan.
    pub plan: Plan,
    /// The bytes of the prompt, of which no token is shorter than one.
    pub prompt_bytes: usize,
    /// The subject's messages today.
    pub messages: i64,
    /// What they cost, held or settled.
    pub spent: i64,
    /// When the burst allowance is whole again.
    pub burst_ms: i64,
    /// Everybody's spending today.
    pub today: i64,
    /// Everybody's spending this month.
    pub month: i64,
    /// The subject's calls under way, by request and hold.
    pub running: Vec<(Uuid, i64)>,
    /// The limits.
    pub budgets: Budgets,
}

/// What Redis said to one question.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    code: u8,
    plan: Plan,
    /// The bytes that were asked for.
    bytes: usize,
    hold: i64,
    messages: i64,
    spent: i64,
    today: i64,
    month: i64,
    wait: Duration,
}

impl<'a> Admission<'a> {
    /// Prepares the request; nothing is asked yet.
    pub fn new(
        app: &'a App,
        subject: &'a Subject,
        session: &'a Session,
        request: Uuid,
        now: OffsetDateTime,
    ) -> Result<Self> {
        let (quotas, models) = (app.config().quotas.clone()?, app.config().models.clone()?);
        let longest = u32::try_from(Plan::MAX_PROMPT_BYTES).expect("a prompt is short");
        let prices = Plan::ALL.map(|plan| {
            let rates = price::dearest(plan.model(&models), longest, now);
            let rates = rates.expect("configuration takes only models with a price");
            (
                rates.prompt,
                rates.output * u64::from(plan.max_output_tokens()),
            )
        });
        Ok(Self {
            app,
            subject,
            session,
            request,
            now,
            quotas,
            prices,
            held: AtomicI64::new(-1),
        })
    }

    /// Asks Redis with what is known before Postgres has answered: a prompt of `bytes` at the most.
    pub async fn ask(&self, bytes: usize) -> Result<Verdict, redis::Error> {
        let plan = self.subject.is_network().then_some(Plan::Guest);
        let command = self.take(plan, bytes, None);
        let redis = self.app.redis().map_err(|_| redis::Error::CircuitOpen)?;
        let verdict = redis
            .exec::<[i64; 8]>(&command)
            .await
            .map(|words| Verdict::read(words, bytes))?;
        self.remember(&verdict);
        Ok(verdict)
    }

    /// Compares what Redis said with what Postgres knows, and asks again where it said it without knowing.
    pub async fn decide(
        &self,
        said: Result<Verdict, redis::Error>,
        ledger: &Ledger,
    ) -> Result<Gate> {
        let verdict = match said {
            Ok(verdict) if verdict.stands(ledger) => Ok(verdict),
            Ok(_) => self.ask_again(ledger).await,
            Err(error) => Err(error),
        };
        match verdict {
            Ok(verdict) => self.judge(&verdict, ledger),
            Err(cause) => {
                request_log::degraded(&cause);
                self.without_redis(ledger)
            }
        }
    }

    /// The same question by one who knows, after Redis was told what the ledger knows.
    async fn ask_again(&self, ledger: &Ledger) -> Result<Verdict, redis::Error> {
        let bytes = ledger.prompt_bytes;
        let commands = [
            self.raise(ledger),
            self.take(Some(ledger.plan), bytes, Some(&ledger.budgets)),
        ];
        let redis = self.app.redis().map_err(|_| redis::Error::CircuitOpen)?;
        let ask = async || {
            let words = redis
                .pipeline(&commands)
                .await?
                .pop()
                .unwrap_or(Err(upstash_redis_rs::Error::Timeout))?;
            let words = serde_json::from_value(words);
            let words = words.map_err(|error| upstash_redis_rs::Error::Redis(error.to_string()))?;
            Ok::<_, redis::Error>(Verdict::read(words, bytes))
        };
        let mut verdict = ask().await?;
        if verdict.code == UNKNOWN {
            // A script that Redis does not hold yet is run after the other, which then came too early.
            verdict = ask().await?;
        }
        self.remember(&verdict);
        Ok(verdict)
    }

    fn judge(&self, verdict: &Verdict, ledger: &Ledger) -> Result<Gate> {
        let gate = self.gate(ledger, verdict.hold);
        let (today, month) = (gate.quota(0).reset_at, month_end(utc_day(self.now)));
        match verdict.code {
            0 => Ok(gate),
            1 => Err(session::INVALID_TOKEN),
            2 => Err(gate.quota(gate.messages).exceeded(ledger.plan)),
            3 => Err(gate.quota(verdict.messages).burst_exceeded(verdict.wait)),
            4 => Err(gate.quota(verdict.messages).spend_limit()),
            5 => Err(budgets::exhausted(today, self.now)),
            6 => Err(budgets::exhausted(month, self.now)),
            code => Err(Error::Internal(format!("admission answered {code}").into())),
        }
    }

    /// What the ledger's statement has to decide alone. What is refused already is refused here, without writing.
    fn without_redis(&self, ledger: &Ledger) -> Result<Gate> {
        let (rate, reply) = self.prices[ledger.plan as usize];
        let hold = (ledger.prompt_bytes as u64 * rate + reply).div_ceil(1_000_000);
        let hold = i64::try_from(hold).unwrap_or(i64::MAX);
        let every = self.burst_every_ms();
        let most = self.burst_most_ms();
        let now = epoch_ms(self.now);
        let wait = ledger.burst_ms.max(now) + every - now - most;
        let wait = if wait > 0 { wait } else { every };
        let burst_wait = Duration::from_millis(u64::try_from(wait).unwrap_or_default());
        let gate = Gate {
            burst_most_ms: Some(most),
            burst_wait,
            ..self.gate(ledger, hold)
        };
        if ledger.messages >= gate.messages {
            return Err(gate.quota(gate.messages).exceeded(ledger.plan));
        }
        Ok(gate)
    }

    fn gate(&self, ledger: &Ledger, hold: i64) -> Gate {
        let Ledger { plan, budgets, .. } = ledger;
        Gate {
            hold,
            messages: plan.messages_per_day(&self.quotas).into(),
            spent: budgets.of(*plan),
            day: budgets.day,
            month: budgets.month,
            burst_every_ms: self.burst_every_ms(),
            burst_most_ms: None,
            burst_wait: Duration::ZERO,
            burst: self.quotas.burst_per_minute,
            taken: ledger.messages,
            plan: *plan,
            now: self.now,
        }
    }

    /// A plan's day as answers show it.
    pub fn quota(&self, plan: Plan, taken: i64) -> Quota {
        let taken = u32::try_from(taken).unwrap_or_default();
        Quota::new(plan.messages_per_day(&self.quotas), taken, self.now)
            .with_burst(self.quotas.burst_per_minute)
    }

    /// Puts the cost in the hold's place. Best effort: what is not settled here, reconciling settles.
    pub async fn settle(&self, cost_microusd: i64) {
        self.close(cost_microusd, false).await;
    }

    /// Gives the message and its hold back, if Redis has one.
    pub async fn give_back(&self) {
        self.settle_uncounted(0).await;
    }

    /// Gives the message back, and puts the cost in the hold's place.
    pub async fn settle_uncounted(&self, cost_microusd: i64) {
        self.close(cost_microusd, true).await;
    }

    async fn close(&self, cost_microusd: i64, give_back: bool) {
        let amount = self.held.swap(-1, Ordering::Relaxed);
        if amount < 0 {
            return;
        }
        let (day, subject) = (utc_day(self.now), self.subject.0.clone());
        let open = OpenHold {
            day,
            subject,
            request: self.request,
            amount,
            is_message: true,
        };
        let command = open.settle(cost_microusd, give_back);
        let settled = async { Ok::<_, Error>(self.app.redis()?.exec::<i64>(&command).await?) };
        if let Err(error) = settled.await {
            tracing::warn!(request.id = %self.request, cause = ?error, "a hold is left for reconciling");
        }
    }

    fn remember(&self, verdict: &Verdict) {
        if verdict.code == 0 {
            self.held.store(verdict.hold, Ordering::Relaxed);
        }
    }

    /// Messages that come at once do not arrive in the order of their instances' clocks.
    fn burst_most_ms(&self) -> i64 {
        let every = self.burst_every_ms();
        every * i64::from(self.quotas.burst_per_minute) + CLOCK_TOLERANCE_MS.min(every / 2)
    }

    fn burst_every_ms(&self) -> i64 {
        60_000 / i64::from(self.quotas.burst_per_minute.max(1))
    }

    fn take(&self, plan: Option<Plan>, bytes: usize, budgets: Option<&Budgets>) -> Command {
        let (day, claims) = (utc_day(self.now), &self.session.claims);
        let mut keys = vec![
            stored::subject_key(&self.subject.0, day),
            OPEN_HOLDS.to_owned(),
        ];
        keys.push(stored::subject_key(
            &self.subject.0,
            day.previous_day().unwrap_or(day),
        ));
        keys.push(stored::day_key(day));
        keys.extend([
            stored::revoked_key(claims.sid),
            stored::version_key(claims.sub),
            stored::plan_key(&self.subject.0),
        ]);
        keys.extend([budgets::REDIS_KEY.to_owned(), stored::month_key(day)]);
        keys.extend(stored::earlier_days(day));
        // That a network is a guest is no news, and each command is billed.
        let keep_plan = if self.subject.is_network() {
            0
        } else {
            KEEP_PLAN.as_secs()
        };
        let mut args: Vec<Arg> = vec![
            self.request.to_string().into(),
            epoch_ms(self.now).into(),
            claims.ver.into(),
            plan.map_or("", Plan::as_str).into(),
            keep_plan.into(),
            bytes.into(),
            format!("{day} {} {} ", self.subject.0, self.request).into(),
            budgets.map_or(String::new(), Budgets::as_words).into(),
            self.burst_every_ms().into(),
            self.burst_most_ms().into(),
            KEEP_SUBJECT_DAY.as_secs().into(),
        ];
        for (plan, (rate, reply)) in Plan::ALL.into_iter().zip(self.prices) {
            args.extend([
                plan.messages_per_day(&self.quotas).into(),
                rate.into(),
                reply.into(),
            ]);
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        TAKE.command(&keys, &args).idempotent()
    }

    fn raise(&self, ledger: &Ledger) -> Command {
        let day = utc_day(self.now);
        let mut keys = vec![
            stored::subject_key(&self.subject.0, day),
            OPEN_HOLDS.to_owned(),
            stored::day_key(day),
        ];
        keys.push(stored::month_key(day));
        keys.extend(stored::earlier_days(day));
        // This request's own message and hold are on top of what the ledger knows.
        let held = self.held.load(Ordering::Relaxed);
        let (own_message, own_hold) = if held < 0 { (0, 0) } else { (1, held) };
        let mut args: Vec<Arg> = vec![
            (ledger.messages + own_message).into(),
            (ledger.spent + own_hold).into(),
            ledger.burst_ms.into(),
            (ledger.today + own_hold).into(),
            (ledger.month + own_hold).into(),
            epoch_ms(self.now).into(),
            KEEP_SUBJECT_DAY.as_secs().into(),
            KEEP_DAY.as_secs().into(),
        ];
        args.extend(ledger.running.iter().map(|(request, hold)| {
            let (subject, request, amount) = (self.subject.0.clone(), *request, *hold);
            let open = OpenHold {
                day,
                subject,
                request,
                amount,
                is_message: true,
            };
            Arg::from(open.to_string())
        }));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        RAISE.command(&keys, &args).idempotent()
    }
}

impl Verdict {
    fn read(
        [code, plan, hold, messages, spent, today, month, wait]: [i64; 8],
        bytes: usize,
    ) -> Self {
        let plan = usize::try_from(plan - 1)
            .ok()
            .and_then(|plan| Plan::ALL.get(plan))
            .copied();
        Self {
            code: u8::try_from(code).unwrap_or(u8::MAX),
            plan: plan.unwrap_or(Plan::Free),
            bytes,
            hold,
            messages,
            spent,
            today,
            month,
            wait: Duration::from_millis(u64::try_from(wait).unwrap_or_default()),
        }
    }

    /// Whether Redis knew all that it judged by, and no less than the ledger.
    fn stands(&self, ledger: &Ledger) -> bool {
        let (own_message, own_hold) = if self.code == 0 {
            (1, self.hold)
        } else {
            (0, 0)
        };
        let behind = self.messages - own_message < ledger.messages
            || self.spent - own_hold < ledger.spent
            // Others who were asked a moment later are in the one and not yet in the other: a trip for each would help
            // nobody, as the ledger's statement is exact.
            || self.today - own_hold < ledger.today - ledger.budgets.day / 100
            || self.month - own_hold < ledger.month - ledger.budgets.month / 100;
        match self.code {
            1 => true,
            0 => self.plan == ledger.plan && self.bytes >= ledger.prompt_bytes && !behind,
            2 | 3 => self.plan == ledger.plan,
            // Less may have room.
            4..=6 => self.plan == ledger.plan && self.bytes <= ledger.prompt_bytes,
            _ => false,
        }
    }
}

/// Has Redis refuse the messages of a session, or of all tokens below a version, that Postgres has ended. Best effort:
/// the statement that Postgres answers meanwhile refuses them by itself.
pub(crate) async fn revoke(
    app: &App,
    session: Option<(Uuid, Duration)>,
    user: Uuid,
    version: Option<i32>,
) {
    let commands = stored::revoke_commands(session, user, version);
    let told = async {
        let redis = app.redis().map_err(|_| redis::Error::CircuitOpen)?;
        let results = redis.pipeline(&commands).await?;
        results
            .into_iter()
            .try_for_each(|told| told.map(drop))
            .map_err(redis::Error::from)
    };
    if let Err(cause) = told.await {
        request_log::degraded(&cause);
    }
}

/// The subject's messages today, as Postgres counts them; Redis is told, so that it knows the next time.
pub async fn messages(app: &App, subject: &Subject, now: OffsetDateTime) -> Result<i64> {
    let day = utc_day(now);
    let messages = app
        .db()?
        .old_optional(&MESSAGES, &[&subject.as_str(), &day])
        .await?
        .unwrap_or_default();
    let key = stored::subject_key(&subject.0, day);
    // Not where it knows by now: a message that is being admitted is in Redis first.
    let tell = Command::new("HSETNX")
        .arg(&key)
        .arg("n")
        .arg(messages)
        .idempotent();
    let keep = Command::new("EXPIRE")
        .arg(&key)
        .arg(KEEP_SUBJECT_DAY.as_secs())
        .idempotent();
    if let Ok(redis) = app.redis()
        && let Err(cause) = redis.pipeline(&[tell, keep]).await
    {
        request_log::degraded(&cause);
    }
    Ok(messages)
}

sql_positional! {
    /// Of a subject, on a day.
    pub(crate) read MESSAGES(TEXT, DATE) -> i64 = "select messages from subject_days where subject = $1 and day = $2";
}
