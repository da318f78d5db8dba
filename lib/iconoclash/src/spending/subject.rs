//! Whom a message is counted for.

use crate::{app::App, http::error::Result, identity::session::Session};

/// Whom a message is counted for: a user, or a guest's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(String);

impl Subject {
    /// A user's id. For a guest, a keyed hash of the network, because a new guest account costs nothing.
    pub fn from_session(session: &Session, app: &App) -> Result<Self> {
        if session.claims.guest {
            let key = app.config().credentials_key()?;
            Ok(Self(format!("ip:{}", session.network.pseudonym(&key.0))))
        } else {
            Ok(Self(format!("u:{}", session.claims.sub)))
        }
    }

    /// The text that the ledger and Redis store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a guest's network.
    pub(crate) fn is_network(&self) -> bool {
        self.0.starts_with("ip:")
    }
}
