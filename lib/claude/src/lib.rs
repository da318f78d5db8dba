#![doc = include_str!("../README.md")]

mod attempt;
mod client;
mod clock;
mod connections;
mod cooldown;
mod error;
mod event_stream;
mod events;
mod failover;
mod headers;
mod key;
mod limits;
mod pool;
mod prompt;
mod reply;
mod request;
mod sent_body;
mod timer;
mod usage;

pub use attempt::Attempt;
pub use client::Claude;
pub use cooldown::Cooldown;
pub use error::{Detail, Error, Phase};
pub use failover::Route;
pub use key::ApiKey;
pub use limits::{Limit, Limits};
pub use pool::{Alarm, AlarmKind, KeyHealth, KeyOutcome, Pool};
pub use prompt::{Prompt, Role, Turn};
pub use reply::Reply;
pub use timer::Deadlines;
pub use usage::Usage;

/// The version of the wire format that every request names.
pub const API_VERSION: &str = "2026-10-21";
