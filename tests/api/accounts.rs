//! Accounts and sessions.

use axum::body::Body;
use futures_util::future::join_all;
use http::Method;
use iconoclash::identity::session_cache;
use serde_json::{Value, json};

use crate::harness::TestApp;

#[tokio::test]
async fn a_new_account_is_signed_in_for_thirty_days_by_token_and_by_cookie() {
    let app = TestApp::start().await;
    let body = json!({"email": " Ada@Example.org ", "password": "correct horse", "name": "Ada"});
    let signed = app.anonymous().post("/api/auth/signup", body).await;
    assert_eq!(signed.status, 201);
    let user = &signed.json["user"];
    assert_eq!(
        (&user["email"], &user["name"], &user["plan"]),
        (&json!("Ada@Example.org"), &json!("Ada"), &json!("free"))
    );

    let cookie = signed.header("set-cookie");
    assert!(
        cookie.starts_with("__Host-session=ey")
            && cookie.ends_with("; Path=/; Max-Age=2592000; Secure; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let ada = app.bearer(signed.json["token"].as_str().unwrap());

    let session = ada.get("/api/auth/session").await;
    assert_eq!(
        (session.status.as_u16(), &session.json["user"]),
        (200, user)
    );
    assert_eq!(session.json["quota"]["remaining"], 10);
    assert_eq!(session.header("x-ratelimit-limit"), "10");

    app.advance(time::Duration::days(30) - time::Duration::MINUTE);
    assert_eq!(ada.get("/api/auth/session").await.status, 200);
    app.advance(time::Duration::MINUTE);
    assert_eq!(
        ada.get("/api/auth/session").await.problem(),
        (401, "invalid_token")
    );
}

#[tokio::test]
async fn an_address_has_one_account_in_any_spelling_even_under_concurrent_sign_ups() {
    let app = TestApp::start().await;
    let tries = ["ada@example.org", "ADA@example.org", "Ada@Example.Org"].map(async |email| {
        app.anonymous()
            .post(
                "/api/auth/signup",
                json!({"email": email, "password": "correct horse"}),
            )
            .await
    });

    let mut answers: Vec<(u16, String)> = join_all(tries)
        .await
        .iter()
        .map(|a| (a.status.as_u16(), a.problem().1.to_owned()))
        .collect();
    answers.sort();
    assert_eq!(
        answers,
        [
            (201, String::new()),
            (409, "email_taken".into()),
            (409, "email_taken".into())
        ]
    );
}

#[tokio::test]
async fn an_unknown_address_gets_the_answer_of_a_wrong_password() {
    let app = TestApp::start().await;
    app.member("ada").await;
    let login = async |email: &str, password: &str| {
        app.anonymous()
            .post(
                "/api/auth/login",
                json!({"email": email, "password": password}),
            )
            .await
    };
    let right = login("ADA@example.org", "correct horse").await;
    assert_eq!(right.status, 200);

    let mut wrong = login("ada@example.org", "wrong horse").await;
    let mut unknown = login("bob@example.org", "x").await;
    assert_eq!(wrong.problem(), (401, "invalid_credentials"));
    for answer in [&mut wrong, &mut unknown] {
        answer.json["request_id"] = Value::Null;
    }
    assert_eq!(wrong.json, unknown.json);

    let mut impossible = login("ada\u{0}@example.org", "correct horse").await;
    impossible.json["request_id"] = Value::Null;
    assert_eq!(impossible.json, unknown.json);

    app.sql("update users set suspended_at = now()").await;
    assert_eq!(
        login("ada@example.org", "wrong horse").await.problem(),
        (401, "invalid_credentials")
    );
    assert_eq!(
        login("ada@example.org", "correct horse").await.problem(),
        (403, "account_suspended")
    );
}

#[tokio::test]
async fn signing_out_ends_this_session_at_once_and_no_other() {
    let app = TestApp::start().await;
    let first = app.member("ada").await;
    let login = json!({"email": "ada@example.org", "password": "correct horse"});
    let second = app.anonymous().post("/api/auth/login", login.clone()).await;
    let second = app.bearer(second.json["token"].as_str().unwrap());
    let discussion = first.discussion().await;

    let out = first.post("/api/auth/logout", Value::Null).await;
    assert_eq!(out.status, 204);
    assert!(
        out.header("set-cookie")
            .contains("__Host-session=; Path=/; Max-Age=0")
    );
    assert_eq!(
        first.get("/api/auth/session").await.problem(),
        (401, "invalid_token")
    );
    assert_eq!(
        first.send(&discussion, "Still here?").await.problem(),
        (401, "invalid_token")
    );
    assert_eq!(second.get("/api/auth/session").await.status, 200);

    let third = app.anonymous().post("/api/auth/login", login).await;
    let third = app.bearer(third.json["token"].as_str().unwrap());
    assert_eq!(
        second
            .post("/api/auth/logout", json!({"everywhere": true}))
            .await
            .status,
        204
    );
    for ended in [&second, &third] {
        assert_eq!(
            ended.get("/api/auth/session").await.problem(),
            (401, "invalid_token")
        );
    }
    assert_eq!(app.claude.requests().len(), 0);
}

#[tokio::test]
async fn suspension_ends_every_session_at_once() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    let user = ada.get("/api/auth/session").await.json["user"]["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    session_cache::invalidate(&app.app, user).await.unwrap();
    app.sql("update users set suspended_at = now()").await;
    assert_eq!(
        ada.send(&discussion, "Hello?").await.problem(),
        (401, "invalid_token")
    );
    assert_eq!(
        ada.get("/api/discussions").await.problem(),
        (401, "invalid_token")
    );
}

#[tokio::test]
async fn a_guest_who_signs_up_keeps_the_discussions_but_not_the_token() {
    let app = TestApp::start().await;
    let guest = app.guest().await;
    let discussion = guest.discussion().await;
    let session = guest.get("/api/auth/session").await;
    assert_eq!(
        (
            &session.json["user"]["plan"],
            &session.json["quota"]["limit"]
        ),
        (&json!("guest"), &json!(3))
    );

    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    let signed = guest.post("/api/auth/signup", body.clone()).await;
    assert_eq!(
        (signed.status.as_u16(), &signed.json["user"]["id"]),
        (201, &session.json["user"]["id"])
    );
    assert_eq!(signed.json["user"]["plan"], "free");

    let ada = app.bearer(signed.json["token"].as_str().unwrap());
    assert_eq!(
        ada.get(&format!("/api/discussions/{discussion}"))
            .await
            .status,
        200
    );
    assert_eq!(
        guest.get("/api/auth/session").await.problem(),
        (401, "invalid_token")
    );
    assert_eq!(
        guest.post("/api/auth/signup", body).await.problem(),
        (409, "email_taken")
    );
    let another = json!({"email": "bob@example.org", "password": "correct horse"});
    let another = guest.post("/api/auth/signup", another).await;
    assert_eq!(another.status, 201);
    assert_ne!(another.json["user"]["id"], signed.json["user"]["id"]);
}

#[tokio::test]
async fn a_guest_whose_address_is_taken_stays_a_guest() {
    let app = TestApp::start().await;
    app.member("ada").await;
    let guest = app.guest().await;

    let taken = guest
        .post(
            "/api/auth/signup",
            json!({"email": "ada@example.org", "password": "correct horse"}),
        )
        .await;
    assert_eq!(taken.problem(), (409, "email_taken"));
    assert_eq!(
        guest.get("/api/auth/session").await.json["user"]["plan"],
        "guest"
    );
}

#[tokio::test]
async fn the_cookie_is_accepted_from_allowed_origins_only() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let cookie = format!(
        "theme=dark; __Host-session={}",
        ada.token.as_deref().unwrap()
    );
    let browser = app.anonymous();
    let create = async |headers: &[(&str, &str)]| {
        browser
            .request(
                Method::POST,
                "/api/discussions",
                headers,
                json!({"icons": ["socrates"]}),
            )
            .await
    };

    let known = create(&[
        ("cookie", &cookie),
        ("origin", "https://app.iconoclash.test"),
    ])
    .await;
    assert_eq!(known.status, 201);
    assert_eq!(
        known.header("access-control-allow-origin"),
        "https://app.iconoclash.test"
    );
    assert!(
        known
            .header("access-control-expose-headers")
            .contains("ratelimit")
    );

    for headers in [
        vec![("cookie", cookie.as_str())],
        vec![("cookie", cookie.as_str()), ("origin", "https://evil.test")],
    ] {
        let refused = create(&headers).await;
        assert_eq!(refused.problem(), (403, "origin_not_allowed"));
        assert_eq!(refused.header("access-control-allow-origin"), "");
    }

    let read = browser
        .request(
            Method::GET,
            "/api/discussions/count",
            &[("cookie", &cookie)],
            Value::Null,
        )
        .await;
    assert_eq!(read.json["total"], 1);
}

#[tokio::test]
async fn an_invalid_token_is_rejected_even_where_none_is_needed() {
    let app = TestApp::start().await;
    let refused = app.bearer("no.such.token").get("/api/plans").await;
    assert_eq!(refused.problem(), (401, "invalid_token"));
    assert_eq!(refused.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn an_invalid_cookie_is_removed() {
    let app = TestApp::start().await;
    app.member("ada").await;
    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    let browser = app.anonymous();
    let origin = ("origin", "https://app.iconoclash.test");

    let invalid = ("cookie", "__Host-session=no.such.token");
    let refused = browser
        .request(Method::GET, "/api/plans", &[origin, invalid], Value::Null)
        .await;
    assert_eq!(refused.problem(), (401, "invalid_token"));
    assert!(
        refused
            .header("set-cookie")
            .starts_with("__Host-session=; Path=/; Max-Age=0;"),
        "{:?}",
        refused.headers
    );

    let signed = browser.post("/api/auth/login", body).await;
    assert_eq!(signed.status, 200);

    // The cookie of an ended session is removed, too, but not where the page sends a token itself.
    let ada = app.bearer(signed.json["token"].as_str().unwrap());
    assert_eq!(ada.post("/api/auth/logout", Value::Null).await.status, 204);
    let cookie = format!("__Host-session={}", ada.token.as_deref().unwrap());
    let ended = browser
        .request(
            Method::GET,
            "/api/auth/session",
            &[("cookie", &cookie)],
            Value::Null,
        )
        .await;
    assert_eq!(ended.problem(), (401, "invalid_token"));
    assert!(
        ended.header("set-cookie").contains("Max-Age=0"),
        "{:?}",
        ended.headers
    );
    let shown = ada
        .request(
            Method::GET,
            "/api/auth/session",
            &[("cookie", &cookie)],
            Value::Null,
        )
        .await;
    assert_eq!(
        (shown.problem(), shown.header("set-cookie")),
        ((401, "invalid_token"), "")
    );

    let wrong = browser
        .request(
            Method::POST,
            "/api/auth/login",
            &[origin],
            json!({"email": "a", "password": "b"}),
        )
        .await;
    assert_eq!(
        (wrong.problem(), wrong.header("set-cookie")),
        ((401, "invalid_credentials"), "")
    );
}

#[tokio::test]
async fn an_invalid_body_names_the_field_and_the_reason() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous();
    let check = async |body: Value, field: &str, message: &str| {
        let refused = anonymous.post("/api/auth/signup", body.clone()).await;
        assert_eq!(refused.problem(), (422, "invalid"), "{body}");
        assert_eq!(
            refused.json["errors"][field], message,
            "{body}: {}",
            refused.json
        );
    };
    check(
        json!({"email": "ada", "password": "correct horse"}),
        "email",
        "must be an e-mail address",
    )
    .await;
    check(
        json!({"email": "a@b.org", "password": "short"}),
        "password",
        "must be at least 8 characters",
    )
    .await;
    check(
        json!({"email": "a@b.org", "password": "x".repeat(201)}),
        "password",
        "must be at most 200 characters",
    )
    .await;
    check(
        json!({"email": "a@b.org", "password": 12345678}),
        "password",
        "must be a string",
    )
    .await;
    check(
        json!({"email": "a@b.org", "password": "correct horse", "name": "x".repeat(81)}),
        "name",
        "must be at most 80 characters",
    )
    .await;
    check(json!({"email": "a@b.org"}), "password", "is missing").await;
    check(
        json!({"email": "a\u{0}@b.org", "password": "correct horse"}),
        "email",
        "must be an e-mail address",
    )
    .await;
    let name = json!({"email": "a@b.org", "password": "correct horse", "name": "A\u{0}"});
    check(name, "name", "must not contain a null character").await;

    let raw = async |headers: &[(&str, &str)], body: &'static str| {
        anonymous
            .raw(Method::POST, "/api/auth/signup", headers, Body::from(body))
            .await
    };
    assert_eq!(
        raw(&[], "{\"email\":").await.problem(),
        (400, "bad_request")
    );
    assert_eq!(raw(&[], "").await.problem(), (400, "bad_request"));
    assert_eq!(
        raw(&[("content-type", "text/plain")], "{}").await.problem(),
        (415, "unsupported_media_type")
    );

    let method = anonymous
        .request(Method::PUT, "/api/auth/signup", &[], Value::Null)
        .await;
    assert_eq!(
        (method.problem(), method.header("allow")),
        ((405, "method_not_allowed"), "POST")
    );
    assert_eq!(
        anonymous.get("/api/nothing").await.problem(),
        (404, "not_found")
    );
}
