//! `cargo local`: services, the development server and the test runner, for development only.
//!
//! The modules, from the bottom up: directories ([`paths`]), processes that must not outlive this
//! program ([`process`], [`instance`]), installation of programs ([`install`]), the services
//! ([`postgres`], [`pgbouncer`], [`redis`], [`services`]), the development stack ([`stack`]), and
//! the commands ([`up`], [`serve`], [`vercel`], [`suite`], [`mod@bench`]).
//!
//! No function depends on this crate.
#![expect(
    clippy::disallowed_methods,
    reason = "a developer's tool reads its environment, spawns tasks and has clients of its own"
)]

pub mod paths;
pub mod process;
pub mod progress;

mod record;
mod registry;

mod reaper;

pub mod instance;
mod interrupt;

pub mod install;
pub mod ports;
pub mod secrets;

pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod services;

mod settings;
pub mod stack;

mod fake_pages;
mod home;
pub mod serve;

mod internal;
mod tally;
mod watch;

pub mod bench;
pub mod suite;
pub mod up;
pub mod vercel;

pub use internal::Internal;
pub use interrupt::with_instance;
pub use record::{Record, StartedProcess};
pub use registry::running;
