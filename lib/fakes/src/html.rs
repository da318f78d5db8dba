//! The frame of the pages that the fakes show to a developer.

use http::{HeaderValue, Response, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::faulty_http::{self, Body};

const STYLE: &str = include_str!("html.css");

/// A whole page around `body`.
pub(crate) fn page(status: StatusCode, title: &str, body: &Markup) -> Response<Body> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };

    let body = faulty_http::full(page.into_string());
    let mut response = faulty_http::answer(status, "text/html; charset=utf-8", body);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));

    response
}
