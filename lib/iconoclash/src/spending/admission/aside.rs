//! Money for calls that nobody asked for, such as a title: held and settled against the same budgets as a message, but
//! counted as none. Where there is no room, or Redis cannot say, the call is not made.

use std::sync::LazyLock;
use time::OffsetDateTime;
use upstash_redis_rs::{Arg, Script};
use uuid::Uuid;

use super::{
    Gate, Subject,
    stored::{self, OPEN_HOLDS, OpenHold},
};
use crate::{
    app::App,
    clock::{epoch_ms, utc_day},
    http::error::Result,
    spending::price,
};

static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("aside.lua")));

/// A hold for a call that nobody asked for.
#[derive(Debug)]
pub struct Aside {
    open: OpenHold,
}

impl Aside {
    /// Holds the most that a call can cost; none where there is no room for it.
    pub async fn hold(
        app: &App,
        subject: &Subject,
        gate: &Gate,
        (request, now): (Uuid, OffsetDateTime),
        amount: i64,
    ) -> Result<Option<Self>> {
        let day = utc_day(now);
        let open = OpenHold {
            day,
            subject: subject.as_str().to_owned(),
            request,
            amount,
            is_message: false,
        };
        let mut keys = vec![
            stored::subject_key(&open.subject, day),
            OPEN_HOLDS.to_owned(),
            stored::day_key(day),
        ];
        keys.push(stored::month_key(day));
        keys.extend(stored::earlier_days(day));
        let args: [Arg; 6] = [
            amount.into(),
            open.to_string().into(),
            epoch_ms(now).into(),
            gate.spent.into(),
            gate.day.into(),
            gate.month.into(),
        ];
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let held = app
            .redis()?
            .exec::<i64>(&HOLD.command(&keys, &args).idempotent())
            .await?;
        Ok((held == 1).then_some(Self { open }))
    }

    /// Puts the cost in the hold's place. What is not settled here, reconciling settles.
    pub async fn settle(&self, app: &App, cost_microusd: i64) -> Result<()> {
        app.redis()?
            .exec::<i64>(&self.open.settle(cost_microusd, false))
            .await?;
        Ok(())
    }
}

/// The most that a call can cost whose prompt has at most so many tokens.
pub fn most(model: &str, prompt_tokens: usize, max_tokens: u32, now: OffsetDateTime) -> i64 {
    let tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
    let rates =
        price::dearest(model, tokens, now).expect("configuration takes only models with a price");
    let most = u128::from(rates.prompt) * u128::from(tokens)
        + u128::from(rates.output) * u128::from(max_tokens);
    i64::try_from(most.div_ceil(1_000_000)).unwrap_or(i64::MAX)
}
