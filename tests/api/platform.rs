//! Rules that hold for every route, and for the tree of files that declares the routes.

use axum::{Router, body::Body, routing::get};
use http::{Method, Request};
use http_body_util::BodyExt;
use iconoclash::{http::serve, identity::auth::Admin};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use tower::ServiceExt;

use crate::{architecture, contract, harness::TestApp};

const PUBLIC: [&str; 9] = [
    "GET /api/health",
    "GET /api/openapi",
    "GET /api/jwks",
    "GET /api/icons",
    "GET /api/plans",
    "POST /api/auth/signup",
    "POST /api/auth/login",
    "POST /api/auth/guest",
    "POST /api/billing/webhook",
];

/// Every route as `METHOD /path` with its statuses, from the document that the routers generate.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let paths = contract::document()["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, operations)| {
        let operations = operations.as_object().unwrap();
        operations.iter().map(move |(method, operation)| {
            let route = format!("{} {path}", method.to_uppercase());
            let statuses = operation["responses"].as_object().unwrap();
            (route, statuses.keys().cloned().collect())
        })
    });
    operations.collect()
}

fn routes() -> BTreeSet<String> {
    documented().into_keys().collect()
}

/// The routes and statuses in the header of a shell, whose lines are `//! METHOD  who  what   200 · 401`.
///
/// Header and document list the same statuses: success, and every refusal that depends on the route. Those are 401 and
/// 403 for the caller, 400 for a malformed query or `Last-Event-ID`, 402 and 429 for a limit, 404 for an id in the path,
/// 409 for a state, 422 for a field, 502 and 503 for Claude, Stripe or the purpose of the route itself. They leave out
/// what any route may answer: 400 for malformed JSON or `Idempotency-Key`, 401 for an invalid token where none is
/// needed, 403 for a foreign origin, 405, 413, 415, 500, and 503 without Postgres.
fn promised(shell: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(shell).unwrap();
    let mut lines = text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim);
    let path = lines.next().unwrap();

    let routes = lines.filter_map(|line| {
        let method = line.split_whitespace().next()?;
        if !["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method) {
            return None;
        }
        let (_, statuses) = line.rsplit_once("   ").expect("statuses at the end");
        let statuses = statuses.split(" · ").map(str::to_owned);
        Some((format!("{method} {path}"), statuses.collect()))
    });
    routes.collect()
}

#[test]
fn the_api_tree_the_binaries_the_headers_and_the_document_agree() {
    let root = architecture::root();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut binaries = BTreeMap::new();
    for section in manifest.split("[[bin]]").skip(1) {
        let value = |key: &str| {
            let line = section.lines().find(|line| line.starts_with(key)).unwrap();
            line.split('"').nth(1).unwrap().to_owned()
        };
        binaries.insert(value("path"), value("name"));
    }

    let mut all_promised = BTreeMap::new();
    for shell in architecture::rust_files(&root.join("api")) {
        let file = shell.strip_prefix(&root).unwrap().to_str().unwrap();
        let stem = file
            .strip_prefix("api/")
            .unwrap()
            .strip_suffix(".rs")
            .unwrap();
        let name = stem.replace('/', "-").replace(['[', ']'], "");
        assert_eq!(binaries.remove(file), Some(name), "[[bin]] of {file}");

        let promised = promised(&shell);
        let path = format!("/api/{}", stem.replace('[', "{").replace(']', "}"));
        assert!(
            !promised.is_empty() && promised.keys().all(|route| route.ends_with(&path)),
            "{file} promises {promised:?}"
        );
        all_promised.extend(promised);

        let lines = fs::read_to_string(&shell).unwrap().lines().count();
        assert!(lines <= 25, "{file} is more than a shell");
    }

    assert_eq!(binaries, BTreeMap::new(), "a [[bin]] without a file");
    assert_eq!(all_promised, documented());
}

#[tokio::test]
async fn without_a_token_only_the_public_routes_answer() {
    let app = TestApp::start().await;
    let public: BTreeSet<String> = PUBLIC.map(str::to_owned).into();
    assert_eq!(public.difference(&routes()).count(), 0);
    for route in routes() {
        let (method, template) = route.split_once(' ').unwrap();
        let path = template.replace("{id}", "01890000-0000-7000-8000-000000000000");
        let method: Method = method.parse().unwrap();
        let answer = app.anonymous().request(method, &path, &[], json!({})).await;
        if public.contains(&route) {
            assert_ne!(answer.status, 401, "{route}");
        } else {
            assert_eq!(answer.problem(), (401, "unauthorized"), "{route}");
        }
    }
}

#[tokio::test]
async fn an_operator_route_is_for_operators_only() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let router = Router::new().route("/operators", get(async |_: Admin| "in"));
    let router = serve::stack(router, app.app.clone());
    let enter = async || {
        let request = ada.prepare(&Method::GET, "/operators", &[], Body::empty());
        router.clone().oneshot(request).await.unwrap()
    };
    assert_eq!(enter().await.status(), 403);
    app.sql("update users set role = 'admin'").await;
    assert_eq!(enter().await.status(), 200);
}

#[tokio::test]
async fn health_needs_no_dependency_and_deep_health_reports_each() {
    let bare = TestApp::with(&[
        ("DATABASE_URL", ""),
        ("UPSTASH_REDIS_REST_URL", ""),
        ("JWT_KEYS", ""),
        ("ANTHROPIC_API_KEYS", ""),
    ])
    .await;
    let anonymous = bare.anonymous();
    assert_eq!(anonymous.get("/api/health").await.json["status"], "ok");

    let head = anonymous
        .request(Method::HEAD, "/api/health", &[], Value::Null)
        .await;
    assert_eq!((head.status.as_u16(), head.json), (200, Value::Null));
    assert_eq!(
        anonymous.get("/api/health?deep=1").await.problem(),
        (401, "unauthorized")
    );

    let secret = [("authorization", "Bearer a-cron-secret-of-32-characters!!")];
    let deep = anonymous
        .request(Method::GET, "/api/health?deep=1", &secret, Value::Null)
        .await;
    assert_eq!(deep.status, 503);
    assert_eq!(deep.json["checks"]["postgres"], "DATABASE_URL is not set");
    assert_eq!(
        deep.json["checks"]["redis"],
        "UPSTASH_REDIS_REST_URL is not set"
    );
    let no_key =
        "there is no Claude key: set ANTHROPIC_API_KEYS, or add one with `iconoclash keys add`";
    assert_eq!(deep.json["checks"]["claude"], no_key);

    assert_eq!(
        anonymous.get("/api/icons").await.problem(),
        (503, "unavailable")
    );

    let app = TestApp::start().await;
    let deep = app
        .anonymous()
        .request(Method::GET, "/api/health?deep=1", &secret, Value::Null)
        .await;
    assert_eq!(
        (deep.status.as_u16(), &deep.json["checks"]),
        (
            200,
            &json!({"claude": "ok", "postgres": "ok", "redis": "ok"})
        )
    );
    assert_eq!(deep.json["claude_keys"], json!({"test": "ok"}));
}

#[tokio::test]
async fn public_lists_are_cacheable_and_revalidated_by_etag() {
    let app = TestApp::start().await;
    for path in ["/api/icons", "/api/plans"] {
        let list = app.anonymous().get(path).await;
        assert!(
            list.header("cache-control").starts_with("public")
                && list.header("vercel-cdn-cache-control").contains("max-age")
        );

        let tag = list.header("etag");
        let weak = format!("\"other\", W/{tag}");
        let current = app
            .anonymous()
            .request(Method::GET, path, &[("if-none-match", &weak)], Value::Null)
            .await;
        assert_eq!(
            (current.status.as_u16(), current.header("etag")),
            (304, tag),
            "{path}"
        );

        let stale = app
            .anonymous()
            .request(
                Method::GET,
                path,
                &[("if-none-match", "\"other\"")],
                Value::Null,
            )
            .await;
        assert_eq!(stale.json, list.json);
    }

    let icons = app.anonymous().get("/api/icons").await.json;
    assert!(icons["data"].as_array().unwrap().len() >= 12);
    let plans = app.anonymous().get("/api/plans").await.json;
    assert_eq!(plans["data"][1]["messages_per_day"], 10);
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_describes_authentication() {
    let app = TestApp::start().await;
    let document = app.anonymous().get("/api/openapi").await.json;
    assert_eq!(&document, contract::document());
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let private: BTreeSet<String> = routes()
        .into_iter()
        .filter(|route| !PUBLIC.contains(&route.as_str()))
        .collect();
    for route in private {
        let (method, path) = route.split_once(' ').unwrap();
        let operation = &document["paths"][path][method.to_lowercase()];
        assert!(
            operation["security"][0]["bearer"].is_array(),
            "{route} does not declare that it needs a token"
        );
        assert!(
            operation["responses"]["401"].is_object(),
            "{route} does not declare 401"
        );
    }
}

#[tokio::test]
async fn a_preflight_allows_configured_origins_only() {
    let app = TestApp::start().await;
    let preflight = async |origin: &str| {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/api/discussions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .body(Body::empty())
            .unwrap();
        let headers = app.call(request).await.headers().clone();
        headers
            .get("access-control-allow-origin")
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        preflight("https://app.iconoclash.test").await.as_deref(),
        Some("https://app.iconoclash.test")
    );
    assert_eq!(preflight("https://evil.test").await, None);
}

#[tokio::test]
async fn a_body_over_the_limit_is_rejected_before_it_is_read() {
    let app = TestApp::start().await;
    // This body announces its length and never arrives, so only the length can have been checked.
    let announced = [("content-length", "10000000")];
    let never = Body::from_stream(futures_util::stream::pending::<
        Result<bytes::Bytes, std::io::Error>,
    >());
    let refused = app
        .anonymous()
        .raw(Method::POST, "/api/auth/login", &announced, never)
        .await;
    assert_eq!(refused.problem(), (413, "body_too_large"));

    let chunks = futures_util::stream::repeat_with(|| {
        Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 16 * 1024]))
    });
    let endless = app
        .anonymous()
        .raw(
            Method::POST,
            "/api/auth/login",
            &[],
            Body::from_stream(chunks),
        )
        .await;
    assert_eq!(endless.problem(), (413, "body_too_large"));
}

#[tokio::test]
async fn a_panic_is_a_problem_document_without_its_cause() {
    let app = TestApp::start().await;
    let router = Router::new().route(
        "/panics",
        get(async || -> &'static str { panic!("the secret cause") }),
    );
    let router = serve::stack(router, app.app.clone());
    let request = Request::builder()
        .uri("/panics")
        .body(Body::empty())
        .unwrap();
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert_eq!(parts.status, 500);
    assert!(
        text.contains(r#""code":"internal""#) && !text.contains("secret"),
        "{text}"
    );
}
