//! Who is calling, and how often they may.
//!
//! - [`auth`]: the extractors of a handler's signature;
//! - [`session`], [`session_cache`]: the session behind a token, and whether it is live;
//! - [`user`]: a user, as stored and as shown;
//! - [`token`], [`verified`], [`password`], [`email`]: credentials;
//! - [`rate_limit`]: limits on sign-ins, sign-ups and the like.

pub mod auth;
mod credential;
pub(crate) mod email;
pub mod password;
pub mod rate_limit;
pub(crate) mod session;
pub mod session_cache;
pub mod token;
pub(crate) mod user;
mod verified;
