//! The public contract, request by request: the router is called in process, with its real layers, Postgres through
//! PgBouncer, Redis behind a REST front, and stand-ins for Claude, Stripe and mail. Every JSON answer is checked against the OpenAPI
//! document. `cargo local test` starts what these tests need.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test plays the platform: it has an environment, a clock and tasks"
)]

mod contract;
mod harness;
mod ledger;
mod proxied;

mod accounts;
mod billing;
mod caches;
mod checkout;
mod crashes;
mod discussions;
mod failover;
mod follow_ups;
mod key_faults;
mod keys;
mod limits;
mod messages;
mod model;
mod money;
mod outages;
mod platform;
mod reconciling;
mod replies;
mod resuming;
mod round_trips;
mod slow_postgres;
mod stopping;
mod webhooks;
