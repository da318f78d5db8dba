//! Proxies for tests: they count round trips, add a delay to each, and fail on demand.

#![expect(
    clippy::disallowed_methods,
    reason = "local servers outlive the request that meets them"
)]

mod http;
mod postgres;
mod tcp;

pub use http::{Http, Mode};
pub use tcp::{RoundTrips, Tcp};
