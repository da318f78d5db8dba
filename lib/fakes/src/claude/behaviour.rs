//! What the stand-in does with a request, and the names by which a person asks for it.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use claude::Usage;
use http::StatusCode;

/// One way to treat a request; counts are text deltas sent before the fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// A whole reply.
    #[default]
    Answer,
    /// An error instead of a reply.
    Status(Failure),
    /// The connection closes without an answer.
    Drop,
    /// No answer ever comes.
    Hang,
    /// The stream falls silent and stays open.
    Stall {
        /// Deltas before.
        after: usize,
    },
    /// The connection closes in the middle of the stream.
    Cut {
        /// Deltas before.
        after: usize,
    },
    /// An event holds broken JSON.
    Malformed {
        /// Deltas before.
        after: usize,
    },
    /// The stream ends with `event: error`.
    Error {
        /// Deltas before.
        after: usize,
    },
    /// The stream waits for [`super::StandIn::release`] and then goes on.
    Hold {
        /// Deltas before.
        after: usize,
    },
    /// A whole reply among events, blocks, deltas and fields that nobody has heard of.
    Strange,
    /// A reply of thinking blocks without any text.
    OnlyThinking,
    /// A reply that ends in a refusal.
    Refusal,
    /// A reply that ends at its token limit.
    MaxTokens,
}

/// The documented errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 400.
    Invalid,
    /// 400: a spend limit that the organisation set itself; it has no error code.
    OwnSpendLimit,
    /// 401.
    Auth,
    /// 402.
    Billing,
    /// 403.
    Permission,
    /// 404.
    NotFound,
    /// 413.
    TooLarge,
    /// 429.
    RateLimited {
        /// The `retry-after` header.
        retry_after_secs: u64,
    },
    /// 429: the monthly limit of the organisation's tier.
    TierSpendLimit,
    /// 429: the limit of its contract.
    ContractSpendLimit,
    /// 500.
    Internal,
    /// 504.
    Timeout,
    /// 529.
    Overloaded,
}

impl Failure {
    /// Status, `error.type`, `error.details.error_code` and message.
    pub(super) fn parts(self) -> (StatusCode, &'static str, Option<&'static str>, &'static str) {
        let (status, kind, code, message) = match self {
            Self::Invalid => (
                400,
                "invalid_request_error",
                None,
                "The request is invalid.",
            ),
            Self::OwnSpendLimit => (
                400,
                "invalid_request_error",
                None,
                "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
            ),
            Self::Auth => (401, "authentication_error", None, "invalid x-api-key"),
            Self::Billing => (
                402,
                "billing_error",
                None,
                "Your credit balance is too low.",
            ),
            Self::Permission => (
                403,
                "permission_error",
                None,
                "The key may not use this model.",
            ),
            Self::NotFound => (404, "not_found_error", None, "Not found"),
            Self::TooLarge => (
                413,
                "request_too_large",
                None,
                "Request exceeds the maximum size",
            ),
            Self::RateLimited { .. } => (
                429,
                "rate_limit_error",
                None,
                "This request would exceed your rate limit.",
            ),
            Self::TierSpendLimit => (
                429,
                "rate_limit_error",
                Some("enforced_spend_limit_reached"),
                "Your organization has reached its monthly API usage threshold.",
            ),
            Self::ContractSpendLimit => (
                429,
                "rate_limit_error",
                Some("contract_spend_limit_reached"),
                "Your organization has reached the spend limit of its contract.",
            ),
            Self::Internal => (500, "api_error", None, "Internal server error"),
            Self::Timeout => (504, "timeout_error", None, "Request timed out"),
            Self::Overloaded => (529, "overloaded_error", None, "Overloaded"),
        };
        (
            StatusCode::from_u16(status).expect("three digits"),
            kind,
            code,
            message,
        )
    }
}

/// Every name that [`Behaviour::from_str`] knows; `:n` may be left out.
pub const NAMES: &str = "answer drop hang stall:n cut:n malformed:n error:n hold:n strange thinking refusal \
     max_tokens invalid own_spend_limit auth billing permission not_found too_large rate_limited:n spend_limit \
     contract_spend_limit internal timeout overloaded";

/// The error of a name that is not in [`NAMES`].
#[derive(Debug)]
pub struct UnknownBehaviour(String);

impl fmt::Display for UnknownBehaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown fault {:?}; there are: {NAMES}", self.0)
    }
}

impl std::error::Error for UnknownBehaviour {}

impl FromStr for Behaviour {
    type Err = UnknownBehaviour;

    fn from_str(text: &str) -> Result<Self, UnknownBehaviour> {
        let unknown = || UnknownBehaviour(text.to_owned());
        let (name, count) = match text.trim().split_once(':') {
            Some((name, count)) => (name, Some(count.parse::<u32>().map_err(|_| unknown())?)),
            None => (text.trim(), None),
        };
        let after = count.unwrap_or(2) as usize;
        Ok(match name {
            "answer" => Self::Answer,
            "drop" => Self::Drop,
            "hang" => Self::Hang,
            "stall" => Self::Stall { after },
            "cut" => Self::Cut { after },
            "malformed" => Self::Malformed { after },
            "error" => Self::Error { after },
            "hold" => Self::Hold { after },
            "strange" => Self::Strange,
            "thinking" => Self::OnlyThinking,
            "refusal" => Self::Refusal,
            "max_tokens" => Self::MaxTokens,
            _ => Self::Status(match name {
                "invalid" => Failure::Invalid,
                "own_spend_limit" => Failure::OwnSpendLimit,
                "auth" => Failure::Auth,
                "billing" => Failure::Billing,
                "permission" => Failure::Permission,
                "not_found" => Failure::NotFound,
                "too_large" => Failure::TooLarge,
                "rate_limited" => Failure::RateLimited {
                    retry_after_secs: count.unwrap_or(7).into(),
                },
                "spend_limit" => Failure::TierSpendLimit,
                "contract_spend_limit" => Failure::ContractSpendLimit,
                "internal" => Failure::Internal,
                "timeout" => Failure::Timeout,
                "overloaded" => Failure::Overloaded,
                _ => return Err(unknown()),
            }),
        })
    }
}

/// A behaviour with, where a test needs them, the words and the usage of the reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    pub(super) behaviour: Behaviour,
    pub(super) text: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) headers: Vec<(String, String)>,
}

impl From<Behaviour> for Script {
    fn from(behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            ..Self::default()
        }
    }
}

impl From<Failure> for Script {
    fn from(failure: Failure) -> Self {
        Behaviour::Status(failure).into()
    }
}

impl Script {
    /// A whole reply of these words.
    pub fn say(text: impl Into<String>) -> Self {
        Self::default().saying(text)
    }

    /// The same behaviour with these words.
    pub fn saying(self, text: impl Into<String>) -> Self {
        Self {
            text: Some(text.into()),
            ..self
        }
    }

    /// The same behaviour with this header on an error, such as `retry-after` or `x-should-retry`.
    pub fn heading(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same behaviour with this usage, of which `output` is reported at the end.
    pub fn costing(self, usage: Usage) -> Self {
        Self {
            usage: Some(usage),
            ..self
        }
    }
}

/// Which requests a script is for; the default is all.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Those of this key.
    pub key: Option<String>,
    /// Those for this model.
    pub model: Option<String>,
    /// Those of this organisation's keys.
    pub organisation: Option<String>,
}

impl Only {
    /// The requests of one key.
    pub fn key(key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..Self::default()
        }
    }

    /// The requests for one model.
    pub fn model(model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            ..Self::default()
        }
    }

    /// The requests of one organisation.
    pub fn organisation(organisation: impl Into<String>) -> Self {
        Self {
            organisation: Some(organisation.into()),
            ..Self::default()
        }
    }

    fn fits(&self, key: &str, model: &str, organisation: &str) -> bool {
        let fits = |only: &Option<String>, is: &str| only.as_deref().is_none_or(|only| only == is);
        fits(&self.key, key) && fits(&self.model, model) && fits(&self.organisation, organisation)
    }
}

/// Scripts that wait for their request.
#[derive(Default)]
pub(super) struct Scripts {
    next: VecDeque<(Only, Script)>,
    always: Vec<(Only, Script)>,
}

impl Scripts {
    pub(super) fn next(&mut self, only: Only, script: Script) {
        self.next.push_back((only, script));
    }

    pub(super) fn always(&mut self, only: Only, script: Script) {
        self.always.push((only, script));
    }

    /// One that is used up comes before one that stays, the latest of which wins.
    pub(super) fn take(&mut self, key: &str, model: &str, organisation: &str) -> Script {
        if let Some(at) = self
            .next
            .iter()
            .position(|(only, _)| only.fits(key, model, organisation))
        {
            return self
                .next
                .remove(at)
                .map(|(_, script)| script)
                .unwrap_or_default();
        }
        let fitting = self
            .always
            .iter()
            .rev()
            .find(|(only, _)| only.fits(key, model, organisation));
        fitting
            .map(|(_, script)| script.clone())
            .unwrap_or_default()
    }
}

/// Takes `[[fault:…]]` out of a text.
pub(super) fn marker(text: &str) -> Option<Result<Behaviour, UnknownBehaviour>> {
    let (_, rest) = text.split_once("[[fault:")?;
    let (name, _) = rest.split_once("]]")?;
    Some(name.parse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for name in NAMES.split_whitespace() {
            let with_count = name.replace(":n", ":3");
            let without = name.replace(":n", "");
            assert!(with_count.parse::<Behaviour>().is_ok(), "{with_count}");
            assert!(without.parse::<Behaviour>().is_ok(), "{without}");
        }
        assert_eq!(
            "stall:3".parse::<Behaviour>().unwrap(),
            Behaviour::Stall { after: 3 }
        );
        for name in ["", "stal", "stall:", "stall:-1", "stall:many"] {
            assert!(name.parse::<Behaviour>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_marker_is_found_in_a_text() {
        assert_eq!(
            marker("Is [[fault:cut:1]] art?").unwrap().unwrap(),
            Behaviour::Cut { after: 1 }
        );
        assert!(marker("Is [[fault:nonsense]] art?").unwrap().is_err());
        assert!(marker("[[fault:cut").is_none() && marker("cut").is_none());
    }

    #[test]
    fn scripts_are_used_in_order_by_the_requests_they_are_for() {
        let mut scripts = Scripts::default();
        scripts.always(Only::default(), Script::say("always"));
        scripts.always(Only::model("m2"), Script::say("m2"));
        scripts.next(Only::key("k1"), Script::say("k1 first"));
        scripts.next(Only::default(), Script::say("once"));
        scripts.always(Only::organisation("o2"), Script::say("o2"));
        let mut said = |key, model| scripts.take(key, model, "o1").text.unwrap();
        assert_eq!(said("k2", "m1"), "once");
        assert_eq!(said("k2", "m1"), "always");
        assert_eq!(said("k1", "m2"), "k1 first");
        assert_eq!(said("k1", "m2"), "m2");
        assert_eq!(scripts.take("k1", "m2", "o2").text.unwrap(), "o2");
    }
}
