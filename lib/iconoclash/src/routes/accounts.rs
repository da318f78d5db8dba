//! Accounts and sessions: sign up, sign in, visit as a guest, sign out, see who one is.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    cache::{self, Cached},
    database::OnConstraint,
    http::{
        error::{Error, Problem, Result},
        extract::{Json, OptionalJson, Text},
    },
    identity::{
        auth::{self, Profile, Session, User, UserRow, Visitor},
        password,
        rate_limit::{self, Limit, LimitSubject},
        session_cache,
        token::{self, Claims},
    },
    spending::{admission, plan::Plan, quota::Quota, redis_keys, subject::Subject},
};

/// `/api/auth/*`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(signup))
        .routes(routes!(login))
        .routes(routes!(guest))
        .routes(routes!(logout))
        .routes(routes!(session))
}

/// What a new account needs.
#[derive(Debug, Deserialize, ToSchema)]
struct NewAccount {
    #[schema(value_type = String, format = Email, max_length = 254)]
    email: Email,
    #[schema(value_type = String, min_length = 8, max_length = 200)]
    password: Password,
    #[schema(value_type = Option<String>, max_length = 80)]
    name: Option<Text<80>>,
}

/// What an account is signed in to with.
#[derive(Debug, Deserialize, ToSchema)]
struct Credentials {
    email: String,
    password: String,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
struct Logout {
    /// End all of the user's sessions, not just this one.
    #[serde(default)]
    everywhere: bool,
}

/// A session that has just begun.
#[derive(Debug, Serialize, ToSchema)]
struct SignedIn {
    user: Profile,
    /// Present it as `Authorization: Bearer …`; browsers also get it as a cookie.
    token: String,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Who one is and what is left of today.
#[derive(Debug, Serialize, ToSchema)]
struct CurrentSession {
    user: Profile,
    quota: Quota,
}

/// An address that could be one: something on both sides of one @, no space, at most 254 characters (RFC 5321).
/// Whether mail arrives there only a mail can tell.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Email(String);

impl TryFrom<String> for Email {
    type Error = &'static str;

    fn try_from(typed: String) -> Result<Self, Self::Error> {
        let email = typed.trim();
        let (local, domain) = email.split_once('@').unwrap_or_default();
        let labels = domain.split('.').all(|label| !label.is_empty());
        let plausible =
            !local.is_empty() && domain.contains('.') && labels && !domain.contains('@');
        if plausible
            && email.len() <= 254
            && !email.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            Ok(Self(email.to_owned()))
        } else {
            Err("must be an e-mail address")
        }
    }
}

/// A password that is long enough; what it is made of is the user's business (NIST SP 800-63B).
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Password(String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

impl TryFrom<String> for Password {
    type Error = &'static str;

    fn try_from(typed: String) -> Result<Self, Self::Error> {
        match typed.chars().count() {
            0..8 => Err("must be at least 8 characters"),
            8..=200 => Ok(Self(typed)),
            _ => Err("must be at most 200 characters"),
        }
    }
}

/// Make an account. With a guest's token that guest becomes the account and keeps the discussions.
#[utoipa::path(post, path = "/api/auth/signup", tag = "accounts", security((), ("bearer" = [])),
    responses((status = 201, body = SignedIn), (status = 401, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn signup(
    State(app): State<App>,
    visitor: Visitor,
    Json(new): Json<NewAccount>,
) -> Result<Response> {
    let (network, address) = (
        LimitSubject::Network(visitor.network),
        LimitSubject::Email(&new.email.0),
    );
    rate_limit::check(
        &app,
        &[(Limit::SignUp, network), (Limit::SignUpByEmail, address)],
    )
    .await?;
    let hash = password::hash(new.password.0).await?;
    let name = new.name.as_ref().map(Text::as_str);
    let db = app.db()?;
    let row = match visitor
        .session
        .map(|session| session.claims)
        .filter(|claims| claims.guest)
    {
        Some(guest) => {
            let Claims { sub, sid, ver, .. } = guest;
            cache::invalidate(&app, &[Cached::Session(sub)], Vec::new()).await?;
            let upgraded = db
                .old_optional(
                    &UPGRADE_GUEST,
                    &[&sub, &ver, &sid, &new.email.0, &name, &hash],
                )
                .await;
            upgraded
                .on_constraint("users_email_key", EMAIL_TAKEN)?
                .ok_or(auth::INVALID_TOKEN)?
        }
        None => {
            let inserted = db
                .old_one(
                    &INSERT,
                    &[
                        &app.new_id(),
                        &new.email.0,
                        &name,
                        &hash,
                        &"free",
                        &app.now(),
                    ],
                )
                .await;
            inserted.on_constraint("users_email_key", EMAIL_TAKEN)?
        }
    };
    begin_session(&app, row, StatusCode::CREATED)
}

/// Sign in. An unknown address takes as long as a wrong password and is answered the same.
#[utoipa::path(post, path = "/api/auth/login", tag = "accounts",
    responses((status = 200, body = SignedIn), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn login(
    State(app): State<App>,
    visitor: Visitor,
    Json(credentials): Json<Credentials>,
) -> Result<Response> {
    let (network, account) = (
        LimitSubject::Network(visitor.network),
        LimitSubject::Email(&credentials.email),
    );
    rate_limit::check(
        &app,
        &[(Limit::SignIn, network), (Limit::SignInByEmail, account)],
    )
    .await?;
    let address = credentials.email.trim();
    let found = match address.contains('\0') {
        // Nobody's, and nothing that Postgres could be asked for.
        true => None,
        false => app.db()?.old_optional(&BY_EMAIL, &[&address]).await?,
    };
    let (stored, suspended, user) = match found {
        Some(row) => (Some(row.password_hash), row.suspended, Some(row.id)),
        None => (None, false, None),
    };
    let right = password::verify(credentials.password, stored.flatten()).await?;
    let user = user.filter(|_| right).ok_or(INVALID_CREDENTIALS)?;
    if suspended {
        return Err(SUSPENDED);
    }
    let row = app
        .db()?
        .old_optional(&BY_ID, &[&user])
        .await?
        .ok_or(INVALID_CREDENTIALS)?;
    begin_session(&app, row, StatusCode::OK)
}

/// Visit without an account; messages count by network.
#[utoipa::path(post, path = "/api/auth/guest", tag = "accounts", responses((status = 201, body = SignedIn), (status = 429, body = Problem)))]
async fn guest(State(app): State<App>, visitor: Visitor) -> Result<Response> {
    rate_limit::check(
        &app,
        &[(Limit::Guest, LimitSubject::Network(visitor.network))],
    )
    .await?;
    let nothing = None::<&str>;
    let row = app
        .db()?
        .old_one(
            &INSERT,
            &[
                &app.new_id(),
                &nothing,
                &nothing,
                &nothing,
                &"guest",
                &app.now(),
            ],
        )
        .await?;
    begin_session(&app, row, StatusCode::CREATED)
}

/// Sign out, here or everywhere, at once.
#[utoipa::path(post, path = "/api/auth/logout", tag = "accounts", security(("bearer" = [])),
    responses((status = 204), (status = 401, body = Problem)))]
async fn logout(
    State(app): State<App>,
    user: User,
    OptionalJson(logout): OptionalJson<Logout>,
) -> Result<Response> {
    let claims = &user.session.claims;
    let ends = OffsetDateTime::from_unix_timestamp(claims.exp)
        .map_err(|error| Error::Internal(error.into()))?;
    let (session, version) = match logout.everywhere {
        true => (None, Some(claims.ver + 1)),
        false => (Some((claims.sid, (ends - app.now()).unsigned_abs())), None),
    };
    cache::invalidate(&app, &[Cached::Session(user.id)], Vec::new()).await?;
    let db = app.db()?;
    match logout.everywhere {
        true => db.old_execute(&REVOKE_ALL, &[&user.id]).await?,
        false => {
            db.old_execute(&REVOKE, &[&claims.sid, &user.id, &ends])
                .await?
        }
    };
    // Not before it is written: for as long as a token lives Redis would refuse what Postgres still holds to be live.
    admission::revoke(&app, session, user.id, version).await;
    let forget = [(header::SET_COOKIE, auth::session_cookie("", 0))];
    Ok((StatusCode::NO_CONTENT, forget).into_response())
}

/// Who one is and what is left of today's messages.
#[utoipa::path(get, path = "/api/auth/session", tag = "accounts", security(("bearer" = [])),
    responses((status = 200, body = CurrentSession), (status = 401, body = Problem)))]
async fn session(State(app): State<App>, session: Session) -> Result<Response> {
    let (subject, now) = (Subject::from_session(&session, &app)?, app.now());
    let messages_command = redis_keys::messages_command(&subject, now);
    let (user, counted) = session_cache::load_user(&app, session, vec![messages_command]).await?;
    let counted = counted
        .into_iter()
        .next()
        .flatten()
        .and_then(|counted| counted.as_str()?.parse().ok());
    let messages = match counted {
        Some(messages) => messages,
        None => admission::messages(&app, &subject, now).await?,
    };
    let limit = user
        .profile
        .plan
        .messages_per_day(&app.config().quotas.clone()?);
    let quota = Quota::new(limit, u32::try_from(messages).unwrap_or_default(), now);
    Ok((
        quota.headers(),
        axum::Json(CurrentSession {
            user: user.profile,
            quota,
        }),
    )
        .into_response())
}

fn begin_session(app: &App, row: UserRow, status: StatusCode) -> Result<Response> {
    let version = row.token_version;
    let user: Profile = row.into();
    let guest = user.plan == Plan::Guest;
    let (token, expires_at) =
        app.tokens()?
            .sign(user.id, app.new_id(), version, guest, app.now())?;
    let cookie = [(
        header::SET_COOKIE,
        auth::session_cookie(&token, token::LIFETIME.whole_seconds()),
    )];
    Ok((
        status,
        cookie,
        axum::Json(SignedIn {
            user,
            token,
            expires_at,
        }),
    )
        .into_response())
}

const EMAIL_TAKEN: Error = Error::Conflict {
    code: "email_taken",
    detail: "There is an account with this address; sign in instead.",
};
const INVALID_CREDENTIALS: Error = Error::Unauthorized {
    code: "invalid_credentials",
    detail: "The address or the password is wrong.",
};
const SUSPENDED: Error = Error::Forbidden {
    code: "account_suspended",
    detail: "This account is suspended; write to us to have it back.",
};

sql_positional! {
    write INSERT(UUID, TEXT, TEXT, TEXT, TEXT, TIMESTAMPTZ) -> UserRow = "
        insert into users (id, email, name, password_hash, plan, created_at)
        values ($1, $2, $3, $4, $5, $6)
        returning id, email, name, plan, role, token_version, created_at";
}

sql_positional! {
    /// Ends the guest's sessions: their tokens count messages by network, the account's do not.
    write UPGRADE_GUEST(UUID, INT4, UUID, TEXT, TEXT, TEXT) -> UserRow = "
        update users
        set email = $4, name = $5, password_hash = $6, plan = 'free', token_version = token_version + 1
        where id = $1 and token_version = $2 and plan = 'guest' and suspended_at is null
          and not exists (select from revoked_sessions r where r.sid = $3)
        returning id, email, name, plan, role, token_version, created_at";
}

sql_positional! {
    read BY_EMAIL(TEXT) -> PasswordRow = "
        select id, password_hash, suspended_at is not null as suspended
        from users where lower(email) = lower($1)";
}

sql_positional! {
    read BY_ID(UUID) -> UserRow = "
        select id, email, name, plan, role, token_version, created_at from users where id = $1";
}

sql_positional! {
    write REVOKE(UUID, UUID, TIMESTAMPTZ) -> () = "
        insert into revoked_sessions (sid, user_id, expires_at) values ($1, $2, $3) on conflict do nothing";
}

sql_positional! {
    write REVOKE_ALL(UUID) -> () = "update users set token_version = token_version + 1 where id = $1";
}

row! {
    struct PasswordRow { id: Uuid, password_hash: Option<String>, suspended: bool }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_unless_it_cannot_be_one() {
        let accepted = |typed: &str| Email::try_from(typed.to_owned()).is_ok();
        for good in [
            "ada@example.org",
            " Ada+x@sub.example.co.uk ",
            "ü@exämple.de",
        ] {
            assert!(accepted(good), "{good}");
        }
        let long = format!("{}@example.org", "a".repeat(250));
        for bad in [
            "",
            "ada",
            "ada@",
            "@example.org",
            "ada@localhost",
            "a b@example.org",
            "a@b@c.org",
            "a@b..org",
            &long,
        ] {
            assert!(!accepted(bad), "{bad}");
        }
    }
}
