//! Stopping a reply. Whoever is asked to stop it and whoever produces it are different processes, as each endpoint is a
//! function of its own, so what the one wants is written where the other looks.

use axum::extract::State;
use http::StatusCode;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::Path,
    },
    identity::auth::User,
    spending::reconcile,
};

/// Most replies are over before anybody can want to stop them, so nobody looks at once.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// With the flight that tells it, a stop is noticed within a second.
const LOOK_EVERY: Duration = Duration::from_millis(900);

/// Stop a running reply at the provider. What was written stays, with `status` stopped.
#[utoipa::path(post, path = "/api/messages/{id}/stop", tag = "messages", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The reply's id")),
    responses((status = 202, description = "It stops within a second"), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn stop(
    State(app): State<App>,
    user: User,
    Path(reply): Path<Uuid>,
) -> Result<StatusCode> {
    let found = app
        .db()?
        .old_optional(&STOP, &[&reply, &user.id, &app.now()])
        .await?
        .ok_or(Error::NotFound)?;
    if found.asked {
        return Ok(StatusCode::ACCEPTED);
    }
    if found.streaming {
        // Its producer died.
        reconcile::end_expired(&app, Some(found.discussion_id)).await?;
    }
    Err(NOT_RUNNING)
}

const NOT_RUNNING: Error = Error::Conflict {
    code: "reply_not_running",
    detail: "This reply has ended; there is nothing to stop.",
};

/// When a producer looks whether its reply is to stop.
pub(super) fn looks() -> Interval {
    let mut looks = interval_at(Instant::now() + FIRST_LOOK, LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Waits until a reply is to stop.
pub(super) async fn wanted(app: &App, reply: Uuid, looks: &mut Interval) {
    loop {
        looks.tick().await;
        if is_wanted(app, reply).await {
            return;
        }
    }
}

/// Whether a reply is to stop; not where that cannot be told now.
pub(super) async fn is_wanted(app: &App, reply: Uuid) -> bool {
    let asked = async { Ok::<_, Error>(app.db()?.old_optional(&IS_WANTED, &[&reply]).await?) };
    matches!(asked.await, Ok(Some(true)))
}

row! {
    struct StopRow { asked: bool, streaming: bool, discussion_id: Uuid }
}

sql_positional! {
    write STOP(UUID, UUID, TIMESTAMPTZ) -> StopRow = "
        with found as (
          select m.id, m.status, m.discussion_id from messages m
          join discussions d on d.id = m.discussion_id and d.user_id = $2
          where m.id = $1 and m.role = 'assistant'
        ), asked as (
          update messages m set stop_requested_at = coalesce(m.stop_requested_at, $3)
          from found where m.id = found.id and m.status = 'streaming' and m.lease_expires_at > $3
          returning m.id
        )
        select exists (select from asked) as asked, status = 'streaming' as streaming, discussion_id from found";

    read IS_WANTED(UUID) -> bool = "select stop_requested_at is not null from messages where id = $1";
}
