//! How a request is treated that is not to be answered as usual.

use std::collections::VecDeque;
use std::str::FromStr;

/// One way to treat a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, and an error of Stripe's shape; kept under the request's idempotency key if it is a 5xx.
    Status(u16),
    /// The connection closes without an answer.
    Drop,
    /// No answer ever comes.
    Hang,
    /// The answer is made now and sent after [`super::StandIn::release`]: by then it may be out of date.
    Hold,
    /// The answer is made now and sent up to so many milliseconds later, as chance has it: answers overtake each other.
    Slow(u64),
    /// Half of an answer, as if it were a whole one.
    Malformed,
}

/// Every name that [`Fault::from_str`] knows.
pub(super) const NAMES: &str = "status:n drop hang hold slow:n malformed";

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "drop" => Ok(Self::Drop),
            "hang" => Ok(Self::Hang),
            "hold" => Ok(Self::Hold),
            "malformed" => Ok(Self::Malformed),
            _ => name
                .strip_prefix("status:")
                .and_then(|status| status.parse().ok())
                .filter(|status| (400..600).contains(status))
                .map(Self::Status)
                .or_else(|| Some(Self::Slow(name.strip_prefix("slow:")?.parse().ok()?)))
                .ok_or_else(|| format!("unknown fault {name:?}; there are: {NAMES}")),
        }
    }
}

/// Faults that wait for their request; one that is used up comes before the one that stays.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) next: VecDeque<Fault>,
    pub(super) always: Option<Fault>,
}

impl Faults {
    pub(super) fn take(&mut self) -> Option<Fault> {
        self.next.pop_front().or(self.always)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        for name in NAMES.split_whitespace() {
            assert!(
                name.replace(":n", ":503").parse::<Fault>().is_ok(),
                "{name}"
            );
        }
        for name in ["", "status", "status:", "status:200", "status:600", "late"] {
            assert!(name.parse::<Fault>().is_err(), "{name}");
        }
    }
}
