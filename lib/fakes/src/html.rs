//! The frame of the pages that stand-ins show to a person.

use http::{HeaderValue, Response, StatusCode, header};

use crate::wire::{self, Body};

const STYLE: &str = include_str!("html.css");

/// A whole page around what is in it.
pub(crate) fn page(status: StatusCode, title: &str, body: &str) -> Response<Body> {
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title}</title><style>{STYLE}</style>{body}"
    );
    let mut response = wire::answer(status, "text/html; charset=utf-8", wire::full(page));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Text that a page may show wherever it came from, in an attribute too.
pub(crate) fn escaped(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}
