//! What clients send when they sign in and up: stale tokens, spellings of one address or password, wrong tries.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, TestApp};

const ORIGIN: (&str, &str) = ("origin", "https://app.iconoclash.test");

/// Values of `Authorization` that do not sign a caller in. Those with the scheme `Bearer` are bad tokens.
const USELESS: [&str; 12] = [
    "",
    "null",
    "undefined",
    "no.such.token",
    "Basic eDp5",
    "Digest username=\"ada\"",
    "Token no.such.token",
    "Bearer",
    "Bearer null",
    "Bearer undefined",
    "bearer no.such.token",
    "Bearer Bearer no.such.token",
];

async fn post(app: &TestApp, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    let visitor = app.anonymous();
    visitor.request(Method::POST, path, headers, body).await
}

fn account(name: &str) -> Value {
    json!({"email": format!("{name}@example.org"), "password": "correct horse"})
}

/// Tokens that were right once: expired, signed out, of a guest who has signed up, and of another service.
async fn stale_tokens(app: &TestApp) -> Vec<String> {
    let expired = app.guest().await;
    app.advance(time::Duration::days(31));

    let signed_out = app.guest().await;
    signed_out.post("/api/auth/logout", Value::Null).await;
    let former_guest = app.guest().await;
    let upgraded = former_guest.post("/api/auth/signup", account("former"));
    assert_eq!(upgraded.await.status, 201);
    let elsewhere = TestApp::with(&[("PUBLIC_URL", "https://other.test")]).await;
    let foreign = elsewhere.guest().await;

    let stale = [expired, signed_out, former_guest, foreign];
    stale.map(|actor| actor.token.unwrap()).to_vec()
}

#[tokio::test]
async fn a_token_that_is_not_live_changes_nothing_where_a_new_one_is_given() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let stale = stale_tokens(&app).await;

    let mut headers: Vec<Vec<(&str, String)>> = Vec::new();
    for value in USELESS {
        headers.push(vec![("authorization", value.to_owned())]);
    }
    for token in &stale {
        let cookie = format!("__Host-session={token}");
        headers.push(vec![("authorization", format!("Bearer {token}"))]);
        headers.push(vec![("cookie", cookie.clone())]);
        headers.push(vec![("cookie", cookie), ("origin", ORIGIN.1.to_owned())]);
    }
    headers.push(vec![("cookie", "__Host-session=".to_owned())]);
    // A token of an account changes nothing, either.
    let of_account = format!("Bearer {}", ada.token.as_deref().unwrap());
    headers.push(vec![("authorization", of_account)]);

    for (number, headers) in headers.iter().enumerate() {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        for (path, body, expected) in [
            ("/api/auth/login", account("ada"), 200),
            ("/api/auth/guest", Value::Null, 201),
            ("/api/auth/signup", account(&format!("u{number}")), 201),
        ] {
            let answer = post(&app, path, &headers, body).await;
            assert_eq!(
                answer.status, expected,
                "{path} {headers:?}: {}",
                answer.json
            );
            assert!(answer.header("set-cookie").starts_with("__Host-session=ey"));
        }
        app.advance(time::Duration::MINUTE);
    }
}

#[tokio::test]
async fn elsewhere_a_bad_bearer_token_is_401_and_another_scheme_leaves_the_cookie_to_count() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let cookie = format!("__Host-session={}", ada.token.as_deref().unwrap());

    let get = async |path: &str, headers: &[(&str, &str)]| {
        let visitor = app.anonymous();
        visitor
            .request(Method::GET, path, headers, Value::Null)
            .await
    };
    for value in USELESS {
        let is_ours = value.to_lowercase().starts_with("bearer");
        let header = ("authorization", value);

        let alone = get("/api/auth/session", &[header]).await;
        let public = get("/api/plans", &[header]).await;
        let with_cookie = get("/api/auth/session", &[header, ("cookie", &cookie)]).await;
        match is_ours {
            true => {
                assert_eq!(alone.problem(), (401, "invalid_token"), "{value}");
                assert_eq!(public.problem(), (401, "invalid_token"), "{value}");
                assert_eq!(with_cookie.problem(), (401, "invalid_token"), "{value}");
                assert_eq!(with_cookie.header("set-cookie"), "", "{value}");
            }
            false => {
                assert_eq!(alone.problem(), (401, "unauthorized"), "{value}");
                assert_eq!(public.status, 200, "{value}");
                assert_eq!(with_cookie.status, 200, "{value}");
            }
        }
    }
}

#[tokio::test]
async fn a_guest_is_found_by_header_and_by_cookie_even_behind_a_useless_header() {
    let app = TestApp::start().await;
    for (number, header) in [None].into_iter().chain(USELESS.map(Some)).enumerate() {
        let guest = app.guest().await;
        let id = guest.id().await;
        let cookie = format!("__Host-session={}", guest.token.as_deref().unwrap());
        let mut headers = vec![("cookie", cookie.as_str())];
        headers.extend(header.map(|value| ("authorization", value)));
        let body = account(&format!("guest{number}"));

        // Another page must not turn the guest into an account of its own choice.
        let from_elsewhere = post(&app, "/api/auth/signup", &headers, body.clone()).await;
        assert_eq!(
            from_elsewhere.problem(),
            (403, "origin_not_allowed"),
            "{header:?}"
        );

        headers.push(ORIGIN);
        let signed = post(&app, "/api/auth/signup", &headers, body).await;
        assert_eq!(signed.status, 201, "{header:?}: {}", signed.json);
        assert_eq!(signed.json["user"]["id"], id, "{header:?}");
    }
}
