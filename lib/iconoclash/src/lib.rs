//! The library behind every Iconoclash endpoint.
//!
//! A file under `api/` says what exists; a slice under `routes` does it; everything else is a tool that knows nothing
//! about discussions. In reading order:
//!
//! - [`routes`]: one file per resource, with its router, types, handlers and SQL;
//! - [`serve`]: runs a router on Vercel, on Lambda or in one process, with the layers around every route;
//! - [`app`], [`config`]: what a handler can reach, and the settings it is made from;
//! - [`auth`], [`token`], [`password`]: who is calling;
//! - [`admission`], [`budget`], [`plan`], [`quota`]: who may send now, and what it may cost; [`limit`]: every other limit;
//! - [`reconcile`]: what crashes and outages left behind, put right;
//! - [`redis`], [`cache`]: Redis behind a breaker, and what it spares Postgres;
//! - [`subscription`], [`stripe`]: who pays for it, as Stripe says;
//! - [`db`], [`claude`], [`price`]: Postgres through a pooler, Claude, and what its tokens cost; [`keys`]: which keys pay;
//! - [`mail`], [`alert`]: telling users and operators what happened;
//! - [`error`], [`extract`], [`idempotency`], [`telemetry`]: the edges of a request; [`fault`]: how tests stop one midway.
//!
//! Held by lints and tests: only `serve` names a platform, only `config` reads the environment, only `app` reads the
//! clock, only `db` knows a driver, and slices never import each other.

pub mod routes;

pub mod serve;

pub mod app;
pub mod config;

pub mod auth;
pub mod password;
pub mod token;

pub mod admission;
pub mod budget;
pub mod limit;
pub mod plan;
pub mod quota;
pub mod reconcile;

pub mod cache;
pub mod redis;

pub mod stripe;
pub mod subscription;

pub mod claude;
pub mod db;
pub mod keys;
pub mod price;

pub mod alert;
pub mod mail;

pub mod error;
pub mod extract;
pub mod fault;
pub mod idempotency;
pub mod telemetry;
