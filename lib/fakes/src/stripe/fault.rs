//! Faults of requests.

use std::collections::VecDeque;
use std::str::FromStr;

/// One way to treat a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status with an error of Stripe's shape; a 5xx is stored under the idempotency key.
    Status(u16),
    /// The error about a customer that does not exist, or no longer does.
    NoSuchCustomer,
    /// The connection closes without an answer.
    Drop,
    /// No answer ever comes.
    Hang,
    /// The answer is made now and sent after [`super::FakeStripe::release`], when it may be stale.
    Hold,
    /// The answer is made now and sent after a random pause of at most so many milliseconds, so
    /// that answers overtake each other.
    Slow(u64),
    /// Half of an answer, sent as if it were the whole.
    Malformed,
}

/// Every name that [`Fault::from_str`] accepts.
pub(super) const NAMES: &str = "status:n no_such_customer drop hang hold slow:n malformed";

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let fault = match name.split_once(':') {
            None => match name {
                "no_such_customer" => Some(Self::NoSuchCustomer),
                "drop" => Some(Self::Drop),
                "hang" => Some(Self::Hang),
                "hold" => Some(Self::Hold),
                "malformed" => Some(Self::Malformed),
                _ => None,
            },
            Some(("status", status)) => status
                .parse()
                .ok()
                .filter(|status| (400..600).contains(status))
                .map(Self::Status),
            Some(("slow", ms)) => ms.parse().ok().map(Self::Slow),
            Some(_) => None,
        };

        fault.ok_or_else(|| format!("unknown fault {name:?}; there are: {NAMES}"))
    }
}

/// The faults of future requests.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) next: VecDeque<Fault>,
    pub(super) always: Option<Fault>,
}

impl Faults {
    /// The fault of a request: the first queued one, else the permanent one.
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
            let name = name.replace(":n", ":503");
            assert!(name.parse::<Fault>().is_ok(), "{name}");
        }

        for name in ["", "status", "status:", "status:200", "status:600", "late"] {
            assert!(name.parse::<Fault>().is_err(), "{name}");
        }
    }
}
