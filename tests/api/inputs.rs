//! What clients send: bodies and queries of every kind, on every route that takes them.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use crate::harness::{Actor, Answer, TestApp};

/// What no person can read: names of Rust types, and the words of parsers.
const FOREIGN: [&str; 16] = [
    "struct",
    "expected",
    "invalid type",
    "invalid value",
    "invalid length",
    "missing field",
    "unknown variant",
    "parsing",
    "parse",
    "deserialize",
    "serde",
    "integer",
    "i64",
    "sequence",
    "EOF",
    "`",
];

/// The routes that take a body: the fields that are text, and those that are true or false.
const BODIES: [(&str, &str, &[&str], &[&str]); 6] = [
    (
        "POST",
        "/api/auth/signup",
        &["email", "password", "name"],
        &[],
    ),
    ("POST", "/api/auth/login", &["email", "password"], &[]),
    ("POST", "/api/auth/logout", &[], &["everywhere"]),
    ("POST", "/api/discussions", &["title", "topic"], &[]),
    (
        "PATCH",
        "/api/discussions/{id}",
        &["title"],
        &["archived", "shared"],
    ),
    ("POST", "/api/discussions/{id}/messages", &["content"], &[]),
];

/// A body that the route accepts.
fn valid(path: &str) -> Value {
    match path {
        "/api/auth/signup" => json!({"email": "eve@example.org", "password": "correct horse"}),
        "/api/auth/login" => json!({"email": "ada@example.org", "password": "correct horse"}),
        "/api/discussions" => json!({"icons": ["socrates"]}),
        "/api/discussions/{id}/messages" => json!({"content": "Why?"}),
        _ => json!({}),
    }
}

/// Sends bytes to a route, signed in where the route needs it.
async fn send(ada: &Actor<'_>, route: (&str, &str), id: &str, body: impl Into<Body>) -> Answer {
    let (method, path) = route;
    let method: Method = method.parse().unwrap();
    let is_public = ["/api/auth/signup", "/api/auth/login"].contains(&path);
    let anonymous = ada.app.anonymous();

    let actor = if is_public { &anonymous } else { ada };
    let path = path.replace("{id}", id);
    actor.raw(method, &path, &[], body.into()).await
}

#[track_caller]
fn assert_our_words(answer: &Answer, context: &str) {
    let detail = answer.json["detail"].as_str().unwrap().to_owned();
    let errors = answer.json["errors"].to_string();
    for word in FOREIGN {
        let has_word = detail.contains(word) || errors.contains(word);
        assert!(!has_word, "{context}: {word:?} in {}", answer.json);
    }
}

#[track_caller]
fn assert_names(answer: &Answer, problem: (u16, &str), field: &str, context: &str) {
    assert_eq!(answer.problem(), problem, "{context}: {}", answer.json);
    assert_our_words(answer, context);

    let detail = answer.json["detail"].as_str().unwrap();
    let subject = if field == "body" { "The body" } else { field };
    assert!(detail.starts_with(subject), "{context}: {}", answer.json);
    let errors = answer.json["errors"].as_object().unwrap();
    let named = errors.keys().any(|name| name.starts_with(field));
    assert!(named, "{context}: {}", answer.json);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_before_its_fields() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;

    for (method, path, _, _) in BODIES {
        for body in [
            "{",
            " ",
            r#"{"title":7"#,
            r#"{"email":7,"content":7,"icons":7,"everywhere":7,"title":7,}"#,
            r#"{"email":7,"content":7,"icons":7,"everywhere":7,"title":7} x"#,
            r#"[{"title":7}"#,
            "{'title':'x'}",
            "title=x",
            "undefined",
            "\"",
            "{\"title\":\"a\nb\"}",
            "<html>",
        ] {
            let context = format!("{method} {path} {body}");
            let answer = send(&ada, (method, path), &id, body).await;
            assert_eq!(answer.problem(), (400, "bad_request"), "{context}");
            assert_our_words(&answer, &context);
        }

        for body in [
            "[]",
            r#"["a"]"#,
            r#"[{"a":1}]"#,
            "null",
            "7",
            "true",
            r#""text""#,
        ] {
            let context = format!("{method} {path} {body}");
            let answer = send(&ada, (method, path), &id, body).await;
            assert_names(&answer, (422, "invalid"), "body", &context);
        }
    }
}

#[tokio::test]
async fn a_field_of_the_wrong_type_is_named() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;

    let mut cases = Vec::new();
    for (method, path, texts, booleans) in BODIES {
        for field in texts {
            for wrong in [
                json!(7),
                json!(7.5),
                json!(true),
                json!([]),
                json!({}),
                json!(["a"]),
            ] {
                cases.push((method, path, *field, wrong));
            }
        }
        for field in booleans {
            for wrong in [
                json!(7),
                json!("maybe"),
                json!("True"),
                json!([]),
                json!({}),
            ] {
                cases.push((method, path, *field, wrong));
            }
        }
    }
    for wrong in [
        json!("socrates"),
        json!(7),
        json!({}),
        json!(true),
        json!([7]),
        json!([null]),
        json!([["socrates"]]),
        json!(["socrates", {}]),
    ] {
        cases.push(("POST", "/api/discussions", "icons", wrong));
    }

    for (method, path, field, wrong) in cases {
        let mut body = valid(path);
        body[field] = wrong;
        let context = format!("{method} {path} {body}");
        let answer = send(&ada, (method, path), &id, body.to_string()).await;
        assert_names(&answer, (422, "invalid"), field, &context);
    }

    for (method, path, field) in [
        ("POST", "/api/auth/signup", "email"),
        ("POST", "/api/auth/signup", "password"),
        ("POST", "/api/auth/login", "email"),
        ("POST", "/api/auth/login", "password"),
        ("POST", "/api/discussions", "icons"),
        ("POST", "/api/discussions/{id}/messages", "content"),
    ] {
        let mut body = valid(path);
        body.as_object_mut().unwrap().remove(field);
        let context = format!("{method} {path} {body}");
        let answer = send(&ada, (method, path), &id, body.to_string()).await;
        assert_names(&answer, (422, "invalid"), field, &context);
        assert_eq!(answer.json["errors"][field], "is missing", "{context}");
    }
}

#[tokio::test]
async fn an_empty_optional_field_is_an_absent_field() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;
    let before = ada.get(&format!("/api/discussions/{id}")).await.json;

    let empties = [
        json!(""),
        json!(" "),
        json!("\n\t"),
        json!("\u{200b}"),
        json!(null),
    ];
    for (at, empty) in empties.iter().enumerate() {
        let signup = json!({
            "email": format!("eve{at}@example.org"), "password": "correct horse", "name": empty,
        });
        let signed = app.anonymous().post("/api/auth/signup", signup).await;
        assert_eq!(signed.status, 201, "{empty}: {}", signed.json);
        assert_eq!(signed.json["user"]["name"], Value::Null, "{empty}");

        let new = json!({"icons": ["socrates"], "title": empty, "topic": empty});
        let created = ada.post("/api/discussions", new).await;
        assert_eq!(created.status, 201, "{empty}: {}", created.json);
        assert_eq!(created.json["topic"], Value::Null, "{empty}");
        assert_eq!(created.json["title"], "Socrates", "{empty}");

        let edit = json!({"title": empty, "archived": empty, "shared": empty});
        let edited = ada.patch(&format!("/api/discussions/{id}"), edit).await;
        assert_eq!(edited.status, 200, "{empty}: {}", edited.json);
        for field in ["title", "archived", "shared"] {
            assert_eq!(edited.json[field], before[field], "{empty}");
        }

        let token = signed.json["token"].as_str().unwrap();
        let logout = json!({ "everywhere": empty });
        let ended = app.bearer(token).post("/api/auth/logout", logout).await;
        assert_eq!(ended.status, 204, "{empty}: {}", ended.json);
    }

    // A required field that is empty is not missing.
    let path = format!("/api/discussions/{id}/messages");
    let refused = ada.post(&path, json!({"content": ""})).await;
    assert_eq!(refused.json["errors"]["content"], "must not be empty");
}

#[tokio::test]
async fn a_query_means_what_people_mean() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;
    let messages = format!("/api/discussions/{id}/messages");
    let archived = ada.discussion().await;
    let edit = json!({"archived": true});
    ada.patch(&format!("/api/discussions/{archived}"), edit)
        .await;

    let listed = async |path: &str| {
        let page = ada.get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.json);
        page.json["data"][0]["id"].clone()
    };
    for yes in ["true", "True", "TRUE", "1", "yes", "on", "+true+"] {
        let path = format!("/api/discussions?archived={yes}");
        assert_eq!(listed(&path).await, archived, "{path}");
    }
    for rest in [
        "archived=",
        "archived=false",
        "archived=False",
        "archived=0",
        "archived=no",
        "cursor=",
        "cursor",
        "limit=",
        "limit=%20",
        "limit=+20",
        "limit=&cursor=&archived=&sort=",
        "sort=Updated",
        "sort=CREATED",
        "sort=",
        "unknown=x",
    ] {
        let path = format!("/api/discussions?{rest}");
        assert_eq!(listed(&path).await, id, "{path}");
    }
    for rest in ["cursor=", "limit=", "limit=&cursor=", "cursor=%20"] {
        listed(&format!("{messages}?{rest}")).await;
    }
}

#[tokio::test]
async fn a_wrong_value_of_a_query_is_named() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let messages = format!("/api/discussions/{}/messages", ada.discussion().await);

    for path in ["/api/discussions", messages.as_str()] {
        for (field, value) in [
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "-1"),
            ("limit", "x"),
            ("limit", "2.5"),
            ("limit", "99999999999999999999"),
            ("cursor", "x"),
            ("cursor", "7"),
            ("cursor", "00000000-0000-0000-0000-00000000000g"),
            ("cursor", "null"),
            ("cursor", "%00"),
            ("cursor", "%FF"),
        ] {
            let path = format!("{path}?{field}={value}");
            let refused = ada.get(&path).await;
            assert_names(&refused, (400, "bad_request"), field, &path);
        }
    }
    for (field, value) in [("archived", "maybe"), ("archived", "2"), ("sort", "title")] {
        let path = format!("/api/discussions?{field}={value}");
        let refused = ada.get(&path).await;
        assert_names(&refused, (400, "bad_request"), field, &path);
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_in_words_and_a_byte_order_mark_is_skipped() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;

    for (method, path, _, _) in BODIES {
        let context = format!("{method} {path}");
        let method: Method = method.parse().unwrap();
        let own = path.replace("{id}", &id);
        for coding in ["gzip", "br", "deflate", "zstd", "GZIP", "identity, gzip"] {
            let body = Body::from(&b"\x1f\x8b\x08\x00\x00\x00\x00\x00"[..]);
            let headers = [("content-encoding", coding)];
            let answer = ada.raw(method.clone(), &own, &headers, body).await;
            assert_eq!(answer.problem(), (415, "unsupported_encoding"), "{context}");
            assert_our_words(&answer, &context);
            let detail = answer.json["detail"].as_str().unwrap();
            assert!(detail.contains("compressed"), "{detail}");
            assert_eq!(answer.header("accept-encoding"), "identity");
        }

        if path != "/api/auth/logout" {
            let body = format!("\u{feff}{}", valid(path));
            let answer = send(&ada, (method.as_str(), path), &id, body).await;
            assert!(answer.status.is_success(), "{context}: {}", answer.json);
        }
    }
    let plain = [("content-encoding", "identity")];
    let listed = json!({"icons": ["socrates"]});
    let created = ada.request(Method::POST, "/api/discussions", &plain, listed);
    assert_eq!(created.await.status, 201);
}

#[tokio::test]
async fn typed_text_is_kept_as_typed_and_invisible_text_is_empty() {
    let app = TestApp::with(&[("QUOTA_FREE", "100")]).await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;
    let path = format!("/api/discussions/{id}/messages");

    for typed in [
        "    if x:\n        return y",
        "\tindented",
        "Why?\n\n",
        "\n\nWhy?",
        " a ",
        "line\r\nline\r\n",
        "\u{3000}全角",
        "می\u{200c}خواهم\u{200f}",
        "👩\u{200d}🔬",
        ".",
    ] {
        let sent = ada.send(&id, typed).await;
        assert_eq!(sent.status, 201, "{typed:?}: {}", sent.json);
        assert_eq!(sent.json["message"]["content"], typed);
        let page = ada.get(&format!("{path}?limit=2")).await.json;
        assert_eq!(page["data"][1]["content"], typed);

        let new = json!({"icons": ["socrates"], "topic": typed});
        let created = ada.post("/api/discussions", new).await.json;
        assert_eq!(created["topic"], typed, "{created}");
        let title = created["title"].as_str().unwrap();
        assert!(!title.is_empty() && title.trim() == title, "{title:?}");
        app.advance(time::Duration::minutes(2));
    }

    for blank in [
        "",
        " ",
        "\n\r\n\t",
        "\u{a0}\u{2003}\u{3000}",
        "\u{200b}",
        "\u{200b} \u{200d}\n\u{feff}",
        "\u{2060}\u{ad}",
        "\u{2800}",
        "\u{3164}",
        "\u{202e}\u{2069}",
        "\u{fe0f}",
        "\u{e0020}",
    ] {
        let refused = ada.send(&id, blank).await;
        assert_names(&refused, (422, "invalid"), "content", &format!("{blank:?}"));
        assert_eq!(refused.json["errors"]["content"], "must not be empty");
    }
}
