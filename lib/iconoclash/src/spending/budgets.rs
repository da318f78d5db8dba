//! Spending limits of each plan's users and of the whole service.
//!
//! Postgres has them; admission reads a copy in Redis that lives for a minute.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use upstash_redis_rs::Command;

use pooled_postgres::sql;

use crate::{
    app::App,
    http::{
        error::{Cause, Error, Limited, Result},
        rate_limit_status::in_words,
    },
    spending::plan::Plan,
};

/// The Redis key of the copy.
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
    /// Reads `{scope: micro-dollars}`, as Postgres aggregates the table.
    pub(crate) fn from_json(scopes: Value) -> Result<Self> {
        serde_json::from_value(scopes)
            .map_err(|error| Error::internal(format!("the table budgets: {error}")))
    }

    /// The limit of one user of a plan.
    pub(crate) fn of_plan(&self, plan: Plan) -> i64 {
        match plan {
            Plan::Guest => self.guest,
            Plan::Free => self.free,
            Plan::Pro => self.pro,
        }
    }

    /// The words that the admission script reads.
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

/// When a new limit takes effect.
#[derive(Debug)]
pub enum Propagation {
    /// With the next message.
    Immediate,
    /// When the copy in Redis expires, within a minute. The cause is why it could not be dropped.
    OnCacheExpiry(Cause),
}

/// Reads all limits from Postgres.
pub async fn read(app: &App) -> Result<Budgets> {
    Budgets::from_json(app.db()?.one(AllBudgets).await?)
}

/// Sets one limit.
pub async fn set(app: &App, scope: &str, limit_microusd: i64) -> Result<Propagation> {
    let statement = SetBudget {
        scope,
        limit_microusd,
        now: app.now(),
    };
    if app.db()?.execute(statement).await? == 0 {
        let message = format!("must be one of {}", SCOPES.join(", "));
        return Err(Error::invalid("scope", message));
    }

    let forget = Command::new("DEL").arg(REDIS_KEY).idempotent();
    Ok(match app.redis_exec::<i64>(&forget).await {
        Ok(_) => Propagation::Immediate,
        Err(error) => Propagation::OnCacheExpiry(error.into()),
    })
}

/// 503: everybody's budget is used up. The amount stays secret.
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

sql! {
    read AllBudgets -> Value = "select jsonb_object_agg(scope, limit_microusd) from budgets";

    write SetBudget { scope: &str, limit_microusd: i64, now: OffsetDateTime } -> () = "
        update budgets set limit_microusd = :limit_microusd, updated_at = :now where scope = :scope";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_scope_is_named() {
        let scopes = serde_json::json!({"guest": 1, "free": 2, "pro": 3, "day": 4});
        let Err(Error::Internal(cause)) = Budgets::from_json(scopes) else {
            panic!("a table without a scope was accepted")
        };
        assert!(cause.to_string().contains("month"), "{cause}");
    }
}
