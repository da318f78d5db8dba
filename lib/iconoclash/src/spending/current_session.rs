//! The signed-in user and today's quota, as clients show them.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{admission, quota::Quota, redis_keys, subject::Subject};
use crate::{
    app::App,
    http::error::Result,
    identity::{
        auth::{Profile, Session},
        session_cache,
    },
};

/// The signed-in user and today's quota.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CurrentSession {
    user: Profile,
    quota: Quota,
}

impl CurrentSession {
    /// Fails if the session has ended.
    pub(crate) async fn load(app: &App, session: Session) -> Result<Self> {
        let subject = Subject::from_session(&session, app)?;
        let now = app.now();
        let count = redis_keys::messages_command(&subject, now);
        let (user, counted) = session_cache::load_user(app, session, vec![count]).await?;

        let cached = counted
            .into_iter()
            .next()
            .flatten()
            .and_then(|count| count.as_str()?.parse().ok());
        let messages = match cached {
            Some(messages) => messages,
            None => admission::messages(app, &subject, now).await?,
        };

        let quotas = app.config().quotas()?;
        let limit = user.profile.plan.messages_per_day(quotas);
        let quota = Quota::new(limit, u32::try_from(messages).unwrap_or_default(), now);
        Ok(Self {
            user: user.profile,
            quota,
        })
    }
}

impl IntoResponse for CurrentSession {
    fn into_response(self) -> Response {
        (self.quota.headers(), Json(self)).into_response()
    }
}
