#![doc = include_str!("../../../docs/architecture.md")]

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
