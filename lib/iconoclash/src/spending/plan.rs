//! The plans: what each may do and what it costs.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{
    config::{Models, Quotas},
    spending::price,
};

pooled_postgres::text_enum! {
    /// What a user pays for, cheapest first.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Plan {
        /// A visitor without an account.
        Guest = "guest",
        /// An account that pays nothing.
        Free = "free",
        /// A paying account.
        Pro = "pro",
    }
}

impl Plan {
    /// Messages a UTC day.
    pub fn messages_per_day(self, quotas: &Quotas) -> u32 {
        match self {
            Self::Guest => quotas.guest,
            Self::Free => quotas.free,
            Self::Pro => quotas.pro,
        }
    }

    /// The model that answers.
    pub fn model(self, models: &Models) -> &str {
        match self {
            Self::Guest | Self::Free => &models.free,
            Self::Pro => &models.pro,
        }
    }

    /// The model that answers if the plan's own does not. It never costs more, so a reply's hold covers it.
    pub(crate) fn fallback(self, models: &Models, now: OffsetDateTime) -> Option<&str> {
        let longest = u32::try_from(Self::MAX_PROMPT_BYTES).expect("a prompt is short");
        let own = self.model(models);
        let other = models.small.as_str();

        let rates = price::max_rates(own, longest, now)?;
        let cheaper = price::max_rates(other, longest, now)?;
        let covered = cheaper.prompt <= rates.prompt && cheaper.output <= rates.output;
        (other != own && covered).then_some(other)
    }

    /// The longest reply, in tokens.
    pub fn max_output_tokens(self) -> u32 {
        match self {
            Self::Guest => 500,
            Self::Free => 800,
            Self::Pro => 2_000,
        }
    }

    /// The longest prompt, in bytes, of which no token is shorter than one. Far below where a long prompt costs more.
    pub(crate) const MAX_PROMPT_BYTES: usize = 64_000;

    /// Price a month in micro-dollars.
    pub(crate) fn price_microusd(self) -> i64 {
        match self {
            Self::Guest | Self::Free => 0,
            Self::Pro => 12_000_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_fallback_never_costs_more_than_what_is_held() {
        #[track_caller]
        fn check(free: &str, small: &str, expected: [Option<&str>; 3]) {
            let models = Models {
                pro: "claude-sonnet-5-5".into(),
                free: free.into(),
                small: small.into(),
            };
            let now = datetime!(2026-11-24 12:00 UTC);
            assert_eq!(
                Plan::ALL.map(|plan| plan.fallback(&models, now)),
                expected,
                "{free} {small}"
            );
        }
        let haiku = Some("claude-haiku-5-5");
        let older = Some("claude-haiku-4-5");
        check("claude-haiku-5-5", "claude-haiku-5-5", [None, None, haiku]);
        check("claude-haiku-5-5", "claude-haiku-4-5", [None, None, older]);
        check(
            "claude-haiku-4-5",
            "claude-haiku-5-5",
            [haiku, haiku, haiku],
        );
        check("claude-haiku-5-5", "claude-opus-5-5", [None, None, None]);
    }
}
