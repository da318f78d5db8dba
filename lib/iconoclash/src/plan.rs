//! The plans: what each may do and what it costs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{Models, Quotas};

/// What a user pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// A visitor without an account.
    Guest,
    /// An account that pays nothing.
    Free,
    /// A paying account.
    Pro,
}

impl Plan {
    /// All plans, cheapest first.
    pub const ALL: [Self; 3] = [Self::Guest, Self::Free, Self::Pro];

    /// The name in the database and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Free => "free",
            Self::Pro => "pro",
        }
    }

    /// The plan of a stored name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plan| plan.name() == name)
    }

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

    /// The longest reply, in tokens.
    pub fn max_output_tokens(self) -> u32 {
        match self {
            Self::Guest => 500,
            Self::Free => 800,
            Self::Pro => 2_000,
        }
    }

    /// The longest prompt, in bytes, of which no token is shorter than one. Far below where a long prompt costs more.
    pub const MAX_PROMPT_BYTES: usize = 64_000;

    /// What to say to somebody who has used up the plan; begins with a space, or says nothing.
    pub fn upgrade_hint(self) -> &'static str {
        match self {
            Self::Guest => " Sign up to have more of them.",
            Self::Free => " With Pro you can go on now.",
            Self::Pro => "",
        }
    }

    /// Price a month in micro-dollars.
    pub fn price_microusd(self) -> i64 {
        match self {
            Self::Guest | Self::Free => 0,
            Self::Pro => 12_000_000,
        }
    }
}
