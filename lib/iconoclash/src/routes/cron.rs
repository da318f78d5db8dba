//! Jobs that the platform's cron calls. Each is safe to run twice, late, and at the same time.

use axum::extract::State;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    http::error::{Problem, Result},
    identity::auth::Cron,
    spending::reconcile::{self, Report},
};

/// `/api/cron/reconcile`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(reconcile))
}

/// End the replies of dead processes, and compare Redis with the ledger.
#[utoipa::path(
    get, path = "/api/cron/reconcile", tag = "crons", security(("bearer" = [])),
    responses(
        (status = 200, body = Report),
        (status = 401, body = Problem),
        (status = 503, body = Problem),
    ),
)]
async fn reconcile(State(app): State<App>, _: Cron) -> Result<axum::Json<Report>> {
    let report = reconcile::run(&app).await?;

    let json = serde_json::to_string(&report).unwrap_or_default();
    tracing::info!(report = json, "reconciled");
    Ok(axum::Json(report))
}
