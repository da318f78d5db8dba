//! Who is calling. A handler's signature says who may: `User` and `Admin` are live sessions, `Session` is a verified
//! token of which the handler itself finds out whether it is live, `Visitor` is anybody, `Cron` knows the cron secret.

use axum::{extract::FromRequestParts, http::request::Parts};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use upstash_redis_rs::Command;
use utoipa::ToSchema;
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};

use secrecy::ExposeSecret;

use crate::http::network::Network;
use crate::{
    app::App,
    cache::{self, Cached},
    http::{
        error::{Error, Result},
        request_log,
    },
    identity::{
        rate_limit::{self, Limit, Of},
        token::Claims,
    },
    spending::{plan::Plan, redis_keys},
};

const COOKIE: &str = "__Host-session";

/// Anybody, signed in or not. A token that is not valid is refused even here.
#[derive(Debug)]
pub struct Visitor {
    /// The session, where a token came with the request.
    pub session: Option<Session>,
    /// The caller's network.
    pub network: Network,
}

/// The bearer of a token that we signed and that has not run out. Whether the session is still live is for the
/// handler's own statement to say, which saves a round trip on the way to Claude.
#[derive(Debug, Clone)]
pub struct Session {
    /// What the token says.
    pub claims: Claims,
    /// The caller's network.
    pub network: Network,
}

/// A user whose session is live now.
#[derive(Debug)]
pub struct User {
    /// The user.
    pub id: Uuid,
    /// The session that the request came with.
    pub session: Session,
    /// As shown to the user.
    pub profile: Profile,
}

/// A user with role `admin`.
#[derive(Debug)]
pub struct Admin(pub User);

/// Whoever knows the cron secret.
#[derive(Debug)]
pub struct Cron;

impl Cron {
    /// Checks the secret in constant time. Without a secret in the configuration nobody is let in.
    pub fn of(headers: &HeaderMap, app: &App) -> Result<Self> {
        let secret = app.config().cron_secret.clone()?;
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if shown.is_some_and(|shown| {
            shown
                .as_bytes()
                .ct_eq(secret.expose_secret().as_bytes())
                .into()
        }) {
            Ok(Self)
        } else {
            Err(Error::Unauthorized {
                code: "unauthorized",
                detail: "This needs the cron secret.",
            })
        }
    }
}

impl FromRequestParts<App> for Cron {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        Self::of(&parts.headers, app)
    }
}

/// A user as answers show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = User)]
pub struct Profile {
    /// The user's id.
    pub id: Uuid,
    /// Address for sign-in; guests have none.
    pub email: Option<String>,
    /// What to call the user.
    pub name: Option<String>,
    /// What the user pays for.
    pub plan: Plan,
    /// What the user may do.
    pub role: Role,
    /// When the account was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

pooled_postgres::text_enum! {
    /// What a user may do.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Role {
        /// Argue.
        User = "user",
        /// Operate the service.
        Admin = "admin",
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let network = Network::from_headers(&parts.headers, app);
        let Some(token) = presented_token(parts, app)? else {
            return Ok(Self {
                session: None,
                network,
            });
        };
        let claims = app
            .tokens()?
            .verify(&token, app.now())
            .ok_or(INVALID_TOKEN)?;
        Ok(Self {
            session: Some(Session { claims, network }),
            network,
        })
    }
}

impl Visitor {
    /// Counts a public read of somebody who is not signed in.
    pub async fn may_read(&self, app: &App) -> Result<()> {
        match self.session {
            Some(_) => Ok(()),
            None => rate_limit::check(app, &[(Limit::Read, Of::Network(self.network))]).await,
        }
    }
}

impl FromRequestParts<App> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        Visitor::from_request_parts(parts, app)
            .await?
            .session
            .ok_or(SIGN_IN)
    }
}

impl FromRequestParts<App> for User {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let session = Session::from_request_parts(parts, app).await?;
        Ok(session.live(app, Vec::new()).await?.0)
    }
}

impl Session {
    /// The user, if the session is live, from the cache where it is there. Other reads of Redis go along in the same
    /// request; each comes back as its result, or as nothing.
    pub async fn live(self, app: &App, beside: Vec<Command>) -> Result<(User, Vec<Option<Value>>)> {
        let cached = Cached::Session(self.claims.sub);
        let commands: Vec<Command> = std::iter::once(cached.command()).chain(beside).collect();
        let asked = async { Ok::<_, Error>(app.redis()?.pipeline(&commands).await?) };
        let mut found: Vec<Option<Value>> = match asked.await {
            Ok(results) => results.into_iter().map(Result::ok).collect(),
            Err(cause) => {
                request_log::add(|log| log.degraded = Some(cause.cause()));
                vec![None; commands.len()]
            }
        };
        let beside = found.split_off(1);
        let load = async || self.active(app).await;
        // A token tells of its version: a value that knows none so high was kept before a write that Redis missed.
        let fresh = |active: &Active| active.version >= self.claims.ver;
        let active = cached
            .or_load(app, found.pop().flatten(), fresh, load)
            .await?;
        Ok((self.into_user(active)?, beside))
    }

    /// The user as Postgres has it now, if the session is live.
    async fn live_now(self, app: &App) -> Result<User> {
        let active = self.active(app).await?;
        self.into_user(active)
    }

    async fn active(&self, app: &App) -> Result<Active> {
        app.db()?
            .old_optional(&ACTIVE, &[&self.claims.sub, &app.now()])
            .await?
            .ok_or(INVALID_TOKEN)?
            .try_into()
    }

    fn into_user(self, active: Active) -> Result<User> {
        let Claims { sub, sid, ver, .. } = self.claims;
        let is_live =
            active.profile.id == sub && active.version == ver && !active.revoked.contains(&sid);
        if is_live {
            Ok(User {
                id: sub,
                session: self,
                profile: active.profile,
            })
        } else {
            Err(INVALID_TOKEN)
        }
    }
}

/// A user who is not suspended, and which sessions are live.
#[derive(Debug, Serialize, Deserialize)]
struct Active {
    profile: Profile,
    version: i32,
    /// Sessions that were ended one by one, of tokens that would still be good.
    revoked: Vec<Uuid>,
}

impl FromRequestParts<App> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        // What an operator may do is never told from a cache.
        let user = Session::from_request_parts(parts, app)
            .await?
            .live_now(app)
            .await?;
        if user.profile.role == Role::Admin {
            Ok(Self(user))
        } else {
            Err(Error::Forbidden {
                code: "admin_only",
                detail: "This is for operators.",
            })
        }
    }
}

/// The token was signed by nobody we know, has run out, or its session has ended.
pub const INVALID_TOKEN: Error = Error::Unauthorized {
    code: "invalid_token",
    detail: "Sign in again.",
};
const SIGN_IN: Error = Error::Unauthorized {
    code: "unauthorized",
    detail: "Sign in first.",
};

/// To be called before a write that changes what a session shows or may do: plan, role, suspension, name. The next
/// request of every session of the user sees that write.
pub async fn before_change(app: &App, user: Uuid) -> Result<()> {
    cache::forget(
        app,
        &[Cached::Session(user)],
        vec![redis_keys::forget_plan_command(user)],
    )
    .await
}

sql_positional! {
    /// A user who is not suspended, with the sessions that were ended one by one and whose tokens have not run out.
    read ACTIVE(UUID, TIMESTAMPTZ) -> ActiveRow = "
        select u.id, u.email, u.name, u.plan, u.role, u.token_version, u.created_at,
          array(select r.sid from revoked_sessions r where r.user_id = u.id and r.expires_at > $2) as revoked
        from users u
        where u.id = $1 and u.suspended_at is null";
}

row! {
    struct ActiveRow {
        id: Uuid,
        email: Option<String>,
        name: Option<String>,
        plan: Plan,
        role: Role,
        token_version: i32,
        created_at: OffsetDateTime,
        revoked: Vec<Uuid>,
    }
}

impl TryFrom<ActiveRow> for Active {
    type Error = Error;

    fn try_from(row: ActiveRow) -> Result<Self> {
        let ActiveRow {
            id,
            email,
            name,
            plan,
            role,
            token_version,
            created_at,
            revoked,
        } = row;
        let profile = UserRow {
            id,
            email,
            name,
            plan,
            role,
            token_version,
            created_at,
        };
        Ok(Self {
            version: token_version,
            profile: profile.try_into()?,
            revoked,
        })
    }
}

row! {
    /// What every statement about an account returns.
    pub(crate) struct UserRow {
        id: Uuid,
        email: Option<String>,
        name: Option<String>,
        plan: Plan,
        role: Role,
        token_version: i32,
        created_at: OffsetDateTime,
    }
}

impl TryFrom<UserRow> for Profile {
    type Error = Error;

    fn try_from(row: UserRow) -> Result<Self> {
        Ok(Self {
            id: row.id,
            email: row.email,
            name: row.name,
            plan: row.plan,
            role: row.role,
            created_at: row.created_at,
        })
    }
}

/// The token of the header, else of the cookie. A browser sends the cookie by itself, so with it an unsafe method must
/// also name an origin that we know.
fn presented_token(parts: &Parts, app: &App) -> Result<Option<String>> {
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .ok_or(INVALID_TOKEN)?;
        return Ok(Some(token.1.trim().to_owned()));
    }
    let Some(token) = cookie(&parts.headers) else {
        return Ok(None);
    };
    let safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let origin = parts
        .headers
        .get(header::ORIGIN)
        .and_then(|origin| origin.to_str().ok());
    if safe || origin.is_some_and(|origin| app.config().allows_origin(origin)) {
        Ok(Some(token))
    } else {
        Err(Error::Forbidden {
            code: "origin_not_allowed",
            detail: "This page may not act for you.",
        })
    }
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut pairs = cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value.to_owned())
}

/// Whether a request shows a session by the browser's cookie alone.
pub(crate) fn comes_with_cookie(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::AUTHORIZATION) && cookie(headers).is_some()
}

/// The cookie that keeps a browser signed in; an empty token takes it away.
pub fn session_cookie(token: &str, max_age_secs: i64) -> HeaderValue {
    HeaderValue::try_from(format!(
        "{COOKIE}={token}; Path=/; Max-Age={max_age_secs}; Secure; HttpOnly; SameSite=Lax"
    ))
    .expect("a token is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::COOKIE,
            HeaderValue::from_static("a=b; __Host-session=tok.en; c=d"),
        );
        assert_eq!(cookie(&headers).as_deref(), Some("tok.en"));
        headers.insert(header::COOKIE, HeaderValue::from_static("session=tok.en"));
        assert_eq!(cookie(&headers), None);
    }
}
