//! What holds for every route: paths, headers and times.

use axum::body::Body;
use futures_util::future::join_all;
use http::{Method, Request};
use serde_json::json;

use crate::{contract, harness::TestApp};

#[tokio::test]
async fn a_slash_at_the_end_finds_the_route() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;

    let anonymous = app.anonymous();

    let paths = contract::document()["paths"].as_object().unwrap();
    for (template, operations) in paths {
        let path = template.replace("{id}", &id);
        for method in operations.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let plain = anonymous.request(method.clone(), &path, &[], json!({}));
            let plain = plain.await;
            for slashes in ["/", "//", "/?limit=1"] {
                let path = format!("{path}{slashes}");
                let answer = anonymous.request(method.clone(), &path, &[], json!({}));
                let answer = answer.await;
                assert_eq!(answer.problem(), plain.problem(), "{method} {path}");
            }
        }
    }

    let page = ada.get("/api/discussions/?archived=false&limit=1").await;
    assert_eq!(page.json["data"][0]["id"], id);
    let path = format!("/api/discussions/{id}/messages/");
    let sent = ada.post(&path, json!({"content": "Why?"})).await;
    assert_eq!(sent.status, 201, "{}", sent.json);
    for unknown in ["/", "//", "/api/", "/api/nothing/", "/api/icons/x/"] {
        let request = Request::builder().uri(unknown).body(Body::empty()).unwrap();
        assert_eq!(app.call(request).await.status(), 404, "{unknown}");
    }
}

#[tokio::test]
async fn a_preflight_of_a_page_that_traces_its_requests_passes() {
    let app = TestApp::start().await;
    let preflight = async |origin: &str, headers: &str| {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/api/discussions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", headers)
            .body(Body::empty())
            .unwrap();
        app.call(request).await.headers().clone()
    };

    for headers in [
        "authorization,content-type,idempotency-key,last-event-id",
        "baggage,content-type,sentry-trace",
        "traceparent,tracestate",
        "content-type,traceparent",
        "b3",
        "x-b3-sampled,x-b3-spanid,x-b3-traceid",
        "x-datadog-origin,x-datadog-parent-id,x-datadog-trace-id",
        "newrelic",
        "request-id,request-context",
        "cache-control,last-event-id",
        "x-requested-with",
    ] {
        let answer = preflight("https://app.iconoclash.test", headers).await;
        let allowed = answer["access-control-allow-headers"].to_str().unwrap();
        let allowed: Vec<_> = allowed.split(',').map(str::trim).collect();
        for header in headers.split(',') {
            assert!(allowed.contains(&header), "{header}: {answer:?}");
        }
        assert_eq!(
            answer["access-control-allow-origin"],
            "https://app.iconoclash.test"
        );

        let foreign = preflight("https://evil.test", headers).await;
        assert!(
            foreign.get("access-control-allow-origin").is_none(),
            "{foreign:?}"
        );
    }
}

#[tokio::test]
async fn accept_is_read_with_its_weights() {
    let app = TestApp::with(&[("QUOTA_FREE", "100")]).await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;
    let path = format!("/api/discussions/{id}/messages");

    for (accept, expected) in [
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, application/json", "text/event-stream"),
        ("text/event-stream;q=0.5, */*;q=0.1", "text/event-stream"),
        (
            "application/json;q=0.5, text/event-stream",
            "text/event-stream",
        ),
        ("text/event-stream;q=0", "application/json"),
        ("text/event-stream; q=0.0, */*", "application/json"),
        (
            "application/json, text/event-stream;q=0.5",
            "application/json",
        ),
        ("text/event-stream;q=0.5, */*;q=0.8", "application/json"),
        ("*/*", "application/json"),
    ] {
        let headers = [("accept", accept)];
        let body = json!({"content": "Why?"});
        let answer = ada.request(Method::POST, &path, &headers, body).await;
        assert!(answer.status.is_success(), "{accept}: {}", answer.json);
        assert_eq!(answer.header("content-type"), expected, "{accept}");
        app.background.idle().await;
        app.advance(time::Duration::minutes(2));
    }
}

#[tokio::test]
async fn every_header_of_a_burst_refusal_speaks_of_the_burst() {
    let app = TestApp::with(&[("BURST_PER_MINUTE", "5")]).await;
    let ada = app.member("ada").await;
    let mut discussions = Vec::new();
    for _ in 0..8 {
        discussions.push(ada.discussion().await);
    }

    let sends = discussions.iter().map(|id| ada.send(id, "Why?"));
    let answers = join_all(sends).await;
    let refused = answers.iter().find(|answer| answer.status != 201);
    let refused = refused.expect("more than five at once");
    assert_eq!(refused.problem(), (429, "burst_exceeded"));
    let wait: i64 = refused.header("retry-after").parse().unwrap();
    assert_eq!(refused.header("x-ratelimit-limit"), "5");
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    let reset: i64 = refused.header("x-ratelimit-reset").parse().unwrap();
    let now = app.app.now().unix_timestamp();
    assert!(
        (now..=now + wait).contains(&reset),
        "{reset} at {now}, wait {wait}"
    );
}

#[tokio::test]
async fn times_have_six_decimals_everywhere() {
    let app = TestApp::with(&[("QUOTA_FREE", "2")]).await;
    let ada = app.member("ada").await;
    let id = ada.discussion().await;
    // The seconds of these times are whole.
    app.sql("update users set created_at = date_trunc('day', created_at)")
        .await;
    app.sql("update discussions set created_at = date_trunc('second', created_at)")
        .await;

    let mut seen = Vec::new();
    let credentials = json!({"email": "ada@example.org", "password": "correct horse"});
    seen.push(
        app.anonymous()
            .post("/api/auth/login", credentials)
            .await
            .json,
    );
    seen.push(ada.get("/api/auth/session").await.json);
    seen.push(ada.get("/api/discussions").await.json);
    seen.push(
        ada.patch(&format!("/api/discussions/{id}"), json!({}))
            .await
            .json,
    );
    seen.extend(
        ada.stream(&id, "Why?")
            .await
            .rest()
            .await
            .into_iter()
            .map(|event| event.data),
    );
    app.background.idle().await;
    app.sql("update messages set created_at = date_trunc('minute', created_at)")
        .await;
    seen.push(
        ada.get(&format!("/api/discussions/{id}/messages"))
            .await
            .json,
    );
    seen.push(ada.send(&id, "Why?").await.json);
    let exceeded = ada.send(&id, "Why?").await;
    assert_eq!(exceeded.problem(), (429, "quota_exceeded"));
    seen.push(exceeded.json);

    let times: usize = seen.iter().map(contract::check_times).sum();
    assert!(times >= 15, "{times} times in {seen:#?}");
}
