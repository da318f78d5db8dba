//! What clients send when they sign in and up: stale tokens, spellings of one address or password, wrong tries.

use futures_util::future::join_all;
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

#[tokio::test]
async fn an_address_and_a_password_are_the_same_in_every_form_of_their_characters() {
    let app = TestApp::start().await;
    for (number, (email, same_email, password, same_password)) in [
        (
            "jos\u{e9}0@example.org",
            "jose\u{301}0@example.org",
            "caf\u{e9} noir",
            "cafe\u{301} noir",
        ),
        (
            "jose\u{301}1@example.org",
            "jos\u{e9}1@example.org",
            "cafe\u{301} noir",
            "caf\u{e9} noir",
        ),
        (
            "ada2@example.org",
            "\u{200b}ADA2@example.org\u{feff}",
            "correct horse",
            "\u{ff43}orrect horse",
        ),
        (
            "\u{202a}ada3@example.org\u{202c}",
            "ada3@example.org",
            "correct horse",
            "correct\u{a0}horse",
        ),
        (
            "ada4@b\u{fc}cher.de",
            "ada4@bu\u{308}cher.de",
            "\u{fb01}ne weather",
            "fine weather",
        ),
        (
            "\u{d55c}5@example.org",
            "\u{1112}\u{1161}\u{11ab}5@example.org",
            "\u{d55c}\u{ae00} 12345",
            "\u{1112}\u{1161}\u{11ab}\u{ae00} 12345",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let sign = async |path: &str, email: &str, password: &str| {
            let body = json!({"email": email, "password": password});
            post(&app, path, &[], body).await
        };
        let signed = sign("/api/auth/signup", email, password).await;
        assert_eq!(signed.status, 201, "{number}: {}", signed.json);

        let again = sign("/api/auth/signup", same_email, same_password).await;
        assert_eq!(again.problem(), (409, "email_taken"), "{number}");
        for (email, password) in [(email, password), (same_email, same_password)] {
            let signed_in = sign("/api/auth/login", email, password).await;
            assert_eq!(signed_in.status, 200, "{number}");
            assert_eq!(
                signed_in.json["user"]["id"], signed.json["user"]["id"],
                "{number}"
            );
        }
        let wrong = sign("/api/auth/login", same_email, "cafe noir").await;
        assert_eq!(wrong.problem(), (401, "invalid_credentials"), "{number}");
    }

    for refused in [
        "mailto:ada@example.org",
        "a\u{200b}da@example.org",
        "ada@exam\u{ad}ple.org",
    ] {
        let body = json!({"email": refused, "password": "correct horse"});
        let answer = post(&app, "/api/auth/signup", &[], body).await;
        assert_eq!(answer.problem(), (422, "invalid"), "{refused}");
        assert_eq!(answer.json["errors"]["email"], "must be an e-mail address");
    }
}

#[tokio::test]
async fn a_hash_of_a_password_as_typed_still_signs_in_and_is_replaced() {
    let app = TestApp::start().await;
    app.member("ada").await;
    // Of "cafe\u{301} noir", as it was typed.
    app.sql("update users set password_hash = '$argon2id$v=19$m=19456,t=2,p=1$KaO8ssWAEPHxyqeoo+MxyQ$5OWihI38ChMQkzTta3SiyYiF/QLoQ5iiSfu6FQODJC8'").await;
    let login = async |password: &str| {
        let body = json!({"email": "ada@example.org", "password": password});
        post(&app, "/api/auth/login", &[], body).await.status
    };

    assert_eq!(
        login("caf\u{e9} noir").await,
        401,
        "the other form is not known yet"
    );
    assert_eq!(login("cafe\u{301} noir").await, 200);
    assert_eq!(login("caf\u{e9} noir").await, 200);
    assert_eq!(login("cafe\u{301} noir").await, 200);
    assert_eq!(login("cafe noir").await, 401);
}

/// Tries to sign in as Ada from an address.
async fn sign_in(app: &TestApp, ip: &str, password: &str) -> Answer {
    let mut visitor = app.anonymous();
    visitor.ip = ip.to_owned();
    let body = json!({"email": "ada@example.org", "password": password});
    visitor.post("/api/auth/login", body).await
}

const RIGHT: &str = "correct horse";
const WRONG: &str = "wrong horse";
/// Nothing listens there.
const NO_REDIS: (&str, &str) = ("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9");

#[tokio::test]
async fn only_failures_count_and_a_stranger_does_not_lock_the_owner_out() {
    for settings in [&[][..], &[NO_REDIS]] {
        let app = &TestApp::with(settings).await;
        app.member("ada").await;
        let owner = "192.0.2.1";

        // (from, password, how often, expected status of each, attempts that are left after the last)
        for (ip, password, times, status, left) in [
            (owner, RIGHT, 12, 200, "10"),
            ("198.51.100.1", WRONG, 10, 401, "0"),
            ("198.51.100.1", WRONG, 3, 429, "0"),
            // A right guess after too many wrong ones is not answered.
            ("198.51.100.1", RIGHT, 1, 429, "0"),
            (owner, RIGHT, 3, 200, "10"),
            (owner, WRONG, 9, 401, "1"),
            (owner, RIGHT, 2, 200, "1"),
            (owner, WRONG, 1, 401, "0"),
            (owner, RIGHT, 1, 429, "0"),
            ("192.0.2.2", RIGHT, 1, 200, "10"),
        ] {
            for time in 1..=times {
                let answer = sign_in(app, ip, password).await;
                let context = format!("{settings:?} {ip} {password} {time}: {}", answer.json);
                assert_eq!(answer.status, status, "{context}");
                if time == times {
                    assert_eq!(answer.header("x-ratelimit-remaining"), left, "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn of_many_wrong_tries_at_once_only_the_allowed_are_made() {
    for settings in [&[][..], &[NO_REDIS]] {
        let app = &TestApp::with(settings).await;
        app.member("ada").await;

        let tries = (0..25).map(|_| sign_in(app, "198.51.100.1", WRONG));
        let answers = join_all(tries).await;
        let made = answers.iter().filter(|answer| answer.status == 401).count();
        assert_eq!(made, 10, "{settings:?}");
        assert_eq!(sign_in(app, "192.0.2.1", RIGHT).await.status, 200);
    }
}

#[tokio::test]
async fn an_address_has_a_wide_limit_over_all_networks() {
    let app = &TestApp::start().await;
    app.member("ada").await;

    for network in 0..29 {
        let ip = format!("198.51.100.{network}");
        for _ in 0..10 {
            assert_eq!(sign_in(app, &ip, WRONG).await.status, 401);
        }
    }
    assert_eq!(
        sign_in(app, "192.0.2.1", RIGHT).await.status,
        200,
        "after 290 tries"
    );

    let mut more = 0;
    let refused = loop {
        let answer = sign_in(app, &format!("203.0.113.{more}"), WRONG).await;
        match answer.status.as_u16() {
            401 => more += 1,
            _ => break answer,
        }
        assert!(more < 60, "no limit over all networks");
    };
    assert!(more >= 10, "{more}");
    assert_eq!(refused.problem(), (429, "rate_limited"));
    assert!(
        refused
            .header("ratelimit")
            .starts_with("\"signin-address\";r=0;")
    );
}
