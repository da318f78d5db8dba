//! Stopping a reply.
//!
//! The request to stop and the producer of the reply run in different functions, so the request sets a flag in the
//! reply's row, and the producer polls it.

use std::time::Duration;

use axum::extract::State;
use http::StatusCode;
use pooled_postgres::{row, sql};
use time::OffsetDateTime;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use uuid::Uuid;

use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::Path,
    },
    identity::auth::User,
    spending::reconcile,
};

/// Most replies end before a person can want to stop them, so the first poll comes late.
const FIRST_POLL: Duration = Duration::from_secs(1);
/// Together with the statement itself, a stop is noticed within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(900);

/// Stop a running reply at the provider. The text so far stays, with `status` stopped.
#[utoipa::path(
    post,
    path = "/api/messages/{id}/stop",
    tag = "messages",
    security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The reply's id")),
    responses(
        (status = 202, description = "The reply stops within a second"),
        (status = 401, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
    )
)]
pub(super) async fn stop(
    State(app): State<App>,
    user: User,
    Path(reply): Path<Uuid>,
) -> Result<StatusCode> {
    let request = RequestStop {
        reply,
        user: user.id,
        now: app.now(),
    };
    let found = app.db()?.optional(request).await?.ok_or(Error::NotFound)?;

    if found.requested {
        return Ok(StatusCode::ACCEPTED);
    }
    if found.streaming {
        // The producer's lease has expired, so its process is dead.
        reconcile::end_expired(&app, Some(found.discussion_id)).await?;
    }
    Err(NOT_RUNNING)
}

const NOT_RUNNING: Error = Error::Conflict {
    code: "reply_not_running",
    detail: "This reply has already ended.",
};

/// The timer by which a producer polls the stop flag.
pub(super) fn poll_timer() -> Interval {
    let mut timer = interval_at(Instant::now() + FIRST_POLL, POLL_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Waits until a stop is requested.
pub(super) async fn wait_for_stop(app: &App, reply: Uuid, timer: &mut Interval) {
    loop {
        timer.tick().await;
        if stop_requested(app, reply).await {
            return;
        }
    }
}

/// Whether a begun reply must stop: a stop is requested, or the reply was deleted with its discussion. A database that
/// does not answer counts as no.
pub(super) async fn must_stop(app: &App, reply: Uuid) -> bool {
    let answer = async { Ok::<_, Error>(app.db()?.optional(StopRequested { reply }).await?) };
    answer.await.is_ok_and(|stop| stop.unwrap_or(true))
}

/// Whether a stop is requested. The reply may not be written yet.
async fn stop_requested(app: &App, reply: Uuid) -> bool {
    let answer = async { Ok::<_, Error>(app.db()?.optional(StopRequested { reply }).await?) };
    answer.await.is_ok_and(|stop| stop.unwrap_or(false))
}

row! {
    struct StopRow { requested: bool, streaming: bool, discussion_id: Uuid }
}

sql! {
    write RequestStop { reply: Uuid, user: Uuid, now: OffsetDateTime } -> StopRow = "
        with found as (
          select m.id, m.status, m.discussion_id from messages m
          join discussions d on d.id = m.discussion_id and d.user_id = :user
          where m.id = :reply and m.role = 'assistant'
        ), requested as (
          update messages m set stop_requested_at = coalesce(m.stop_requested_at, :now)
          from found where m.id = found.id and m.status = 'streaming' and m.lease_expires_at > :now
          returning m.id
        )
        select exists (select from requested) as requested, status = 'streaming' as streaming, discussion_id from found";

    read StopRequested { reply: Uuid } -> bool =
        "select stop_requested_at is not null from messages where id = :reply";
}
