//! Clients of the service, and the responses that they read.

use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Events, TestApp};
use crate::contract;

/// A client of the service at one address, signed in if it has a token.
#[derive(Clone)]
pub(crate) struct Actor<'a> {
    pub(crate) app: &'a TestApp,
    pub(crate) token: Option<String>,
    pub(crate) ip: String,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(super) async fn read(method: &Method, path: &str, response: http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        contract::check(method, path, parts.status, &parts.headers, &json);
        Self {
            status: parts.status,
            headers: parts.headers,
            json,
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Status and code of a problem document.
    pub(crate) fn problem(&self) -> (u16, &str) {
        (
            self.status.as_u16(),
            self.json["code"].as_str().unwrap_or_default(),
        )
    }
}

impl Actor<'_> {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, &[], body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PATCH, path, &[], body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, &[], Value::Null).await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        self.raw(method, path, headers, body).await
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let request = self.prepare(&method, path, headers, body);
        let response = self.app.call(request).await;
        let answer = Answer::read(&method, path, response).await;

        if answer.status.is_success() && !method.is_safe() {
            let write = format!("{method} {path}");
            self.app.check_cached_sessions(&write).await;
        }
        answer
    }

    pub(crate) fn prepare(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-vercel-forwarded-for", &self.ip);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    /// The user's id.
    pub(crate) async fn id(&self) -> String {
        self.get("/api/auth/session").await.json["user"]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A new discussion's id.
    pub(crate) async fn discussion(&self) -> String {
        let begun = self
            .post(
                "/api/discussions",
                json!({"icons": ["socrates"], "topic": "Can virtue be taught?", "title": "Virtue"}),
            )
            .await;
        assert_eq!(begun.status, StatusCode::CREATED, "{}", begun.json);
        begun.json["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn send(&self, discussion: &str, content: &str) -> Answer {
        self.post(
            &format!("/api/discussions/{discussion}/messages"),
            json!({ "content": content }),
        )
        .await
    }

    pub(crate) async fn send_with_key(&self, discussion: &str, content: &str, key: &str) -> Answer {
        let path = format!("/api/discussions/{discussion}/messages");
        self.request(
            Method::POST,
            &path,
            &[("idempotency-key", key)],
            json!({ "content": content }),
        )
        .await
    }

    /// Sends a message and reads the reply as a stream.
    pub(crate) async fn stream(&self, discussion: &str, content: &str) -> Events {
        self.try_stream(discussion, content)
            .await
            .expect("a stream")
    }

    /// Sends a message and reads the reply as a stream, or the refusal.
    pub(crate) async fn try_stream(
        &self,
        discussion: &str,
        content: &str,
    ) -> Result<Events, Answer> {
        self.stream_with(discussion, content, &[]).await
    }

    /// Sends a message with further headers and reads the reply as a stream, or the refusal.
    pub(crate) async fn stream_with(
        &self,
        discussion: &str,
        content: &str,
        headers: &[(&str, &str)],
    ) -> Result<Events, Answer> {
        let path = format!("/api/discussions/{discussion}/messages");
        let body = Body::from(json!({ "content": content }).to_string());
        let mut headers = headers.to_vec();
        headers.push(("accept", "text/event-stream"));

        let request = self.prepare(&Method::POST, &path, &headers, body);
        Events::read(Method::POST, &path, self.app.call(request).await).await
    }

    /// Resumes a reply's stream after the event with this id.
    pub(crate) async fn resume(&self, reply: &str, after: Option<u64>) -> Events {
        let after = after.map(|id| id.to_string());
        let headers: Vec<(&str, &str)> = after
            .iter()
            .map(|id| ("last-event-id", id.as_str()))
            .collect();
        let path = format!("/api/messages/{reply}/events");
        let request = self.prepare(&Method::GET, &path, &headers, Body::empty());
        Events::read(Method::GET, &path, self.app.call(request).await)
            .await
            .expect("a stream")
    }
}
