//! The ways to treat a request, and the names by which a developer asks for them.

use std::fmt;
use std::str::FromStr;

/// One way to treat a request. Counts are text deltas sent before the fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// A whole reply.
    #[default]
    Answer,
    /// An error instead of a reply.
    Status(Failure),
    /// The connection closes without an answer.
    Drop,
    /// The server says that it does not process the request. On HTTP/1.1 the connection closes.
    Refuse,
    /// No answer ever comes.
    Hang,
    /// The connection closes after the head of the answer, before any event.
    CutHead,
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
    /// The stream waits for [`super::FakeClaude::release`] and then goes on.
    Hold {
        /// Deltas before.
        after: usize,
    },
    /// A whole reply among unknown events, blocks, deltas and fields.
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
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Invalid | Self::OwnSpendLimit => 400,
            Self::Auth => 401,
            Self::Billing => 402,
            Self::Permission => 403,
            Self::NotFound => 404,
            Self::TooLarge => 413,
            Self::RateLimited { .. } | Self::TierSpendLimit | Self::ContractSpendLimit => 429,
            Self::Internal => 500,
            Self::Timeout => 504,
            Self::Overloaded => 529,
        }
    }

    /// `error.type`.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Invalid | Self::OwnSpendLimit => "invalid_request_error",
            Self::Auth => "authentication_error",
            Self::Billing => "billing_error",
            Self::Permission => "permission_error",
            Self::NotFound => "not_found_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimited { .. } | Self::TierSpendLimit | Self::ContractSpendLimit => {
                "rate_limit_error"
            }
            Self::Internal => "api_error",
            Self::Timeout => "timeout_error",
            Self::Overloaded => "overloaded_error",
        }
    }

    /// `error.details.error_code`.
    pub(super) fn code(self) -> Option<&'static str> {
        match self {
            Self::TierSpendLimit => Some("enforced_spend_limit_reached"),
            Self::ContractSpendLimit => Some("contract_spend_limit_reached"),
            _ => None,
        }
    }

    /// `error.message`.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Invalid => "The request is invalid.",
            Self::OwnSpendLimit => {
                "You have reached your specified API usage limits. \
                 You will regain access on 2026-12-01 at 00:00 UTC."
            }
            Self::Auth => "invalid x-api-key",
            Self::Billing => "Your credit balance is too low.",
            Self::Permission => "The key may not use this model.",
            Self::NotFound => "Not found",
            Self::TooLarge => "Request exceeds the maximum size",
            Self::RateLimited { .. } => "This request would exceed your rate limit.",
            Self::TierSpendLimit => {
                "Your organization has reached its monthly API usage threshold."
            }
            Self::ContractSpendLimit => {
                "Your organization has reached the spend limit of its contract."
            }
            Self::Internal => "Internal server error",
            Self::Timeout => "Request timed out",
            Self::Overloaded => "Overloaded",
        }
    }
}

/// Every name that [`Behaviour::from_str`] accepts; `:n` is optional.
pub const NAMES: &str = "answer drop refuse hang cut_head stall:n cut:n malformed:n error:n hold:n strange \
     thinking refusal max_tokens invalid own_spend_limit auth billing permission not_found \
     too_large rate_limited:n spend_limit contract_spend_limit internal timeout overloaded";

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
            "refuse" => Self::Refuse,
            "hang" => Self::Hang,
            "cut_head" => Self::CutHead,
            "stall" => Self::Stall { after },
            "cut" => Self::Cut { after },
            "malformed" => Self::Malformed { after },
            "error" => Self::Error { after },
            "hold" => Self::Hold { after },
            "strange" => Self::Strange,
            "thinking" => Self::OnlyThinking,
            "refusal" => Self::Refusal,
            "max_tokens" => Self::MaxTokens,
            _ => Self::Status(failure(name, count).ok_or_else(unknown)?),
        })
    }
}

fn failure(name: &str, count: Option<u32>) -> Option<Failure> {
    Some(match name {
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
        _ => return None,
    })
}

/// The behaviour that a `[[fault:…]]` in a text asks for.
pub(super) fn find_marker(text: &str) -> Option<Result<Behaviour, UnknownBehaviour>> {
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
            find_marker("Is [[fault:cut:1]] art?").unwrap().unwrap(),
            Behaviour::Cut { after: 1 }
        );
        assert!(find_marker("Is [[fault:nonsense]] art?").unwrap().is_err());
        assert!(find_marker("[[fault:cut").is_none());
        assert!(find_marker("cut").is_none());
    }
}
