//! What the platform's cron calls. Each job is safe to run twice, late, and at the same time.

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

/// Ends what dead processes left and compares Redis with the ledger.
#[utoipa::path(get, path = "/api/cron/reconcile", tag = "crons", security(("bearer" = [])),
    responses((status = 200, body = Report), (status = 401, body = Problem), (status = 503, body = Problem)))]
async fn reconcile(State(app): State<App>, _: Cron) -> Result<axum::Json<Report>> {
    let report = reconcile::run(&app).await?;
    tracing::info!(report = %serde_json::to_string(&report).unwrap_or_default(), "reconciled");
    Ok(axum::Json(report))
}
