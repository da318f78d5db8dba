//! Rate limits other than the message quota (GCRA): the whole count may be used at once, and refills evenly over the
//! window.
//!
//! Rejections write nothing. Without Redis, limits are checked one by one in Postgres: those before the one that
//! rejects have then counted the attempt.

use std::{cmp::Reverse, sync::LazyLock, time::Duration};

use http::StatusCode;
use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Script};
use uuid::Uuid;

use super::email;
use crate::{
    app::App,
    clock::epoch_ms,
    http::{
        error::{Limited, Result},
        network::{Network, pseudonym},
        rate_limit_status::{RateLimitStatus, in_words, retry_after_secs},
        request_log,
    },
    redis,
};

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("rate_limit/count.lua")));
static TAKE_BACK: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("rate_limit/take_back.lua")));

/// An action that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// New accounts of a network.
    SignUp,
    /// New accounts of one address: a sign-up reveals whether the address is taken.
    SignUpByEmail,
    /// New guest accounts of a network.
    Guest,
    /// Failed attempts to sign in from a network.
    SignIn,
    /// Failed attempts of one network to sign in to one account.
    SignInByEmailAndNetwork,
    /// Failed attempts of all networks to sign in to one account.
    SignInByEmail,
    /// New discussions of a user.
    Discussion,
    /// Checkout and portal sessions of a user at Stripe.
    Billing,
    /// Reads of public pages by a network.
    Read,
}

/// The party that a limit counts for.
#[derive(Clone, Debug)]
pub(crate) enum LimitSubject<'a> {
    /// A network.
    Network(Network),
    /// An e-mail address, whether or not it has an account.
    Email(&'a str),
    /// An e-mail address, as one network tries it.
    EmailAndNetwork(&'a str, Network),
    /// A user.
    User(Uuid),
}

/// The terms of a limit.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// The name in keys and headers.
    name: &'static str,
    /// Attempts that one window allows.
    count: u32,
    window: Duration,
    /// The first sentence of a rejection.
    message: &'static str,
    on_redis_outage: OnRedisOutage,
}

/// What a limit does while Redis is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnRedisOutage {
    /// Counts in Postgres, just as exactly.
    UsePostgres,
    /// Allows everything: what it protects is cheap and public.
    FailOpen,
}

impl Limit {
    /// Every limit, one row each.
    const fn rule(self) -> Rule {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);

        match self {
            Self::SignUp => Rule::new("signup", 10, HOUR)
                .message("Too many accounts were created from your network."),
            Self::SignUpByEmail => Rule::new("signup-address", 5, HOUR)
                .message("Too many attempts to sign up with this address."),
            Self::Guest => Rule::new("guest", 20, HOUR)
                .message("Too many guest accounts were created from your network."),
            Self::SignIn => Rule::new("signin", 30, Duration::from_secs(600))
                .message("Too many attempts to sign in from your network."),
            Self::SignInByEmailAndNetwork => {
                Rule::new("signin-account", 10, Duration::from_secs(600))
                    .message("Too many attempts to sign in to this account.")
            }
            // So wide that a stranger from a few networks does not lock the owner out.
            Self::SignInByEmail => Rule::new("signin-address", 300, HOUR)
                .message("Too many attempts to sign in to this account."),
            Self::Discussion => Rule::new("discussions", 60, HOUR)
                .message("You have created many discussions in a short time."),
            Self::Billing => Rule::new("billing", 20, HOUR).message("Too many billing requests."),
            Self::Read => Rule::new("reads", 120, MINUTE)
                .message("Too many requests from your network.")
                .on_redis_outage(OnRedisOutage::FailOpen),
        }
    }
}

impl Rule {
    const fn new(name: &'static str, count: u32, window: Duration) -> Self {
        Self {
            name,
            count,
            window,
            message: "Too many requests.",
            on_redis_outage: OnRedisOutage::UsePostgres,
        }
    }

    const fn message(mut self, message: &'static str) -> Self {
        self.message = message;
        self
    }

    const fn on_redis_outage(mut self, on_redis_outage: OnRedisOutage) -> Self {
        self.on_redis_outage = on_redis_outage;
        self
    }
}

/// An attempt that was counted.
pub(crate) struct Attempt {
    counters: Vec<Counter>,
    is_in_redis: bool,
}

/// Counts an attempt against every limit, or rejects it and reports the limit with the longest wait.
pub(crate) async fn check(app: &App, limits: &[(Limit, LimitSubject<'_>)]) -> Result<()> {
    count(app, limits).await.map(drop)
}

/// Counts an attempt as [`check`] does, and returns it to be taken back if only failures count.
///
/// Counted before its outcome is known, a failure cannot slip past the limit in parallel with others.
pub(crate) async fn count(app: &App, limits: &[(Limit, LimitSubject<'_>)]) -> Result<Attempt> {
    let now = app.now();
    let counters = limits
        .iter()
        .map(|(limit, subject)| Counter::new(app, *limit, subject))
        .collect::<Result<Vec<_>>>()?;

    let in_redis = count_in_redis(app, &counters, now).await;
    let is_in_redis = in_redis.is_ok();
    let tats_ms = match in_redis {
        Ok(tats_ms) => tats_ms,
        Err(error) => {
            request_log::degraded(&error);
            count_in_postgres(app, &counters, now).await?
        }
    };

    if let Some(tightest) = tightest(&counters, tats_ms, now) {
        if tightest.is_rejected {
            return Err(tightest.rejection().into());
        }
        // A CDN caches public pages for everyone, so they must not carry one visitor's headers.
        if limits.iter().all(|(limit, _)| *limit != Limit::Read) {
            request_log::add(|log| log.rate_limit = Some(tightest.status));
        }
    }
    Ok(Attempt {
        counters,
        is_in_redis,
    })
}

impl Attempt {
    /// Takes the attempt back, as if it had not been made. Where that fails, it stays counted.
    pub(crate) async fn take_back(self, app: &App) {
        let now = app.now();
        let tats_ms = match self.is_in_redis {
            true => take_back_in_redis(app, &self.counters, now)
                .await
                .map_err(|error| request_log::degraded(&error)),
            false => take_back_in_postgres(app, &self.counters)
                .await
                .map_err(|error| request_log::degraded(&error)),
        };

        let Ok(tats_ms) = tats_ms else { return };
        if let Some(tightest) = tightest(&self.counters, tats_ms, now) {
            request_log::add(|log| log.rate_limit = Some(tightest.status));
        }
    }
}

/// The limit that is to be reported.
fn tightest(counters: &[Counter], tats_ms: Vec<i64>, now: OffsetDateTime) -> Option<Check> {
    let counted = counters.iter().zip(tats_ms);
    let checks = counted.map(|(counter, tat_ms)| counter.evaluate(tat_ms, now));
    checks.max_by_key(Check::tightness)
}

/// One limit of one subject, in the terms of GCRA.
struct Counter {
    rule: Rule,
    key: String,
    /// Milliseconds between two attempts in the long run.
    emission_interval_ms: i64,
    /// How far the theoretical arrival time may lie in the future.
    burst_tolerance_ms: i64,
}

impl Counter {
    fn new(app: &App, limit: Limit, subject: &LimitSubject<'_>) -> Result<Self> {
        let secret = &app.config().credentials_key()?.0;
        let of_email = |email: &str| {
            let normalized = email::normalized(email).to_lowercase();
            pseudonym("email", &normalized, secret)
        };
        let subject = match subject {
            LimitSubject::Network(network) => network.pseudonym(secret),
            LimitSubject::Email(email) => of_email(email),
            LimitSubject::EmailAndNetwork(email, network) => {
                format!("{}:{}", of_email(email), network.pseudonym(secret))
            }
            LimitSubject::User(user) => user.to_string(),
        };

        let rule = limit.rule();
        let window_ms = i64::try_from(rule.window.as_millis()).unwrap_or(i64::MAX);
        Ok(Self {
            rule,
            key: format!("{{rl}}:l:{}:{subject}", rule.name),
            emission_interval_ms: window_ms / i64::from(rule.count),
            burst_tolerance_ms: window_ms,
        })
    }

    /// What a theoretical arrival time means for the attempt that it includes.
    fn evaluate(&self, tat_ms: i64, now: OffsetDateTime) -> Check {
        let used_ms = (tat_ms - epoch_ms(now)).max(0);
        let left_ms = self.burst_tolerance_ms - used_ms;
        let is_rejected = left_ms < 0;

        // If rejected, until one attempt is allowed; else until all are.
        let wait_ms = if is_rejected { -left_ms } else { used_ms };
        let wait = Duration::from_millis(u64::try_from(wait_ms).unwrap_or_default());
        let remaining = left_ms.max(0) / self.emission_interval_ms;

        let status = RateLimitStatus {
            name: self.rule.name,
            limit: self.rule.count,
            window_secs: u32::try_from(self.rule.window.as_secs()).unwrap_or(u32::MAX),
            remaining: u32::try_from(remaining).unwrap_or_default(),
            reset_at: now + wait,
            reset_in_secs: retry_after_secs(wait),
        };
        Check {
            status,
            is_rejected,
            message: self.rule.message,
        }
    }
}

/// The outcome of one limit for one attempt.
struct Check {
    status: RateLimitStatus,
    is_rejected: bool,
    message: &'static str,
}

impl Check {
    /// Orders outcomes: a rejection before a pass, then fewer remaining attempts, then a longer wait.
    fn tightness(&self) -> (bool, Reverse<u32>, u64) {
        let remaining = Reverse(self.status.remaining);
        (self.is_rejected, remaining, self.status.reset_in_secs)
    }

    fn rejection(&self) -> Limited {
        let wait = Duration::from_secs(self.status.reset_in_secs);
        Limited {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "rate_limited",
            detail: format!("{} Try again in {}.", self.message, in_words(wait)),
            reset_at: self.status.reset_at,
            retry_after: wait,
            headers: self.status.headers(),
        }
    }
}

/// Each limit's theoretical arrival time including this attempt. Atomic over all limits.
async fn count_in_redis(
    app: &App,
    counters: &[Counter],
    now: OffsetDateTime,
) -> Result<Vec<i64>, redis::Error> {
    let mut args: Vec<Arg> = vec![epoch_ms(now).into()];
    for counter in counters {
        args.push(counter.emission_interval_ms.into());
        args.push(counter.burst_tolerance_ms.into());
    }

    let command = COUNT.command(&keys(counters), &args);
    app.redis_exec(&command).await
}

/// Each limit's theoretical arrival time without this attempt.
async fn take_back_in_redis(
    app: &App,
    counters: &[Counter],
    now: OffsetDateTime,
) -> Result<Vec<i64>, redis::Error> {
    let mut args: Vec<Arg> = vec![epoch_ms(now).into()];
    args.extend(
        counters
            .iter()
            .map(|counter| Arg::from(counter.emission_interval_ms)),
    );

    let command = TAKE_BACK.command(&keys(counters), &args);
    app.redis_exec(&command).await
}

fn keys(counters: &[Counter]) -> Vec<&str> {
    let keys = counters.iter().map(|counter| counter.key.as_str());
    keys.collect()
}

/// The same one by one, up to the first limit that rejects. The limits after it count nothing, so attempts that are
/// rejected by network cannot use up another person's account.
async fn count_in_postgres(
    app: &App,
    counters: &[Counter],
    now: OffsetDateTime,
) -> Result<Vec<i64>> {
    let now_ms = epoch_ms(now);
    let mut tats_ms = Vec::new();

    for counter in counters {
        if counter.rule.on_redis_outage == OnRedisOutage::FailOpen {
            tats_ms.push(now_ms);
            continue;
        }

        let Counter {
            emission_interval_ms,
            burst_tolerance_ms,
            ..
        } = *counter;
        let counted = app
            .db()?
            .optional(CountAttempt {
                key: &counter.key,
                now_ms,
                emission_interval_ms,
                burst_tolerance_ms,
            })
            .await?;

        let rejected_tat_ms = now_ms + burst_tolerance_ms + emission_interval_ms;
        tats_ms.push(counted.unwrap_or(rejected_tat_ms));
        if counted.is_none() {
            break;
        }
    }
    Ok(tats_ms)
}

async fn take_back_in_postgres(app: &App, counters: &[Counter]) -> Result<Vec<i64>> {
    let mut tats_ms = Vec::new();
    for counter in counters {
        let take_back = TakeBackAttempt {
            key: &counter.key,
            emission_interval_ms: counter.emission_interval_ms,
        };
        let taken_back = app.db()?.optional(take_back).await?;
        tats_ms.push(taken_back.unwrap_or_default());
    }
    Ok(tats_ms)
}

pooled_postgres::sql! {
    /// Counts an attempt and returns the theoretical arrival time, or returns no row for a rejected attempt.
    ///
    /// The condition reads the newest version of the row, so concurrent attempts are counted one after another.
    write CountAttempt {
        key: &str,
        now_ms: i64,
        emission_interval_ms: i64,
        burst_tolerance_ms: i64,
    } -> i64 = "
        insert into rate_limits as l (key, arrival_ms)
        values (:key, :now_ms::bigint + :emission_interval_ms::bigint)
        on conflict (key) do update
        set arrival_ms = greatest(l.arrival_ms, :now_ms) + :emission_interval_ms
        where greatest(l.arrival_ms, :now_ms) + :emission_interval_ms - :now_ms
          <= :burst_tolerance_ms
        returning arrival_ms as tat_ms";

    /// Takes an attempt back and returns the theoretical arrival time without it.
    write TakeBackAttempt { key: &str, emission_interval_ms: i64 } -> i64 = "
        update rate_limits set arrival_ms = arrival_ms - :emission_interval_ms
        where key = :key
        returning arrival_ms as tat_ms";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    const ALL: [Limit; 9] = [
        Limit::SignUp,
        Limit::SignUpByEmail,
        Limit::Guest,
        Limit::SignIn,
        Limit::SignInByEmailAndNetwork,
        Limit::SignInByEmail,
        Limit::Discussion,
        Limit::Billing,
        Limit::Read,
    ];

    #[track_caller]
    fn assert_check(used_secs: i64, remaining: u32, reset_in_secs: u64, is_rejected: bool) {
        let rule = Limit::SignInByEmailAndNetwork.rule();
        assert_eq!((rule.count, rule.window.as_secs()), (10, 600));

        let counter = Counter {
            rule,
            key: String::new(),
            emission_interval_ms: 60_000,
            burst_tolerance_ms: 600_000,
        };
        let check = counter.evaluate(epoch_ms(NOW) + used_secs * 1000, NOW);
        assert_eq!(check.status.remaining, remaining);
        assert_eq!(check.status.reset_in_secs, reset_in_secs);
        assert_eq!(check.is_rejected, is_rejected);
    }

    #[test]
    fn the_remaining_attempts_follow_from_the_theoretical_arrival_time() {
        assert_check(60, 9, 60, false);
        assert_check(599, 0, 599, false);
        assert_check(600, 0, 600, false);
        assert_check(660, 0, 60, true);
        assert_check(-5, 10, 1, false);
    }

    #[test]
    fn emission_intervals_are_whole_milliseconds_and_names_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|limit| limit.rule().name).collect();
        assert_eq!(names.len(), ALL.len());

        for limit in ALL {
            let rule = limit.rule();
            let window_ms = rule.window.as_millis();
            assert_eq!(window_ms % u128::from(rule.count), 0, "{limit:?}");
        }
    }

    #[test]
    fn an_address_is_counted_under_a_keyed_pseudonym() {
        let under_one_key = pseudonym("email", "ada@example.org", &[1; 32]);
        let under_another = pseudonym("email", "ada@example.org", &[2; 32]);
        assert_eq!(under_one_key.len(), 32);
        assert_ne!(under_one_key, under_another);
    }
}
