//! For machines: whether the service is healthy, and the public keys of its tokens.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use upstash_redis_rs::Command;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use claude::{KeyHealth, Pool};
use pooled_postgres::sql;

use crate::{
    api_keys,
    app::App,
    clock::rfc3339,
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

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Depth {
    /// `1` also checks Postgres, Redis and the Claude keys; needs the cron secret.
    deep: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Health {
    #[schema(example = "ok")]
    status: &'static str,
    version: String,
    region: String,
    /// By dependency, where they were checked: `ok`, or what failed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    checks: BTreeMap<&'static str, String>,
    /// By the label of a Claude key, where they were checked: `ok`, or how long it is cooling down.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    claude_keys: BTreeMap<String, String>,
}

/// The state of each dependency. Empty unless it was checked.
#[derive(Default)]
struct Dependencies {
    checks: BTreeMap<&'static str, String>,
    claude_keys: BTreeMap<String, String>,
}

/// Whether the function answers; with `deep=1`, whether its dependencies work.
#[utoipa::path(
    get, path = "/api/health", tag = "operations", params(Depth),
    responses(
        (status = 200, body = Health),
        (status = 401, body = Problem),
        (status = 503, body = Health),
    ),
)]
async fn health(
    State(app): State<App>,
    headers: HeaderMap,
    Query(depth): Query<Depth>,
) -> Result<Response> {
    let Dependencies {
        checks,
        claude_keys,
    } = if depth.deep.as_deref() == Some("1") {
        Cron::from_headers(&headers, &app)?;
        check_dependencies(&app).await
    } else {
        Dependencies::default()
    };

    let (code, status) = match checks.values().all(|state| state == "ok") {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "failing"),
    };
    let health = Health {
        status,
        version: app.config().version.clone(),
        region: app.config().region.clone(),
        checks,
        claude_keys,
    };
    Ok((code, axum::Json(health)).into_response())
}

/// The public keys of the session tokens, as a JWK set.
#[utoipa::path(
    get, path = "/api/jwks", tag = "operations",
    responses((status = 200, body = serde_json::Value)),
)]
async fn jwks(State(app): State<App>) -> Result<Response> {
    let keys = app.tokens()?.jwks();
    Ok((PUBLIC_FOR_FIVE_MINUTES, axum::Json(keys)).into_response())
}

const PUBLIC_FOR_FIVE_MINUTES: [(header::HeaderName, &str); 1] =
    [(header::CACHE_CONTROL, "public, s-maxage=300, max-age=60")];

async fn check_dependencies(app: &App) -> Dependencies {
    let (postgres, redis, pool) = tokio::join!(
        ping_postgres(app),
        ping_redis(app),
        api_keys::synced_pool(app)
    );
    let keys = pool.map(Pool::health);

    let checks = [
        ("postgres", state(postgres)),
        ("redis", state(redis)),
        ("claude", state(check_keys(&keys))),
    ];
    let claude_keys = keys
        .unwrap_or_default()
        .into_iter()
        .map(|(label, health)| (label, key_state(health)));
    Dependencies {
        checks: checks.into(),
        claude_keys: claude_keys.collect(),
    }
}

async fn ping_postgres(app: &App) -> Result<()> {
    app.db()?.execute(SelectNothing).await?;
    Ok(())
}

async fn ping_redis(app: &App) -> Result<()> {
    let ping = Command::new("PING").idempotent();
    app.redis()?.exec::<String>(&ping).await?;
    Ok(())
}

/// Fails unless at least one key can be used now.
fn check_keys(keys: &Result<Vec<(String, KeyHealth)>>) -> Result<()> {
    match keys {
        Ok(keys) if keys.is_empty() => Err(Error::unavailable(api_keys::NO_KEY)),
        Ok(keys) if keys.iter().any(|(_, health)| *health == KeyHealth::Ready) => Ok(()),
        Ok(_) => Err(Error::unavailable("every key is cooling down")),
        Err(error) => Err(Error::internal(error.to_string())),
    }
}

fn state(result: Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.cause(),
    }
}

fn key_state(health: KeyHealth) -> String {
    match health {
        KeyHealth::Ready => "ok".to_owned(),
        KeyHealth::Cooling(until) => {
            let until = rfc3339::format(until).unwrap_or_default();
            format!("cooling down until {until}")
        }
    }
}

sql! {
    read SelectNothing -> () = "select";
}
