//! Fake vendors that keep the vendor's wire format, with faults on demand; proxies that count and break; and the
//! services that one test has to itself.
//!
//! - [`claude`], [`stripe`], [`mail`]: the vendors' APIs;
//! - [`upstash`]: Upstash's REST API in front of a real Redis;
//! - [`proxy`]: TCP, HTTP and Postgres proxies that count round trips, delay and cut;
//! - [`test_services`]: all of them for one test, with a database of its own.
//!
//! Development only: no function depends on this crate.
// An object of Stripe's has some fifty fields.
#![recursion_limit = "256"]
#![expect(
    clippy::disallowed_methods,
    reason = "fakes read the clock and the test run's environment, and have no platform to register tasks with"
)]

pub mod claude;
pub mod mail;
pub mod pooler;
pub mod proxy;
pub mod stripe;
pub mod test_services;
pub mod upstash;

mod html;
mod wire;
