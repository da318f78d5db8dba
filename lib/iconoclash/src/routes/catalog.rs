//! Public lists that a CDN may cache: the icons and the plans.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use pooled_postgres::{row, sql};

use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::IfNoneMatch,
    },
    identity::auth::Visitor,
    spending::plan::Plan,
};

/// `/api/icons`, `/api/plans`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(icons))
        .routes(routes!(plans))
}

/// A list that is short enough for one page.
#[derive(Debug, Serialize, ToSchema)]
struct List<T> {
    data: Vec<T>,
}

/// What can be subscribed to.
#[derive(Debug, Serialize, ToSchema)]
struct PlanOffer {
    plan: Plan,
    /// Per month, in micro-dollars.
    price_microusd: i64,
    /// Per UTC day.
    messages_per_day: u32,
    /// The longest reply.
    max_output_tokens: u32,
    model: String,
}

/// The personas.
#[utoipa::path(
    get, path = "/api/icons", tag = "catalog",
    responses(
        (status = 200, body = List<Icon>),
        (status = 304, description = "The client's copy is current"),
        (status = 429, body = Problem),
    ),
)]
async fn icons(
    State(app): State<App>,
    visitor: Visitor,
    if_none_match: IfNoneMatch,
) -> Result<Response> {
    visitor.check_read_limit(&app).await?;

    let data = app.db()?.all(OfferedIcons).await?;

    cacheable(&if_none_match, &List { data })
}

/// The plans, their prices and limits.
#[utoipa::path(
    get, path = "/api/plans", tag = "catalog",
    responses(
        (status = 200, body = List<PlanOffer>),
        (status = 304, description = "The client's copy is current"),
        (status = 429, body = Problem),
    ),
)]
async fn plans(
    State(app): State<App>,
    visitor: Visitor,
    if_none_match: IfNoneMatch,
) -> Result<Response> {
    visitor.check_read_limit(&app).await?;

    let quotas = app.config().quotas()?;
    let models = app.config().models()?;
    let data = Plan::ALL.map(|plan| PlanOffer {
        plan,
        price_microusd: plan.price_microusd(),
        messages_per_day: plan.messages_per_day(quotas),
        max_output_tokens: plan.max_output_tokens(),
        model: plan.model(models).to_owned(),
    });

    cacheable(&if_none_match, &List { data: data.into() })
}

/// A response that browsers cache for a minute and the CDN for an hour. For a day more the CDN serves its copy while it
/// fetches a new one.
fn cacheable(if_none_match: &IfNoneMatch, list: &impl Serialize) -> Result<Response> {
    let body = serde_json::to_vec(list).map_err(Error::internal)?;
    let etag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..12]));
    let headers = [
        (header::CACHE_CONTROL.as_str(), "public, max-age=60"),
        (
            "vercel-cdn-cache-control",
            "max-age=3600, stale-while-revalidate=86400",
        ),
        (header::ETAG.as_str(), &etag),
        (header::CONTENT_TYPE.as_str(), "application/json"),
    ];

    if if_none_match.matches(&etag) {
        Ok((StatusCode::NOT_MODIFIED, headers).into_response())
    } else {
        Ok((headers, body).into_response())
    }
}

sql! {
    read OfferedIcons -> Icon = "
        select slug, name, era, tagline from icons
        where not retired
        order by position, slug";
}

row! {
    /// A persona to argue with.
    #[derive(Debug, Serialize, ToSchema)]
    struct Icon {
        /// Names the icon in `POST /api/discussions`.
        #[schema(example = "socrates")]
        slug: String,
        name: String,
        era: String,
        tagline: String,
    }
}
