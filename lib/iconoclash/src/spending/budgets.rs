//! Spending limits: what a user of each plan, and the whole service, may cost. Kept in Postgres, and for a minute in
//! Redis, where admission reads them.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use upstash_redis_rs::Command;

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    clock::{month_start, utc_day},
    http::{
        error::{Cause, Error, Limited, Result},
        rate_limit_status::in_words,
    },
    spending::plan::Plan,
};

/// The key under which admission finds the limits; it is kept for a minute.
pub(crate) const REDIS_KEY: &str = "{rl}:caps";

/// Micro-dollars that may be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Budgets {
    /// By one network a UTC day.
    pub guest: i64,
    /// By one free user a UTC day.
    pub free: i64,
    /// By one paying user a UTC day.
    pub pro: i64,
    /// By everybody together a UTC day.
    pub day: i64,
    /// By everybody together a UTC month.
    pub month: i64,
}

impl Budgets {
    /// From `{scope: micro-dollars}`, as Postgres aggregates the table.
    pub fn from_json(scopes: Value) -> Result<Self> {
        serde_json::from_value(scopes)
            .map_err(|error| Error::Internal(format!("the table budgets: {error}").into()))
    }

    /// What one user of a plan may cost a day.
    pub fn of(&self, plan: Plan) -> i64 {
        match plan {
            Plan::Guest => self.guest,
            Plan::Free => self.free,
            Plan::Pro => self.pro,
        }
    }

    /// As the admission script reads them.
    pub(crate) fn as_words(&self) -> String {
        let Self {
            guest,
            free,
            pro,
            day,
            month,
        } = self;
        format!("{guest} {free} {pro} {day} {month}")
    }
}

/// The scopes of the table, in the order in which people read them.
pub const SCOPES: [&str; 5] = ["guest", "free", "pro", "day", "month"];

/// All limits, from Postgres.
pub async fn read(app: &App) -> Result<Budgets> {
    Budgets::from_json(app.db()?.old_one(&ALL, &[]).await?)
}

/// Sets one limit. Every instance follows with its next message, or within a minute if Redis cannot be told.
pub async fn set(app: &App, scope: &str, limit_microusd: i64) -> Result<Followed> {
    match app
        .db()?
        .old_execute(&SET, &[&scope, &limit_microusd, &app.now()])
        .await?
    {
        0 => Err(Error::invalid(
            "scope",
            format!("must be one of {}", SCOPES.join(", ")),
        )),
        _ => {
            let forget = Command::new("DEL").arg(REDIS_KEY).idempotent();
            let told = async { Ok::<_, Error>(app.redis()?.exec::<i64>(&forget).await?) };
            match told.await {
                Ok(_) => Ok(Followed::AtOnce),
                Err(Error::Unavailable { cause, .. } | Error::Internal(cause)) => {
                    Ok(Followed::WithinAMinute(cause))
                }
                Err(other) => Err(other),
            }
        }
    }
}

/// What everybody has spent, held or settled, by the ledger.
pub async fn spending(app: &App) -> Result<Spending> {
    let today = utc_day(app.now());
    Ok(app
        .db()?
        .old_one(&SPENDING, &[&today, &month_start(today)])
        .await?)
}

row! {
    /// Micro-dollars spent by everybody.
    #[derive(Clone, Copy, Debug)]
    pub struct Spending {
        /// This UTC day.
        today: i64,
        /// This UTC month.
        month: i64,
    }
}

/// When a new limit holds.
#[derive(Debug)]
pub enum Followed {
    /// With the next message.
    AtOnce,
    /// When Redis forgets the old one by itself.
    WithinAMinute(Cause),
}

/// 503: everybody's budget is used up. By how much is not told.
pub(crate) fn exhausted(reset_at: OffsetDateTime, now: OffsetDateTime) -> Error {
    let wait = (reset_at - now).unsigned_abs();
    let limited = Limited {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "budget_spent",
        detail: format!(
            "Iconoclash has reached its spending limit. Try again in {}.",
            in_words(wait)
        ),
        reset_at,
        retry_after: wait,
        headers: HeaderMap::new(),
    };
    limited.into()
}

sql_positional! {
    read ALL() -> Value = "select jsonb_object_agg(scope, limit_microusd) from budgets";

    /// A day, and the month that begins with another.
    read SPENDING(DATE, DATE) -> Spending = "
        select coalesce((select spent_microusd from budget_days where day = $1), 0) as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between $2 and $1) as month";

    write SET(TEXT, INT8, TIMESTAMPTZ) -> () = "
        update budgets set limit_microusd = $2, updated_at = $3 where scope = $1";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_lacks_a_scope_says_so() {
        let scopes = serde_json::json!({"guest": 1, "free": 2, "pro": 3, "day": 4});
        let Err(Error::Internal(cause)) = Budgets::from_json(scopes) else {
            panic!("it was taken")
        };
        assert!(cause.to_string().contains("month"), "{cause}");
    }
}
