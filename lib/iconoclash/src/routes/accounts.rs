//! Accounts and sessions: sign up, sign in, visit as a guest, sign out, show the current session.

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

use pooled_postgres::{row, sql};

use crate::{
    app::App,
    cache::{self, Cached},
    database::OnConstraint,
    http::{
        error::{Error, Problem, Result},
        extract::{Json, Label, OptionalJson},
    },
    identity::{
        auth::{self, Anyone, MaybeGuest, Profile, Session, User, UserRow},
        email::{self, Email},
        password::{self, Match, NewPassword},
        rate_limit::{self, Limit, LimitSubject},
        token::{self, Claims},
    },
    spending::{admission, current_session::CurrentSession, plan::Plan},
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
    password: NewPassword,
    #[schema(value_type = Option<String>, max_length = 80)]
    name: Option<Label<80>>,
}

/// The address and password of an account.
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

/// A new session.
#[derive(Debug, Serialize, ToSchema)]
struct SignedIn {
    user: Profile,
    /// Send it as `Authorization: Bearer …`; browsers also get it as a cookie.
    token: String,
    #[serde(with = "crate::clock::rfc3339")]
    expires_at: OffsetDateTime,
}

/// Create an account. With a guest's token the guest becomes the account and keeps the discussions.
#[utoipa::path(
    post, path = "/api/auth/signup", tag = "accounts", security((), ("bearer" = [])),
    responses(
        (status = 201, body = SignedIn),
        (status = 409, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem),
    ),
)]
async fn signup(
    State(app): State<App>,
    caller: MaybeGuest,
    Json(new): Json<NewAccount>,
) -> Result<Response> {
    let limits = [
        (Limit::SignUp, LimitSubject::Network(caller.network)),
        (
            Limit::SignUpByEmail,
            LimitSubject::Email(new.email.as_str()),
        ),
    ];
    rate_limit::check(&app, &limits).await?;

    let email = new.email.as_str();
    let name = new.name.as_ref().map(Label::as_str);
    let password_hash = password::hash(new.password).await?;

    let upgraded = match caller.guest {
        Some(guest) => upgrade_guest(&app, &guest, email, name, &password_hash).await?,
        None => None,
    };
    let user = match upgraded {
        Some(user) => user,
        None => insert_member(&app, email, name, &password_hash).await?,
    };
    begin_session(&app, user, StatusCode::CREATED)
}

/// Turns a guest into an account with plan free, unless the guest's session has ended.
async fn upgrade_guest(
    app: &App,
    guest: &Claims,
    email: &str,
    name: Option<&str>,
    password_hash: &str,
) -> Result<Option<UserRow>> {
    cache::invalidate(app, &[Cached::Session(guest.sub)], Vec::new()).await?;

    let upgrade = UpgradeGuest {
        user: guest.sub,
        token_version: guest.ver,
        session: guest.sid,
        email,
        name,
        password_hash,
    };
    let upgraded = app.db()?.optional(upgrade).await;
    upgraded.on_constraint("users_email_key", EMAIL_TAKEN)
}

/// Creates an account with plan free.
async fn insert_member(
    app: &App,
    email: &str,
    name: Option<&str>,
    password_hash: &str,
) -> Result<UserRow> {
    let insert = InsertUser {
        id: app.new_id(),
        email: Some(email),
        name,
        password_hash: Some(password_hash),
        plan: Plan::Free,
        now: app.now(),
    };
    let inserted = app.db()?.one(insert).await;
    inserted.on_constraint("users_email_key", EMAIL_TAKEN)
}

/// Sign in. An unknown address gets the same answer as a wrong password, after the same time.
#[utoipa::path(
    post, path = "/api/auth/login", tag = "accounts",
    responses(
        (status = 200, body = SignedIn),
        (status = 401, body = Problem),
        (status = 403, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem),
    ),
)]
async fn login(
    State(app): State<App>,
    caller: Anyone,
    Json(credentials): Json<Credentials>,
) -> Result<Response> {
    let email = email::normalized(&credentials.email);
    let network = caller.network;
    let limits = [
        (Limit::SignIn, LimitSubject::Network(network)),
        (
            Limit::SignInByEmailAndNetwork,
            LimitSubject::EmailAndNetwork(&email, network),
        ),
        (Limit::SignInByEmail, LimitSubject::Email(&email)),
    ];
    let attempt = rate_limit::count(&app, &limits).await?;

    let account = authenticate(&app, &email, credentials.password).await;
    // Only a wrong address or password counts: not a right one, nor a failure of ours.
    if !matches!(account, Ok(None)) {
        attempt.take_back(&app).await;
    }
    let account = account?.ok_or(INVALID_CREDENTIALS)?;
    if account.suspended {
        return Err(SUSPENDED);
    }

    let user = app.db()?.optional(UserById { user: account.id }).await?;
    begin_session(&app, user.ok_or(INVALID_CREDENTIALS)?, StatusCode::OK)
}

/// The account of an address, if the password is right.
async fn authenticate(app: &App, email: &str, password: String) -> Result<Option<PasswordRow>> {
    let account = match email.contains('\0') {
        // No account has such an address, and Postgres rejects it as a parameter.
        true => None,
        false => app.db()?.optional(PasswordByEmail { email }).await?,
    };

    let stored = account.as_ref().and_then(|row| row.password_hash.clone());
    let found = password::verify(password.clone(), stored).await?;

    if let (Some(Match::AsTyped), Some(account)) = (found, &account) {
        let replace = ReplaceHash {
            user: account.id,
            former: account.password_hash.as_deref(),
            password_hash: &password::hash_again(&password).await?,
        };
        app.db()?.execute(replace).await?;
    }
    Ok(account.filter(|_| found.is_some()))
}

/// Visit without an account. Messages of guests count by network.
#[utoipa::path(
    post, path = "/api/auth/guest", tag = "accounts",
    responses((status = 201, body = SignedIn), (status = 429, body = Problem)),
)]
async fn guest(State(app): State<App>, caller: Anyone) -> Result<Response> {
    rate_limit::check(
        &app,
        &[(Limit::Guest, LimitSubject::Network(caller.network))],
    )
    .await?;

    let insert = InsertUser {
        id: app.new_id(),
        email: None,
        name: None,
        password_hash: None,
        plan: Plan::Guest,
        now: app.now(),
    };
    let user = app.db()?.one(insert).await?;

    begin_session(&app, user, StatusCode::CREATED)
}

/// Sign out, here or everywhere, at once.
#[utoipa::path(
    post, path = "/api/auth/logout", tag = "accounts", security(("bearer" = [])),
    responses((status = 204), (status = 401, body = Problem)),
)]
async fn logout(
    State(app): State<App>,
    user: User,
    OptionalJson(logout): OptionalJson<Logout>,
) -> Result<Response> {
    cache::invalidate(&app, &[Cached::Session(user.id)], Vec::new()).await?;

    // Redis follows Postgres: the other way round, a failed write would leave Redis refusing a live session.
    let Claims { sid, ver, exp, .. } = user.session.claims;
    if logout.everywhere {
        let revoke = RevokeAllSessions { user: user.id };
        app.db()?.execute(revoke).await?;
        admission::revoke(&app, None, user.id, Some(ver + 1)).await;
    } else {
        let expires_at = OffsetDateTime::from_unix_timestamp(exp).map_err(Error::internal)?;
        let revoke = RevokeSession {
            session: sid,
            user: user.id,
            expires_at,
        };
        app.db()?.execute(revoke).await?;

        let remaining = (expires_at - app.now()).unsigned_abs();
        admission::revoke(&app, Some((sid, remaining)), user.id, None).await;
    }

    let removed_cookie = [(header::SET_COOKIE, auth::session_cookie("", 0))];
    Ok((StatusCode::NO_CONTENT, removed_cookie).into_response())
}

/// The signed-in user and what is left of today's messages.
#[utoipa::path(
    get, path = "/api/auth/session", tag = "accounts", security(("bearer" = [])),
    responses((status = 200, body = CurrentSession), (status = 401, body = Problem)),
)]
async fn session(State(app): State<App>, session: Session) -> Result<CurrentSession> {
    CurrentSession::load(&app, session).await
}

fn begin_session(app: &App, user: UserRow, status: StatusCode) -> Result<Response> {
    let token_version = user.token_version;
    let user: Profile = user.into();
    let is_guest = user.plan == Plan::Guest;
    let (token, expires_at) =
        app.tokens()?
            .sign(user.id, app.new_id(), token_version, is_guest, app.now())?;

    let cookie = auth::session_cookie(&token, token::LIFETIME.whole_seconds());
    let session = SignedIn {
        user,
        token,
        expires_at,
    };
    Ok((status, [(header::SET_COOKIE, cookie)], axum::Json(session)).into_response())
}

const EMAIL_TAKEN: Error = Error::Conflict {
    code: "email_taken",
    detail: "An account with this address already exists. Sign in instead.",
};
const INVALID_CREDENTIALS: Error = Error::Unauthorized {
    code: "invalid_credentials",
    detail: "The address or the password is wrong.",
};
const SUSPENDED: Error = Error::Forbidden {
    code: "account_suspended",
    detail: "This account is suspended. Contact us to have it restored.",
};

sql! {
    write InsertUser {
        id: Uuid,
        email: Option<&str>,
        name: Option<&str>,
        password_hash: Option<&str>,
        plan: Plan,
        now: OffsetDateTime,
    } -> UserRow = "
        insert into users (id, email, name, password_hash, plan, created_at)
        values (:id, :email, :name, :password_hash, :plan, :now)
        returning id, email, name, plan, role, token_version, created_at";

    /// Raises the token version, which ends the guest's sessions: their tokens count messages by network, those of the
    /// account do not.
    write UpgradeGuest {
        user: Uuid,
        token_version: i32,
        session: Uuid,
        email: &str,
        name: Option<&str>,
        password_hash: &str,
    } -> UserRow = "
        update users
        set email = :email, name = :name, password_hash = :password_hash, plan = 'free',
          token_version = token_version + 1
        where id = :user and token_version = :token_version and plan = 'guest'
          and suspended_at is null
          and not exists (select from revoked_sessions r where r.sid = :session)
        returning id, email, name, plan, role, token_version, created_at";

    read PasswordByEmail { email: &str } -> PasswordRow = "
        select id, password_hash, suspended_at is not null as suspended
        from users where lower(email) = lower(:email)";

    /// Replaces a hash, unless another request has replaced it.
    write ReplaceHash { user: Uuid, former: Option<&str>, password_hash: &str } -> () = "
        update users set password_hash = :password_hash
        where id = :user and password_hash = :former";

    read UserById { user: Uuid } -> UserRow = "
        select id, email, name, plan, role, token_version, created_at
        from users where id = :user";

    write RevokeSession { session: Uuid, user: Uuid, expires_at: OffsetDateTime } -> () = "
        insert into revoked_sessions (sid, user_id, expires_at)
        values (:session, :user, :expires_at)
        on conflict do nothing";

    write RevokeAllSessions { user: Uuid } -> () = "
        update users set token_version = token_version + 1 where id = :user";
}

row! {
    struct PasswordRow {
        id: Uuid,
        password_hash: Option<String>,
        suspended: bool,
    }
}
