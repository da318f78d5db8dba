//! The edges of a request: serving, errors, extractors, idempotency and the request log.

mod cors;
pub mod error;
pub mod extract;
pub mod idempotency;
pub mod network;
pub mod observe;
pub mod rate_limit_status;
pub mod request_log;
pub mod serve;
