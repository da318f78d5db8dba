//! The library behind every Iconoclash endpoint.
//!
//! A file under `api/` names an endpoint, and a slice under [`routes`] implements it with the modules below it, here in
//! reading order:
//!
//! - [`routes`]: the endpoints: one file per resource, with its router, types, handlers and SQL;
//! - [`conversation`]: prompts, summaries, titles and speakers;
//! - [`billing`]: subscriptions, as Stripe reports them;
//! - [`api_keys`]: the Claude API keys, shared by all instances;
//! - [`spending`]: plans, quotas, budgets, admission and the ledger;
//! - [`identity`]: sessions, passwords and rate limits;
//! - [`notify`]: mail to users, alerts to operators;
//! - [`http`]: the runtime (Vercel, Lambda or one process), errors, extractors and the request log;
//! - [`cache`]: values cached in Redis, and their invalidation;
//! - [`redis`]: Redis behind a circuit breaker;
//! - [`app`]: the shared state of a process: settings, clients and the clock;
//! - [`config`]: every setting;
//! - [`clock`]: the clock, and UTC days and months;
//! - [`crash_point`]: crash points for recovery tests.

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
