//! Who is calling, and how often they may.

pub mod auth;
pub mod password;
pub mod rate_limit;
pub mod token;
