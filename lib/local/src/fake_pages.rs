//! Forwards the pages of the fake vendors, so that they are at the development server's address.

use std::env;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use reqwest::redirect::Policy;

use crate::stack::{MAIL_PAGES, STRIPE_PAGES};

/// The largest request body, well above that of any form on the pages.
const MAX_BODY: usize = 64 * 1024;

/// The fake vendors' servers, and a client for them.
#[derive(Clone)]
pub(crate) struct FakePages {
    http: reqwest::Client,
    /// Path here, and base URL of the server.
    servers: [(&'static str, Option<String>); 2],
}

impl FakePages {
    pub(crate) fn from_env() -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .build()
            .unwrap_or_default();
        let variables = [("/local/stripe", STRIPE_PAGES), ("/local/mail", MAIL_PAGES)];

        Self {
            http,
            servers: variables.map(|(path, variable)| (path, env::var(variable).ok())),
        }
    }

    /// The base URL of the server whose page is at `path`.
    pub(crate) fn server_for(&self, path: &str) -> Option<&str> {
        let is_below = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };

        self.servers
            .iter()
            .find(|(prefix, _)| is_below(prefix))
            .and_then(|(_, server)| server.as_deref())
    }

    /// Forwards a request to the server and returns its response.
    pub(crate) async fn forward(&self, server: &str, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };

        let mut forwarded = self
            .http
            .request(parts.method, format!("{server}{path}"))
            .body(body);
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            if let Some(value) = parts.headers.get(&name) {
                forwarded = forwarded.header(name, value);
            }
        }

        match forwarded.send().await {
            Ok(answer) => response_from(answer),
            Err(error) => {
                let problem = format!("the fake vendor does not answer: {error}");
                (StatusCode::BAD_GATEWAY, problem).into_response()
            }
        }
    }
}

fn response_from(answer: reqwest::Response) -> Response {
    let status = answer.status();
    let headers = answer.headers().clone();
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;

    for name in [
        header::CONTENT_TYPE,
        header::LOCATION,
        header::CACHE_CONTROL,
    ] {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }

    response
}
