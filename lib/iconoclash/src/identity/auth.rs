//! The extractors that authenticate a request. A handler's signature states who may call it:
//!
//! - [`Anyone`]: everyone; a token is not read;
//! - [`MaybeGuest`]: everyone; a token counts if it is a guest's;
//! - [`Visitor`]: everyone, signed in or not;
//! - [`Session`]: the bearer of a valid token; the handler itself checks whether the session is live;
//! - [`User`]: a user with a live session;
//! - [`Admin`]: a user with role `admin`;
//! - [`Cron`]: the platform's scheduler, which knows the cron secret.

use axum::{extract::FromRequestParts, http::request::Parts};
use http::{HeaderMap, Method, header};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::{
    credential::{Credential, credentials},
    rate_limit::{self, Limit, LimitSubject},
    session_cache,
    token::Claims,
};
use crate::{
    app::App,
    http::{
        error::{Error, Result},
        network::Network,
    },
};

pub(crate) use super::{
    credential::{is_cookie_authenticated, session_cookie},
    user::UserRow,
};
pub use super::{
    session::{INVALID_TOKEN, Session, User},
    user::{Profile, Role},
};

const SIGN_IN: Error = Error::Unauthorized {
    code: "unauthorized",
    detail: "Sign in first.",
};

const ORIGIN_NOT_ALLOWED: Error = Error::Forbidden {
    code: "origin_not_allowed",
    detail: "This origin is not allowed.",
};

/// A caller whose token would not change the answer. A client that always sends a token, and whose token has expired,
/// gets a new one here.
#[derive(Debug)]
pub(crate) struct Anyone {
    /// The caller's network.
    pub(crate) network: Network,
}

/// A caller who may be a guest. Every other token, valid or not, is ignored.
#[derive(Debug)]
pub(crate) struct MaybeGuest {
    /// The claims of a guest's token, whose session may have ended.
    pub(crate) guest: Option<Claims>,
    /// The caller's network.
    pub(crate) network: Network,
}

/// A caller who may be signed in. An invalid token is rejected even here.
#[derive(Debug)]
pub(crate) struct Visitor {
    /// The session, if the request has a token.
    pub session: Option<Session>,
    /// The caller's network.
    pub network: Network,
}

/// A user with role `admin`.
#[derive(Debug)]
pub struct Admin(pub User);

/// A caller who knows the cron secret.
#[derive(Debug)]
pub(crate) struct Cron;

impl FromRequestParts<App> for Anyone {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let network = Network::from_headers(&parts.headers, app);
        Ok(Self { network })
    }
}

impl FromRequestParts<App> for MaybeGuest {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let network = Network::from_headers(&parts.headers, app);
        let tokens = app.tokens()?;
        let valid = credentials(&parts.headers)
            .find_map(|found| Some((tokens.verify(found.token, app.now())?, found)));

        let Some((guest, credential)) = valid.filter(|(claims, _)| claims.guest) else {
            return Ok(Self {
                guest: None,
                network,
            });
        };
        if let Err(not_allowed) = check_origin(&credential, parts, app) {
            let session = Session {
                claims: guest,
                network,
            };
            // The cookie of an ended session must not keep a browser from signing up.
            return match session_cache::load_user(app, session, Vec::new()).await {
                Ok(_) => Err(not_allowed),
                Err(error) if error.code() == INVALID_TOKEN.code() => Ok(Self {
                    guest: None,
                    network,
                }),
                Err(error) => Err(error),
            };
        }
        Ok(Self {
            guest: Some(guest),
            network,
        })
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let network = Network::from_headers(&parts.headers, app);
        let Some(credential) = credentials(&parts.headers).next() else {
            return Ok(Self {
                session: None,
                network,
            });
        };
        check_origin(&credential, parts, app)?;

        let verified = app.tokens()?.verify(credential.token, app.now());
        let claims = verified.ok_or(INVALID_TOKEN)?;
        Ok(Self {
            session: Some(Session { claims, network }),
            network,
        })
    }
}

impl Visitor {
    /// Counts a read of a public page, unless the visitor is signed in.
    pub(crate) async fn check_read_limit(&self, app: &App) -> Result<()> {
        if self.session.is_some() {
            return Ok(());
        }
        let network = LimitSubject::Network(self.network);
        rate_limit::check(app, &[(Limit::Read, network)]).await
    }
}

impl FromRequestParts<App> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let visitor = Visitor::from_request_parts(parts, app).await?;
        visitor.session.ok_or(SIGN_IN)
    }
}

impl FromRequestParts<App> for User {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let session = Session::from_request_parts(parts, app).await?;
        let (user, _) = session_cache::load_user(app, session, Vec::new()).await?;
        Ok(user)
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let session = Session::from_request_parts(parts, app).await?;
        // The cache is never trusted with an operator's permissions.
        let user = session_cache::load_user_uncached(app, session).await?;

        match user.profile.role {
            Role::Admin => Ok(Self(user)),
            Role::User => Err(Error::Forbidden {
                code: "admin_only",
                detail: "This endpoint is for operators only.",
            }),
        }
    }
}

impl FromRequestParts<App> for Cron {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        Self::from_headers(&parts.headers, app)
    }
}

impl Cron {
    /// Checks the secret in constant time. Without a configured secret every request is rejected.
    pub(crate) fn from_headers(headers: &HeaderMap, app: &App) -> Result<Self> {
        let secret = app.config().cron_secret()?.expose_secret();
        let presented = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .unwrap_or_default();

        if presented.as_bytes().ct_eq(secret.as_bytes()).into() {
            Ok(Self)
        } else {
            Err(Error::Unauthorized {
                code: "unauthorized",
                detail: "This endpoint requires the cron secret.",
            })
        }
    }
}

/// A browser adds the cookie to requests of any page, so an unsafe method also needs an allowed origin.
fn check_origin(credential: &Credential<'_>, parts: &Parts, app: &App) -> Result<()> {
    let is_safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let has_allowed_origin = parts
        .headers
        .get(header::ORIGIN)
        .and_then(|origin| origin.to_str().ok())
        .is_some_and(|origin| app.config().allows_origin(origin));

    if !credential.is_cookie || is_safe || has_allowed_origin {
        Ok(())
    } else {
        Err(ORIGIN_NOT_ALLOWED)
    }
}
