//! The session behind a token, and the user of a live one.

use uuid::Uuid;

use super::{token::Claims, user::Profile};
use crate::http::{error::Error, network::Network};

/// The bearer of a valid token, whose session may have ended.
///
/// The handler's own statement checks whether the session is live, which saves a round trip before Claude is called.
#[derive(Debug, Clone)]
pub struct Session {
    /// The content of the token.
    pub claims: Claims,
    /// The caller's network.
    pub network: Network,
}

/// A user with a live session.
#[derive(Debug)]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// The session of the request.
    pub session: Session,
    /// The user as responses show it.
    pub profile: Profile,
}

/// The token is forged or expired, or its session has ended.
pub const INVALID_TOKEN: Error = Error::Unauthorized {
    code: "invalid_token",
    detail: "Sign in again.",
};
