//! What machines ask: is it alive, and which keys sign its tokens.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::format_description::well_known::Rfc3339;
use upstash_redis_rs::Command;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use claude::{self, KeyHealth, Pool};
use pooled_postgres::sql_positional;

use crate::{
    api_keys,
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::Query,
    },
    identity::auth::Cron,
};

/// `/api/health`, `/api/jwks`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(jwks))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Depth {
    /// `1` also asks Postgres, Redis and the Claude keys; needs the cron secret.
    deep: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Health {
    #[schema(example = "ok")]
    status: &'static str,
    version: String,
    region: String,
    /// What each dependency said, where they were asked.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    checks: BTreeMap<&'static str, String>,
    /// What each Claude key is known to be, by its label, where they were asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    claude_keys: BTreeMap<String, String>,
}

/// Whether the function answers; with `deep=1`, whether what it needs does.
#[utoipa::path(get, path = "/api/health", tag = "operations", params(Depth),
    responses((status = 200, body = Health), (status = 401, body = Problem), (status = 503, body = Health)))]
async fn health(
    State(app): State<App>,
    headers: HeaderMap,
    Query(depth): Query<Depth>,
) -> Result<Response> {
    let (checks, claude_keys) = if depth.deep.as_deref() == Some("1") {
        Cron::from_headers(&headers, &app)?;
        dependencies(&app).await
    } else {
        Default::default()
    };
    let failed = checks.values().any(|said| said != "ok");
    let (code, status) = if failed {
        (StatusCode::SERVICE_UNAVAILABLE, "failing")
    } else {
        (StatusCode::OK, "ok")
    };
    let config = app.config();
    let health = Health {
        status,
        version: config.version.clone(),
        region: config.region.clone(),
        checks,
        claude_keys,
    };
    Ok((code, axum::Json(health)).into_response())
}

/// The public keys of the session tokens, as a JWK set.
#[utoipa::path(get, path = "/api/jwks", tag = "operations", responses((status = 200, body = serde_json::Value)))]
async fn jwks(State(app): State<App>) -> Result<Response> {
    Ok((PUBLIC_FOR_FIVE_MINUTES, axum::Json(app.tokens()?.jwks())).into_response())
}

const PUBLIC_FOR_FIVE_MINUTES: [(header::HeaderName, &str); 1] =
    [(header::CACHE_CONTROL, "public, s-maxage=300, max-age=60")];

async fn dependencies(app: &App) -> (BTreeMap<&'static str, String>, BTreeMap<String, String>) {
    let postgres =
        async { Ok::<_, Error>(app.db()?.old_execute(&ANSWERS, &[]).await.map(|_| ())?) };
    let ping = Command::new("PING").idempotent();
    let redis = async { Ok::<_, Error>(app.redis()?.exec::<String>(&ping).await.map(|_| ())?) };
    let (postgres, redis, keys) = tokio::join!(postgres, redis, api_keys::up_to_date(app));
    let keys = keys.map(Pool::health);
    let claude = match &keys {
        Ok(keys) if keys.is_empty() => Err(Error::unavailable(claude::Error::NoKey)),
        Ok(keys) if keys.iter().all(|(_, health)| *health != KeyHealth::Ready) => {
            Err(Error::unavailable("every key is left alone for now"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Internal(error.to_string().into())),
    };
    let shown = |health| match health {
        KeyHealth::Ready => "ok".to_owned(),
        KeyHealth::Cooling(until) => format!(
            "left alone until {}",
            until.format(&Rfc3339).unwrap_or_default()
        ),
    };
    let keys = keys
        .unwrap_or_default()
        .into_iter()
        .map(|(label, health)| (label, shown(health)))
        .collect();
    let said = |result: Result<()>| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.cause(),
    };
    let checks = [
        ("postgres", said(postgres)),
        ("redis", said(redis)),
        ("claude", said(claude)),
    ];
    (checks.into(), keys)
}

sql_positional! {
    read ANSWERS() -> () = "select";
}
