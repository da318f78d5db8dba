//! The local stack: services, stand-ins and the development server.
//!
//! In reading order: where things lie (`places`), what must not outlive us (`process`, `profile`),
//! how missing programs are got (`install`), the services themselves (`services` and one file each),
//! what stands in for vendors (`upstash`, `claude`, `stripe`, `mail`) and measures (`proxy`),
//! the environment made of them (`stack`), and the commands on top (`up`, `serve`, `vercel`, `suite`, `bench`).
//!
//! Development only: no function depends on this crate.
#![expect(
    clippy::disallowed_methods,
    reason = "a developer's tool reads its own environment and the clock, and has no platform to ask for leave to spawn"
)]

pub mod places;
pub mod process;
pub mod profile;

mod interrupt;
pub use interrupt::with_profile;

pub mod install;
pub mod ports;
pub mod progress;
pub mod secrets;

pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod services;

pub mod stack;

mod pages;
pub mod serve;
pub mod suite;
pub mod summary;
pub mod up;
pub mod vercel;
pub mod watch;
