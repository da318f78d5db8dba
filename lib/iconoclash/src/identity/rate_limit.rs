//! Every limit but that on messages: how often somebody may sign in, sign up, and so on. GCRA: all of a budget may come
//! at once, and then it refills evenly over its window. A refusal writes nothing; only where Redis cannot be asked the
//! limits are counted one after another, and those before the one that refuses have counted.

use http::StatusCode;
use std::{sync::LazyLock, time::Duration};
use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Script};
use uuid::Uuid;

use pooled_postgres::sql_positional;

use crate::{
    app::App,
    clock::epoch_ms,
    http::{
        error::{Error, Limited, Result},
        network::{Network, pseudonym},
        rate_limit_status::{RateLimitStatus, in_words, retry_after_secs},
        request_log,
    },
};

static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("rate_limit/count.lua")));

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// New accounts from a network.
    SignUp,
    /// New accounts of one address, which a sign-up tells to be taken or not.
    SignUpAs,
    /// New guests from a network.
    Guest,
    /// Attempts to sign in from a network.
    SignIn,
    /// Attempts to sign in to one account.
    SignInTo,
    /// Forgotten passwords from a network.
    Reset,
    /// Forgotten passwords of one account.
    ResetOf,
    /// New discussions of a user.
    Discussion,
    /// Pages at Stripe that a user asks for: to pay, and to manage what is paid.
    Billing,
    /// Public pages read from a network.
    Read,
}

/// Whom a limit counts for.
#[derive(Clone, Debug)]
pub enum Of<'a> {
    /// A network.
    Network(Network),
    /// An e-mail address, whether or not there is an account.
    Email(&'a str),
    /// A user.
    User(Uuid),
}

/// What a limit does while Redis cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// It is counted in Postgres, as exactly.
    Postgres,
    /// It lets everybody through: what it protects is cheap and public.
    Open,
}

impl Limit {
    /// How much, in which time.
    fn budget(self) -> (u32, Duration) {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        match self {
            Self::SignUp => (10, HOUR),
            Self::SignUpAs => (5, HOUR),
            Self::Guest => (20, HOUR),
            Self::SignIn => (30, 10 * MINUTE),
            Self::SignInTo => (10, 10 * MINUTE),
            Self::Reset => (10, HOUR),
            Self::ResetOf => (3, HOUR),
            Self::Discussion => (60, HOUR),
            Self::Billing => (20, HOUR),
            Self::Read => (120, MINUTE),
        }
    }

    /// The name in keys and headers.
    fn name(self) -> &'static str {
        match self {
            Self::SignUp => "signup",
            Self::SignUpAs => "signup-address",
            Self::Guest => "guest",
            Self::SignIn => "signin",
            Self::SignInTo => "signin-account",
            Self::Reset => "reset",
            Self::ResetOf => "reset-account",
            Self::Discussion => "discussions",
            Self::Billing => "billing",
            Self::Read => "reads",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::SignUp => "Too many accounts were made from here.",
            Self::SignUpAs => "Too many attempts to sign up with this address.",
            Self::Guest => "Too many visits were begun from here.",
            Self::SignIn => "Too many attempts to sign in from here.",
            Self::SignInTo => "Too many attempts to sign in to this account.",
            Self::Reset => "Too many password resets were asked for from here.",
            Self::ResetOf => "Too many password resets were asked for this account.",
            Self::Discussion => "You have begun many discussions in a short time.",
            Self::Billing => "You have asked for many pages to pay on in a short time.",
            Self::Read => "Too many requests from here.",
        }
    }

    fn outage(self) -> Outage {
        match self {
            Self::Read => Outage::Open,
            _ => Outage::Postgres,
        }
    }
}

/// Counts one attempt under each limit, or refuses it in the name of the one that lasts longest.
pub async fn check(app: &App, limits: &[(Limit, Of<'_>)]) -> Result<()> {
    let now = app.now();
    let counters = limits
        .iter()
        .map(|(limit, of)| Counter::new(app, *limit, of))
        .collect::<Result<Vec<_>>>()?;
    let arrivals = match ask_redis(app, &counters, now).await {
        Ok(arrivals) => arrivals,
        Err(cause) => {
            request_log::add(|log| log.degraded = Some(cause.cause()));
            ask_postgres(app, &counters, now).await?
        }
    };
    let allowances = counters
        .iter()
        .zip(arrivals)
        .map(|(counter, arrival)| counter.allowance(arrival, now));
    let nearest = allowances.max_by_key(|(allowance, refused)| {
        (
            *refused,
            std::cmp::Reverse(allowance.remaining),
            allowance.reset_in_secs,
        )
    });
    let Some((allowance, refused)) = nearest else {
        return Ok(());
    };
    if refused {
        let over = counters
            .iter()
            .find(|counter| counter.limit.name() == allowance.name);
        let message = over.map_or("Too many requests.", |counter| counter.limit.message());
        return Err(refusal(&allowance, message));
    }
    // What a CDN keeps must not tell one visitor's limit to all.
    if limits.iter().all(|(limit, _)| *limit != Limit::Read) {
        request_log::add(|log| log.rate_limit = Some(allowance));
    }
    Ok(())
}

fn refusal(status: &RateLimitStatus, message: &str) -> Error {
    let wait = Duration::from_secs(status.reset_in_secs);
    let limited = Limited {
        status: StatusCode::TOO_MANY_REQUESTS,
        code: "rate_limited",
        detail: format!("{message} Try again in {}.", in_words(wait)),
        reset_at: status.reset_at,
        retry_after: wait,
        headers: status.headers(),
    };
    limited.into()
}

struct Counter {
    limit: Limit,
    key: String,
    every_ms: i64,
    most_ms: i64,
}

impl Counter {
    fn new(app: &App, limit: Limit, of: &Of<'_>) -> Result<Self> {
        let secret = app.config().credentials_key.clone()?;
        let whom = match of {
            Of::Network(network) => network.pseudonym(&secret.0),
            Of::Email(email) => pseudonym("email", &email.trim().to_lowercase(), &secret.0),
            Of::User(user) => user.to_string(),
        };
        let (count, window) = limit.budget();
        let most_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let key = format!("{{rl}}:l:{}:{whom}", limit.name());
        Ok(Self {
            limit,
            key,
            every_ms: most_ms / i64::from(count),
            most_ms,
        })
    }

    /// What is left, and whether this attempt is over it, by the moment at which the budget is whole again.
    fn allowance(&self, arrival_ms: i64, now: OffsetDateTime) -> (RateLimitStatus, bool) {
        let (count, window) = self.limit.budget();
        let used_ms = (arrival_ms - epoch_ms(now)).max(0);
        let refused = used_ms > self.most_ms;
        let left = if refused {
            0
        } else {
            (self.most_ms - used_ms) / self.every_ms
        };
        // Refused: until one more may come. Otherwise: until all may.
        let wait_ms = if refused {
            used_ms - self.most_ms
        } else {
            used_ms
        };
        let wait = Duration::from_millis(u64::try_from(wait_ms).unwrap_or_default());
        let allowance = RateLimitStatus {
            name: self.limit.name(),
            limit: count,
            window_secs: u32::try_from(window.as_secs()).unwrap_or(u32::MAX),
            remaining: u32::try_from(left).unwrap_or_default(),
            reset_at: now + wait,
            reset_in_secs: retry_after_secs(wait),
        };
        (allowance, refused)
    }
}

/// When each budget would be whole again with this attempt; all of them count it, or none.
async fn ask_redis(app: &App, counters: &[Counter], now: OffsetDateTime) -> Result<Vec<i64>> {
    let keys: Vec<&str> = counters
        .iter()
        .map(|counter| counter.key.as_str())
        .collect();
    let mut args: Vec<Arg> = vec![epoch_ms(now).into()];
    args.extend(
        counters
            .iter()
            .flat_map(|counter| [counter.every_ms.into(), counter.most_ms.into()]),
    );
    Ok(app.redis()?.exec(&COUNT.command(&keys, &args)).await?)
}

/// The same one by one, up to the one that refuses: those after it count nothing, so that who is refused by network
/// cannot use up somebody else's account.
async fn ask_postgres(app: &App, counters: &[Counter], now: OffsetDateTime) -> Result<Vec<i64>> {
    let mut arrivals = Vec::new();
    for counter in counters {
        if counter.limit.outage() == Outage::Open {
            arrivals.push(epoch_ms(now));
            continue;
        }
        let Counter {
            key,
            every_ms,
            most_ms,
            ..
        } = counter;
        let counted = app
            .db()?
            .old_optional(
                &COUNT_IN_POSTGRES,
                &[key, &epoch_ms(now), every_ms, most_ms],
            )
            .await?;
        arrivals.push(counted.unwrap_or(epoch_ms(now) + most_ms + every_ms));
        if counted.is_none() {
            break;
        }
    }
    Ok(arrivals)
}

sql_positional! {
    /// Counts an attempt that has room, and gives no row for one that has none. The condition is on the newest version
    /// of the row, so that attempts which come together are told apart.
    write COUNT_IN_POSTGRES(TEXT, INT8, INT8, INT8) -> i64 = "
        insert into rate_limits as l (key, arrival_ms) values ($1, $2::bigint + $3::bigint)
        on conflict (key) do update set arrival_ms = greatest(l.arrival_ms, $2) + $3
        where greatest(l.arrival_ms, $2) + $3 - $2 <= $4
        returning arrival_ms";
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    #[track_caller]
    fn check(used_secs: i64, remaining: u32, reset_in_secs: u64, refused: bool) {
        let (count, window) = Limit::SignInTo.budget();
        assert_eq!((count, window.as_secs()), (10, 600));
        let counter = Counter {
            limit: Limit::SignInTo,
            key: String::new(),
            every_ms: 60_000,
            most_ms: 600_000,
        };
        let (allowance, over) = counter.allowance(epoch_ms(NOW) + used_secs * 1000, NOW);
        assert_eq!(
            (allowance.remaining, allowance.reset_in_secs, over),
            (remaining, reset_in_secs, refused)
        );
    }

    #[test]
    fn what_is_left_follows_from_the_moment_at_which_the_budget_is_whole() {
        check(60, 9, 60, false);
        check(599, 0, 599, false);
        check(600, 0, 600, false);
        check(660, 0, 60, true);
        check(-5, 10, 1, false);
    }

    #[test]
    fn budgets_are_whole_milliseconds_and_names_are_their_own() {
        let all = [
            Limit::SignUp,
            Limit::SignUpAs,
            Limit::Guest,
            Limit::SignIn,
            Limit::SignInTo,
            Limit::Reset,
            Limit::ResetOf,
            Limit::Discussion,
            Limit::Billing,
            Limit::Read,
        ];
        let names: std::collections::BTreeSet<_> = all.iter().map(|limit| limit.name()).collect();
        assert_eq!(names.len(), all.len());
        for limit in all {
            let (count, window) = limit.budget();
            assert_eq!(window.as_millis() % u128::from(count), 0, "{limit:?}");
        }
    }

    #[test]
    fn an_address_is_counted_under_a_name_that_does_not_tell_it() {
        assert_eq!(pseudonym("email", "ada@example.org", &[1; 32]).len(), 32);
        assert_ne!(
            pseudonym("email", "ada@example.org", &[1; 32]),
            pseudonym("email", "ada@example.org", &[2; 32])
        );
    }
}
