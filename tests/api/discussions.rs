//! Discussions.

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use std::collections::HashSet;

use crate::harness::{Actor, TestApp};

#[tokio::test]
async fn a_discussion_is_created_shown_changed_and_deleted() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let created = ada
        .post(
            "/api/discussions",
            json!({"icons": ["socrates", "hypatia"], "topic": "Is the city a school?"}),
        )
        .await;
    assert_eq!(
        (created.status.as_u16(), &created.json["title"]),
        (201, &json!("Is the city a school?"))
    );
    let path = format!("/api/discussions/{}", created.json["id"].as_str().unwrap());
    assert_eq!(ada.get(&path).await.json, created.json);
    // Vercel adds the dynamic segment to the query.
    assert_eq!(
        ada.get(&format!("{path}?id=something-else")).await.json,
        created.json
    );

    let shared = ada
        .patch(&path, json!({"title": "School", "shared": true}))
        .await
        .json;
    assert_eq!(
        (&shared["title"], &shared["shared"]),
        (&json!("School"), &json!(true))
    );
    let address = shared["share_url"].as_str().unwrap().to_owned();
    assert!(
        address.starts_with("https://iconoclash.test/share/") && address.len() > 60,
        "{address}"
    );

    let hidden = ada.patch(&path, json!({"shared": false})).await.json;
    assert_eq!(
        (&hidden["share_url"], &hidden["title"]),
        (&Value::Null, &json!("School"))
    );
    assert_eq!(
        ada.patch(&path, json!({"shared": true})).await.json["share_url"],
        address
    );
    assert_eq!(
        ada.patch(&path, json!({"title": "x".repeat(201)}))
            .await
            .problem(),
        (422, "invalid")
    );

    assert_eq!(ada.delete(&path).await.status, 204);
    assert_eq!(ada.get(&path).await.problem(), (404, "not_found"));
    assert_eq!(ada.delete(&path).await.problem(), (404, "not_found"));
}

#[tokio::test]
async fn another_users_discussion_is_not_found() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let eve = app.member("eve").await;
    let discussion = ada.discussion().await;
    let path = format!("/api/discussions/{discussion}");

    for (method, path, body) in [
        (Method::GET, path.clone(), Value::Null),
        (Method::PATCH, path.clone(), json!({"title": "Mine"})),
        (Method::DELETE, path.clone(), Value::Null),
        (Method::GET, format!("{path}/messages"), Value::Null),
        (
            Method::POST,
            format!("{path}/messages"),
            json!({"content": "Hello"}),
        ),
        (
            Method::GET,
            "/api/discussions/not-an-id".to_owned(),
            Value::Null,
        ),
    ] {
        assert_eq!(
            eve.request(method.clone(), &path, &[], body)
                .await
                .problem(),
            (404, "not_found"),
            "{method} {path}"
        );
    }
    assert_eq!(ada.get(&path).await.json["title"], "Virtue");
    assert_eq!(eve.get("/api/auth/session").await.json["quota"]["used"], 0);
}

#[tokio::test]
async fn icons_must_be_offered_and_named_once() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    for (icons, message) in [
        (json!([]), "must name one to four icons"),
        (
            json!(["socrates", "socrates"]),
            "must not name \"socrates\" twice",
        ),
        (
            json!(["socrates", "nobody"]),
            "must be slugs of GET /api/icons, but \"nobody\" is not",
        ),
        (
            json!(["Socrates", "hypatia", "nobody"]),
            "must be slugs of GET /api/icons, but \"Socrates\", \"nobody\" are not",
        ),
        (
            json!(["socrates", "so\u{0}crates"]),
            "must be slugs of GET /api/icons, but \"socrates\" is not",
        ),
        (
            json!(["a", "b", "c", "d", "e"]),
            "must name one to four icons",
        ),
    ] {
        let key = [("idempotency-key", "one-key")];
        let refused = ada
            .request(
                Method::POST,
                "/api/discussions",
                &key,
                json!({ "icons": icons }),
            )
            .await;
        assert_eq!(
            (refused.problem(), &refused.json["errors"]["icons"]),
            ((422, "invalid"), &json!(message))
        );
    }

    let key = [("idempotency-key", "one-key")];
    let created = ada
        .request(
            Method::POST,
            "/api/discussions",
            &key,
            json!({"icons": ["socrates"]}),
        )
        .await;
    assert_eq!(
        (
            created.status.as_u16(),
            created.header("idempotent-replayed")
        ),
        (201, "")
    );

    app.sql("update icons set retired = true where slug = 'socrates'")
        .await;
    assert_eq!(
        ada.post("/api/discussions", json!({"icons": ["socrates"]}))
            .await
            .status,
        422
    );

    let offered = app.anonymous().get("/api/icons").await.json;
    assert!(
        offered["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|icon| icon["slug"] != "socrates")
    );
}

#[tokio::test]
async fn the_list_is_paged_newest_first_without_archived_discussions() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let mut created = Vec::new();
    for _ in 0..7 {
        created.push(ada.discussion().await);
    }
    assert_eq!(
        ada.patch(
            &format!("/api/discussions/{}", created[0]),
            json!({"archived": true})
        )
        .await
        .status,
        200
    );

    let mut seen = Vec::new();
    let mut path = "/api/discussions?limit=4".to_owned();
    loop {
        let page = ada.get(&path).await.json;
        let ids = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/discussions?limit=4&cursor={cursor}"),
            None => break,
        }
    }

    created.reverse();
    assert_eq!(seen, created[..6]);

    let archived = ada.get("/api/discussions?archived=true").await.json;
    assert_eq!(
        (
            &archived["data"][0]["id"],
            archived["data"].as_array().unwrap().len()
        ),
        (&json!(created[6]), 1)
    );
    assert_eq!(
        ada.get("/api/discussions/count").await.json,
        json!({"total": 7, "today": 7})
    );

    app.advance(time::Duration::days(1));
    assert_eq!(
        ada.get("/api/discussions/count").await.json,
        json!({"total": 7, "today": 0})
    );

    for bad in [
        "limit=0",
        "limit=101",
        "limit=x",
        "cursor=x",
        "archived=maybe",
    ] {
        assert_eq!(
            ada.get(&format!("/api/discussions?{bad}")).await.problem(),
            (400, "bad_request"),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn one_key_creates_one_discussion_however_often_it_is_sent() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let body = json!({"icons": ["socrates"], "title": "Once"});
    let create = async |body: Value| {
        ada.request(
            Method::POST,
            "/api/discussions",
            &[("idempotency-key", "k-1")],
            body,
        )
        .await
    };

    let answers = join_all((0..20).map(|_| create(body.clone()))).await;
    assert!(answers.iter().all(|answer| answer.status == 201));
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.json.to_string())
            .collect::<HashSet<_>>()
            .len(),
        1
    );
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.header("idempotent-replayed") == "true")
            .count(),
        19
    );
    assert_eq!(ada.get("/api/discussions/count").await.json["total"], 1);
    assert_eq!(
        create(json!({"icons": ["socrates"], "title": "Twice"}))
            .await
            .problem(),
        (422, "idempotency_key_reused")
    );

    let eve = app.member("eve").await;
    let hers = eve
        .request(
            Method::POST,
            "/api/discussions",
            &[("idempotency-key", "k-1")],
            body.clone(),
        )
        .await;
    assert_ne!(hers.json["id"], answers[0].json["id"]);

    let bad = ada
        .request(
            Method::POST,
            "/api/discussions",
            &[("idempotency-key", "two words")],
            body,
        )
        .await;
    assert_eq!(bad.problem(), (400, "bad_request"));
}

/// The ids of all pages of a list.
async fn pages(ada: &Actor<'_>, query: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/discussions?limit=2&{query}{cursor}");
        let page = ada.get(&path).await.json;
        let rows = page["data"]
            .as_array()
            .unwrap_or_else(|| panic!("{path}: {page}"));
        seen.extend(
            rows.iter()
                .map(|row| row["id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return seen,
        }
    }
}

#[tokio::test]
async fn the_list_is_by_the_last_message_or_by_creation() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let mut created = Vec::new();
    for _ in 0..7 {
        created.push(ada.discussion().await);
    }
    created.reverse();

    assert_eq!(pages(&ada, "").await, created);
    for (at, answered) in [(6, "6012345"), (3, "3601245"), (6, "6301245")] {
        let sent = ada.send(&created[at], "Why?").await;
        assert_eq!(sent.status, 201, "{}", sent.json);
        app.background.idle().await;

        let by_update: Vec<String> = answered
            .bytes()
            .map(|digit| created[usize::from(digit - b'0')].clone())
            .collect();
        for query in ["", "sort=updated", "sort=Updated", "sort=", "archived="] {
            assert_eq!(pages(&ada, query).await, by_update, "{query}");
        }
        assert_eq!(pages(&ada, "sort=created").await, created);
    }

    // Discussions of one moment are in the order of their ids.
    app.sql("update discussions set updated_at = '2026-11-25 00:00:00.000001+00'")
        .await;
    assert_eq!(pages(&ada, "sort=updated").await, created);
}

#[tokio::test]
async fn a_cursor_goes_on_in_its_own_order() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let mut created = Vec::new();
    for _ in 0..4 {
        created.push(ada.discussion().await);
    }
    assert_eq!(ada.send(&created[0], "Why?").await.status, 201);

    // The cursor of a list by creation is an id, with and without a sort.
    for query in ["", "sort=created&"] {
        let page = ada
            .get(&format!("/api/discussions?{query}cursor={}", created[2]))
            .await;
        let ids: Vec<_> = page.json["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| &row["id"])
            .collect();
        assert_eq!(ids, [&created[1], &created[0]], "{query}");
    }

    let by_update = ada.get("/api/discussions?limit=1").await.json;
    let by_update = by_update["next_cursor"].as_str().unwrap();
    for (sort, cursor) in [("updated", created[2].as_str()), ("created", by_update)] {
        let path = format!("/api/discussions?sort={sort}&cursor={cursor}");
        let refused = ada.get(&path).await;
        assert_eq!(refused.problem(), (400, "bad_request"), "{path}");
        let errors = &refused.json["errors"]["cursor"];
        assert_eq!(
            errors,
            "must be the next_cursor of a page with the same sort"
        );
    }
}
