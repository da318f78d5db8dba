//! Cached values: what they save, and that users never see a value from before their own write.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    harness::{Actor, TestApp},
    proxied::{Counts, Proxied},
};

/// The round trips of a read, and its answer.
async fn round_trips(proxied: &Proxied, actor: &Actor<'_>, path: &str) -> (Counts, Value) {
    proxied.reset_counts();
    let answer = actor.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    (proxied.counts(), answer.json)
}

#[tokio::test]
async fn a_cached_session_or_count_takes_one_request_to_redis_and_none_to_postgres() {
    let proxied = Proxied::start().await;
    let ada = proxied.app.member("ada").await;
    ada.discussion().await;
    // Removes the tombstone of the counts, which would expire in time.
    proxied.second_instance.redis_command(&["FLUSHDB"]).await;

    for path in ["/api/auth/session", "/api/discussions/count"] {
        let (cold, first) = round_trips(&proxied, &ada, path).await;
        assert!(cold.postgres >= 1, "{path}");

        let (warm, second) = round_trips(&proxied, &ada, path).await;
        let expected = Counts {
            postgres: 0,
            redis: 1,
        };
        assert_eq!(warm, expected, "{path}");
        assert_eq!(second, first, "{path}");
    }

    proxied.app.advance(time::Duration::days(1));
    let counts = ada.get("/api/discussions/count").await;
    assert_eq!(counts.json, json!({"total": 1, "today": 0}));
}

#[tokio::test]
async fn concurrent_misses_load_once() {
    let proxied = Proxied::start().await;
    let ada = proxied.app.member("ada").await;
    proxied.second_instance.redis_command(&["FLUSHDB"]).await;
    proxied.reset_counts();

    let reads = (0..50).map(|_| ada.get("/api/discussions/count"));
    for answer in join_all(reads).await {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json["total"], 0);
    }

    // The session and the count, and requests that arrived just after the first load.
    let loads = proxied.counts().postgres;
    assert!((2..20).contains(&loads), "{loads} loads for 50 requests");
}

#[tokio::test]
async fn a_thousand_writes_that_race_with_reads_are_each_seen_by_the_next_read() {
    let proxied = &Proxied::start().await;
    let sign_ups = (0..20).map(|number| async move {
        let name = format!("user{number}");
        proxied.app.member(&name).await
    });
    let users = join_all(sign_ups).await;

    // 20 users × 25 rounds × 3 writes; 1,000 of the writes race with reads.
    let writes = users.iter().map(|user| write_and_read(proxied, user));
    join_all(writes).await;
}

/// Creates and deletes discussions while both instances load the counts. Each write is followed by a read of either
/// instance.
async fn write_and_read(proxied: &Proxied, user: &Actor<'_>) {
    const COUNT: &str = "/api/discussions/count";
    let elsewhere = &proxied
        .second_instance
        .bearer(user.token.as_deref().unwrap());
    let total = async |reader: &Actor<'_>| reader.get(COUNT).await.json["total"].clone();

    for expected in 1..=25 {
        let reader = if expected % 2 == 0 { user } else { elsewhere };

        let (_, _, discussion) =
            tokio::join!(user.get(COUNT), elsewhere.get(COUNT), user.discussion());
        assert_eq!(total(reader).await, expected);

        let path = format!("/api/discussions/{discussion}");
        let (_, deleted) = tokio::join!(elsewhere.get(COUNT), user.delete(&path));
        assert_eq!(deleted.status, 204);
        assert_eq!(total(reader).await, expected - 1);

        user.discussion().await;
        assert_eq!(total(reader).await, expected);
    }
}

#[tokio::test]
async fn an_ended_session_is_rejected_at_once_by_every_instance() {
    let Proxied {
        app,
        second_instance,
        ..
    } = &Proxied::start().await;
    let credentials = json!({"email": "ada@example.org", "password": "correct horse"});
    let signed_up = app.anonymous();
    let signed_up = signed_up
        .post("/api/auth/signup", credentials.clone())
        .await;
    assert_eq!(signed_up.status, 201);

    for round in 0..10 {
        let signed_in = app.anonymous();
        let signed_in = signed_in.post("/api/auth/login", credentials.clone()).await;
        let token = signed_in.json["token"].as_str().unwrap();
        let here = app.bearer(token);
        let there = second_instance.bearer(token);

        let reads = join_all((0..10).map(|_| there.get("/api/auth/session"))).await;
        assert!(reads.iter().all(|read| read.status == 200), "{round}");

        let everywhere = json!({"everywhere": round % 2 == 0});
        let (signed_out, _) = tokio::join!(
            here.post("/api/auth/logout", everywhere),
            there.get("/api/auth/session")
        );
        assert_eq!(signed_out.status, 204);
        for actor in [&here, &there] {
            let rejected = actor.get("/api/auth/session").await;
            assert_eq!(rejected.problem(), (401, "invalid_token"), "{round}");
        }

        app.advance(time::Duration::minutes(2));
        second_instance.advance(time::Duration::minutes(2));
    }
}

#[tokio::test]
async fn a_forged_or_damaged_cached_value_is_a_miss() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let eve = app.member("eve").await;
    let ada_id = ada.id().await;
    let ada_key = format!("{{c}}:s:{ada_id}");
    let eve_key = format!("{{c}}:s:{}", eve.id().await);

    let cached = app.redis_command(&["GET", &ada_key]).await;
    let cached = cached.as_str().unwrap();
    let promoted = cached.replace(r#""role":"user""#, r#""role":"admin""#);
    assert_ne!(cached, promoted);
    let of_eve = app.redis_command(&["GET", &eve_key]).await;
    let of_eve = of_eve.as_str().unwrap();

    let hostile = [
        promoted.as_str(),
        of_eve,
        &cached[..cached.len() / 2],
        "",
        "{}",
        "null",
        "\u{1F9D9}",
        "-",
    ];
    for value in hostile {
        app.redis_command(&["SET", &ada_key, value, "EX", "300"])
            .await;
        let session = ada.get("/api/auth/session").await;
        assert_eq!(session.status, 200, "{value}");
        assert_eq!(session.json["user"]["id"], ada_id, "{value}");
        assert_eq!(session.json["user"]["role"], "user", "{value}");
    }

    app.redis_command(&["DEL", &ada_key]).await;
    app.redis_command(&["LPUSH", &ada_key, "a list"]).await;
    let session = ada.get("/api/auth/session").await;
    assert_eq!(session.json["user"]["id"], ada_id);
}
