//! The stand-ins' pages at the development server's own address, so that a person has one address for everything.

use std::env;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use reqwest::redirect::Policy;

use crate::stack::{MAIL_PAGES, STRIPE_PAGES};

/// More than any form of a page.
const MAX_BODY: usize = 64 * 1024;

/// Where the stand-ins are, and the way there.
#[derive(Clone)]
pub(crate) struct Pages {
    http: reqwest::Client,
    homes: [(&'static str, Option<String>); 2],
}

impl Pages {
    pub(crate) fn of_the_environment() -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .build()
            .unwrap_or_default();
        let homes = [("/local/stripe", STRIPE_PAGES), ("/local/mail", MAIL_PAGES)];
        Self {
            http,
            homes: homes.map(|(path, variable)| (path, env::var(variable).ok())),
        }
    }

    /// The stand-in whose page this is.
    pub(crate) fn behind(&self, path: &str) -> Option<&str> {
        let ours = |at: &str| {
            path.strip_prefix(at)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.homes
            .iter()
            .find(|(at, _)| ours(at))
            .and_then(|(_, home)| home.as_deref())
    }

    pub(crate) async fn pass_on(&self, stand_in: &str, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };
        let mut asked = self
            .http
            .request(parts.method, format!("{stand_in}{path}"))
            .body(body);
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            asked = asked.headers(
                parts
                    .headers
                    .get(&name)
                    .map(|value| (name, value.clone()))
                    .into_iter()
                    .collect(),
            );
        }
        match asked.send().await {
            Ok(answer) => {
                let (status, headers) = (answer.status(), answer.headers().clone());
                let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
                *response.status_mut() = status;
                for name in [
                    header::CONTENT_TYPE,
                    header::LOCATION,
                    header::CACHE_CONTROL,
                ] {
                    response
                        .headers_mut()
                        .extend(headers.get(&name).map(|value| (name, value.clone())));
                }
                response
            }
            Err(error) => (
                StatusCode::BAD_GATEWAY,
                format!("the stand-in does not answer: {error}"),
            )
                .into_response(),
        }
    }
}
