//! What anybody may see and a CDN may keep: the icons and the plans.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    http::error::{Error, Problem, Result},
    identity::auth::Visitor,
    spending::plan,
};

/// `/api/icons`, `/api/plans`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(icons))
        .routes(routes!(plans))
}

/// All of something that is short enough to be listed at once.
#[derive(Debug, Serialize, ToSchema)]
struct List<T> {
    data: Vec<T>,
}

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

/// What can be subscribed to.
#[derive(Debug, Serialize, ToSchema)]
struct Plan {
    plan: plan::Plan,
    /// A month, in micro-dollars.
    price_microusd: i64,
    /// A UTC day.
    messages_per_day: u32,
    /// The longest reply.
    max_output_tokens: u32,
    model: String,
}

/// The personas.
#[utoipa::path(get, path = "/api/icons", tag = "catalog",
    responses((status = 200, body = List<Icon>), (status = 304, description = "The caller's copy is current"), (status = 429, body = Problem)))]
async fn icons(State(app): State<App>, visitor: Visitor, headers: HeaderMap) -> Result<Response> {
    visitor.check_read_limit(&app).await?;
    let rows = app.db()?.old_all(&OFFERED, &[]).await?;
    let data = rows
        .into_iter()
        .map(
            |IconRow {
                 slug,
                 name,
                 era,
                 tagline,
             }| Icon {
                slug,
                name,
                era,
                tagline,
            },
        )
        .collect();
    cacheable(&headers, &List { data })
}

/// The plans, their prices and limits.
#[utoipa::path(get, path = "/api/plans", tag = "catalog",
    responses((status = 200, body = List<Plan>), (status = 304, description = "The caller's copy is current"), (status = 429, body = Problem)))]
async fn plans(State(app): State<App>, visitor: Visitor, headers: HeaderMap) -> Result<Response> {
    visitor.check_read_limit(&app).await?;
    let (quotas, models) = (app.config().quotas.clone()?, app.config().models.clone()?);
    let data = plan::Plan::ALL.map(|plan| Plan {
        plan,
        price_microusd: plan.price_microusd(),
        messages_per_day: plan.messages_per_day(&quotas),
        max_output_tokens: plan.max_output_tokens(),
        model: plan.model(&models).to_owned(),
    });
    cacheable(&headers, &List { data: data.into() })
}

/// An answer that browsers keep for a minute and the CDN for an hour, renewing it in the background for a day.
fn cacheable(request: &HeaderMap, answer: &impl Serialize) -> Result<Response> {
    let body = serde_json::to_vec(answer).map_err(|error| Error::Internal(error.into()))?;
    let digest = Sha256::digest(&body);
    let etag = format!(
        "\"{}\"",
        digest[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    );
    let headers = [
        (header::CACHE_CONTROL.as_str(), "public, max-age=60"),
        (
            "vercel-cdn-cache-control",
            "max-age=3600, stale-while-revalidate=86400",
        ),
        (header::ETAG.as_str(), &etag),
        (header::CONTENT_TYPE.as_str(), "application/json"),
    ];
    // A CDN that compresses turns our strong tag into a weak one; the copy is the same.
    let known = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut known = known
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"));
    if known.any(|tag| tag == etag || tag == "*") {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    Ok((headers, body).into_response())
}

sql_positional! {
    read OFFERED() -> IconRow = "
        select slug, name, era, tagline from icons where not retired order by position, slug";
}

row! {
    struct IconRow { slug: String, name: String, era: String, tagline: String }
}
