//! The library behind every Iconoclash endpoint.
//!
//! A file under `api/` names an endpoint, a slice under [`routes`] implements it, and the modules below are the tools.
//!
//! - [`routes`]: one file per resource, with its router, types, handlers and SQL;
//! - [`http`]: runs a router on Vercel, on Lambda or in one process; errors, extractors, the request log;
//! - [`identity`]: who is calling, and how often they may;
//! - [`spending`]: who may send a message, what it may cost, and the ledger of what it did cost;
//! - [`billing`]: subscriptions, as Stripe reports them;
//! - [`api_keys`]: the Claude keys that pay;
//! - [`conversation`]: prompts, summaries, titles and speakers;
//! - [`notify`]: mail to users, alerts to operators;
//! - [`cache`], [`redis`]: Redis behind a circuit breaker, and the values that it caches;
//! - [`app`], [`config`], [`clock`]: what a handler can reach, the settings behind it, and the time.

pub mod routes;

pub mod api_keys;
pub mod billing;
pub mod conversation;
pub mod http;
pub mod identity;
pub mod notify;
pub mod spending;

pub mod app;
pub mod cache;
pub mod clock;
pub mod config;
pub mod crash_point;
mod database;
mod digest;
pub mod redis;
