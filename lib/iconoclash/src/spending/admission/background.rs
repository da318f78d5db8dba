//! Holds for calls that no user asked for, such as a title.
//!
//! They count against the same budgets as a message, but not as a message. Without room, or without Redis, the call is
//! not made.

use std::sync::LazyLock;

use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Script};
use uuid::Uuid;

use super::Permit;
use crate::{
    app::App,
    clock::{epoch_ms, utc_day},
    http::error::Result,
    spending::{
        open_hold::OpenHold,
        price,
        redis_keys::{self, OPEN_HOLDS},
        subject::Subject,
    },
};

static RESERVE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../lua/reserve_background.lua")));

/// The hold of a background call.
#[derive(Debug)]
pub(crate) struct BackgroundHold {
    open: OpenHold,
}

impl BackgroundHold {
    /// Reserves `max_cost` under the limits of the message's permit; `None` without room.
    pub(crate) async fn reserve(
        app: &App,
        subject: &Subject,
        permit: &Permit,
        request: Uuid,
        now: OffsetDateTime,
        max_cost: i64,
    ) -> Result<Option<Self>> {
        let day = utc_day(now);
        let open = OpenHold {
            day,
            subject: subject.as_str().to_owned(),
            request,
            amount: max_cost,
            is_message: false,
        };

        let mut keys = vec![
            redis_keys::subject_day(&open.subject, day),
            OPEN_HOLDS.to_owned(),
            redis_keys::day(day),
            redis_keys::month(day),
        ];
        keys.extend(redis_keys::earlier_days(day));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();

        let limits = &permit.limits;
        let args: [Arg; 6] = [
            max_cost.into(),
            open.to_string().into(),
            epoch_ms(now).into(),
            limits.subject_microusd.unwrap_or(i64::MAX).into(),
            limits.day_microusd.unwrap_or(i64::MAX).into(),
            limits.month_microusd.unwrap_or(i64::MAX).into(),
        ];

        let command = RESERVE.command(&keys, &args).idempotent();
        let reserved = app.redis()?.exec::<i64>(&command).await?;
        Ok((reserved == 1).then_some(Self { open }))
    }

    /// Replaces the hold by the cost. If this fails, reconciliation settles the hold.
    pub(crate) async fn settle(&self, app: &App, cost_microusd: i64) -> Result<()> {
        let command = self.open.settle(cost_microusd);
        app.redis()?.exec::<i64>(&command).await?;
        Ok(())
    }
}

/// The most that a call can cost, in micro-dollars. No token is shorter than a byte.
pub(crate) fn max_cost(
    model: &str,
    prompt_bytes: usize,
    max_tokens: u32,
    now: OffsetDateTime,
) -> i64 {
    let tokens = u32::try_from(prompt_bytes).unwrap_or(u32::MAX);
    let rates = price::max_rates(model, tokens, now)
        .expect("configuration accepts only models with a price");

    let prompt = u128::from(rates.prompt) * u128::from(tokens);
    let output = u128::from(rates.output) * u128::from(max_tokens);
    i64::try_from((prompt + output).div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
