//! What is cached: what it spares, and that nobody ever sees a stale value of their own making.

use futures_util::future::join_all;
use iconoclash_fakes::proxy;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

use crate::harness::{Actor, TestApp};
use iconoclash_fakes::test_services::needed;

/// An app whose crossings are counted and can be stopped, and one that shares its stores.
pub(crate) struct Counted {
    pub(crate) app: TestApp,
    pub(crate) postgres: proxy::Tcp,
    pub(crate) redis: proxy::Http,
    pub(crate) behind: TestApp,
}

impl Counted {
    pub(crate) async fn start() -> Self {
        let bouncer = needed("ICONOCLASH_TEST_PGBOUNCER");
        let (scheme_and_user, host) = bouncer.rsplit_once('@').unwrap();
        let postgres = proxy::Tcp::start(host.parse::<SocketAddr>().unwrap(), Duration::ZERO)
            .await
            .unwrap();
        let behind = TestApp::start().await;
        let redis = proxy::Http::start(behind.redis.url(), Duration::ZERO)
            .await
            .unwrap();
        let database = format!(
            "{scheme_and_user}@{}/{}?sslmode=disable",
            postgres.addr(),
            behind.database
        );
        let url = redis.url();
        let settings = [
            ("DATABASE_URL", database.as_str()),
            ("UPSTASH_REDIS_REST_URL", &url),
            ("UPSTASH_REDIS_REST_TOKEN", behind.redis.token()),
        ];
        let app = TestApp::with(&settings).await;
        Self {
            app,
            postgres,
            redis,
            behind,
        }
    }

    /// REST requests and Postgres flights of one answer.
    async fn crossings(&self, actor: &Actor<'_>, path: &str) -> (u64, u64, Value) {
        self.postgres.reset();
        self.redis.reset();
        let answer = actor.get(path).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        (
            self.redis.requests(),
            self.postgres.flights().query,
            answer.json,
        )
    }
}

#[tokio::test]
async fn warm_sessions_and_counts_cost_one_request_to_redis_and_none_to_postgres() {
    let counted = Counted::start().await;
    let ada = counted.app.member("ada").await;
    ada.discussion().await;
    // A tombstone lies where the discussion was counted; in time it goes.
    counted.behind.redis_command(&["FLUSHDB"]).await;
    for path in ["/api/auth/session", "/api/discussions/count"] {
        let (_, cold, first) = counted.crossings(&ada, path).await;
        assert!(cold >= 1, "{path}");
        let (requests, flights, again) = counted.crossings(&ada, path).await;
        assert_eq!((requests, flights, again), (1, 0, first), "{path}");
    }
    counted.app.advance(time::Duration::days(1));
    assert_eq!(
        ada.get("/api/discussions/count").await.json,
        json!({"total": 1, "today": 0})
    );
}

#[tokio::test]
async fn of_many_who_miss_a_value_one_asks_postgres() {
    let counted = Counted::start().await;
    let ada = counted.app.member("ada").await;
    counted.behind.redis_command(&["FLUSHDB"]).await;
    counted.postgres.reset();
    let answers = join_all((0..50).map(|_| ada.get("/api/discussions/count"))).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 200 && answer.json["total"] == 0)
    );
    // The session and the count, and whoever came when the first had just landed.
    let flights = counted.postgres.flights().query;
    assert!(
        (2..20).contains(&flights),
        "{flights} flights for 50 requests"
    );
}

#[tokio::test]
async fn a_thousand_writes_in_parallel_traffic_are_each_seen_by_the_next_read() {
    let counted = Counted::start().await;
    let (app, other) = (&counted.app, &counted.behind);
    let users =
        join_all((0..20).map(|at| async move { app.member(&format!("user{at}")).await })).await;
    let writes = users.iter().map(|user| async move {
        // Reads of the same user in both instances all the time, so that loads are under way when a write comes.
        let elsewhere = other.bearer(user.token.as_deref().unwrap());
        for wanted in 1..=25 {
            let (here, there) = (
                user.get("/api/discussions/count"),
                elsewhere.get("/api/discussions/count"),
            );
            let (_, _, begun) = tokio::join!(here, there, user.discussion());
            let reader = if wanted % 2 == 0 { user } else { &elsewhere };
            assert_eq!(
                reader.get("/api/discussions/count").await.json["total"],
                wanted
            );
            let path = format!("/api/discussions/{begun}");
            let (_, deleted) =
                tokio::join!(elsewhere.get("/api/discussions/count"), user.delete(&path));
            assert_eq!(deleted.status, 204);
            assert_eq!(
                reader.get("/api/discussions/count").await.json["total"],
                wanted - 1
            );
            user.discussion().await;
            assert_eq!(
                reader.get("/api/discussions/count").await.json["total"],
                wanted
            );
        }
    });
    // 20 users × 25 rounds × 3 writes, of which 1,000 raced with reads.
    join_all(writes).await;
}

#[tokio::test]
async fn a_session_that_ended_is_refused_at_once_in_every_instance() {
    let counted = Counted::start().await;
    let (app, other) = (&counted.app, &counted.behind);
    let body = json!({"email": "ada@example.org", "password": "correct horse"});
    assert_eq!(
        app.anonymous()
            .post("/api/auth/signup", body.clone())
            .await
            .status,
        201
    );
    for round in 0..10 {
        let signed = app.anonymous().post("/api/auth/login", body.clone()).await;
        let token = signed.json["token"].as_str().unwrap().to_owned();
        let (here, there) = (app.bearer(&token), other.bearer(&token));
        let reads = join_all((0..10).map(|_| there.get("/api/auth/session"))).await;
        assert!(reads.iter().all(|read| read.status == 200), "{round}");
        let everywhere = json!({"everywhere": round % 2 == 0});
        let (out, _) = tokio::join!(
            here.post("/api/auth/logout", everywhere),
            there.get("/api/auth/session")
        );
        assert_eq!(out.status, 204);
        for ended in [&here, &there] {
            assert_eq!(
                ended.get("/api/auth/session").await.problem(),
                (401, "invalid_token"),
                "{round}"
            );
        }
        app.advance(time::Duration::minutes(2));
        other.advance(time::Duration::minutes(2));
    }
}

#[tokio::test]
async fn what_somebody_else_put_into_the_cache_is_a_miss() {
    let app = TestApp::start().await;
    let (ada, eve) = (app.member("ada").await, app.member("eve").await);
    let id = async |actor: &Actor<'_>| {
        actor.get("/api/auth/session").await.json["user"]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (ada_id, eve_id) = (id(&ada).await, id(&eve).await);
    let key = |user: &str| format!("{{c}}:s:{user}");
    let kept = app
        .redis_command(&["GET", &key(&ada_id)])
        .await
        .as_str()
        .unwrap()
        .to_owned();
    let promoted = kept.replace(r#""role":"user""#, r#""role":"admin""#);
    assert_ne!(kept, promoted);
    let eves = app
        .redis_command(&["GET", &key(&eve_id)])
        .await
        .as_str()
        .unwrap()
        .to_owned();
    for hostile in [
        promoted.as_str(),
        eves.as_str(),
        &kept[..kept.len() / 2],
        "",
        "{}",
        "null",
        "\u{1F9D9}",
        "-",
    ] {
        app.redis_command(&["SET", &key(&ada_id), hostile, "EX", "300"])
            .await;
        let seen = ada.get("/api/auth/session").await;
        assert_eq!(seen.status, 200, "{hostile}");
        assert_eq!(
            (&seen.json["user"]["id"], &seen.json["user"]["role"]),
            (&json!(ada_id), &json!("user")),
            "{hostile}"
        );
    }
    app.redis_command(&["DEL", &key(&ada_id)]).await;
    app.redis_command(&["LPUSH", &key(&ada_id), "a list"]).await;
    assert_eq!(
        ada.get("/api/auth/session").await.json["user"]["id"],
        ada_id
    );
}
