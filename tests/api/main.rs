//! The public contract, request by request, and the rules of the source tree.
//!
//! The router is called in process, with its real layers, Postgres through PgBouncer, Redis behind a REST front, and
//! fakes of Claude, Stripe and the mail provider. Every JSON response is checked against the OpenAPI document, and every
//! write against the cached sessions. `cargo local test` starts what these tests need.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test takes the place of the platform: it has an environment, a clock and tasks"
)]

mod contract;
mod harness;
mod ledger;
mod proxied;

mod accounts;
mod architecture;
mod billing;
mod billing_sync;
mod caches;
mod checkout;
mod conventions;
mod crashes;
mod discussions;
mod failover;
mod follow_ups;
mod idempotency;
mod inputs;
mod key_faults;
mod keys;
mod limits;
mod lost_events;
mod messages;
mod model;
mod money;
mod outages;
mod platform;
mod reconciling;
mod replies;
mod resuming;
mod round_trips;
mod signing_in;
mod slow_postgres;
mod stopping;
mod stored_keys;
mod webhooks;
