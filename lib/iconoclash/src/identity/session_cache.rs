//! Whether a session is live: the state of a user's sessions, cached in Redis.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use upstash_redis_rs::Command;
use uuid::Uuid;

use super::{
    session::{INVALID_TOKEN, Session, User},
    token::Claims,
    user::{Profile, SessionStateRow},
};
use crate::{
    app::App,
    cache::{self, Cached},
    http::{error::Result, request_log},
    spending::redis_keys,
};

/// A user who is not suspended, and which of the user's sessions are live.
#[derive(Debug, Serialize, Deserialize)]
struct SessionState {
    profile: Profile,
    version: i32,
    /// Sessions that were revoked one by one and whose tokens have not expired.
    revoked: Vec<Uuid>,
}

impl From<SessionStateRow> for SessionState {
    fn from(mut row: SessionStateRow) -> Self {
        Self {
            version: row.token_version,
            revoked: std::mem::take(&mut row.revoked),
            profile: row.into(),
        }
    }
}

/// The user of a session, from the cache if possible. Fails if the session has ended.
///
/// `extra_commands` are other Redis reads to send in the same request; each result is `None` where it failed.
pub(crate) async fn load_user(
    app: &App,
    session: Session,
    extra_commands: Vec<Command>,
) -> Result<(User, Vec<Option<Value>>)> {
    let cached = Cached::Session(session.claims.sub);
    let mut commands = vec![cached.command()];
    commands.extend(extra_commands);

    let mut answers: Vec<Option<Value>> = match app.redis_pipeline(&commands).await {
        Ok(results) => results.into_iter().map(Result::ok).collect(),
        Err(error) => {
            request_log::degraded(&error);
            vec![None; commands.len()]
        }
    };
    let extra_answers = answers.split_off(1);
    let answer = answers.pop().flatten();

    // A cached state that is older than the token predates an invalidation that Redis missed.
    let is_fresh = |state: &SessionState| state.version >= session.claims.ver;
    let load = async || load_state(app, &session.claims).await;
    let state = cached.get_or_load(app, answer, is_fresh, load).await?;

    Ok((live_user(session, state)?, extra_answers))
}

/// The user of a session, as Postgres has it now. Fails if the session has ended.
pub(super) async fn load_user_uncached(app: &App, session: Session) -> Result<User> {
    let state = load_state(app, &session.claims).await?;
    live_user(session, state)
}

/// Invalidates the cached sessions and plan of a user. Call it before changing a user's plan, role, suspension or name,
/// so that the next request of every session sees the change.
pub async fn invalidate(app: &App, user: Uuid) -> Result<()> {
    let forget_plan = redis_keys::forget_plan_command(user);
    cache::invalidate(app, &[Cached::Session(user)], vec![forget_plan]).await
}

async fn load_state(app: &App, claims: &Claims) -> Result<SessionState> {
    let statement = SessionStateOfUser {
        user: claims.sub,
        now: app.now(),
    };
    let row = app.db()?.optional(statement).await?;
    Ok(row.ok_or(INVALID_TOKEN)?.into())
}

fn live_user(session: Session, state: SessionState) -> Result<User> {
    let Claims { sub, sid, ver, .. } = session.claims;
    let is_live = state.profile.id == sub && state.version == ver && !state.revoked.contains(&sid);
    if !is_live {
        return Err(INVALID_TOKEN);
    }

    Ok(User {
        id: sub,
        session,
        profile: state.profile,
    })
}

pooled_postgres::sql! {
    read SessionStateOfUser { user: Uuid, now: OffsetDateTime } -> SessionStateRow = "
        select u.id, u.email, u.name, u.plan, u.role, u.token_version, u.created_at,
          array(
            select r.sid from revoked_sessions r
            where r.user_id = u.id and r.expires_at > :now
          ) as revoked
        from users u
        where u.id = :user and u.suspended_at is null";
}
