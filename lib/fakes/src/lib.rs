#![doc = include_str!("../README.md")]
// An object of Stripe's has some fifty fields.
#![recursion_limit = "256"]
#![expect(
    clippy::disallowed_methods,
    reason = "fakes read the clock and the environment, and have no platform to register tasks with"
)]

pub mod claude;
pub mod mail;
pub mod pooler;
pub mod proxy;
pub mod stripe;
pub mod test_services;
pub mod upstash;

mod faulty_http;
mod html;
mod sync;
