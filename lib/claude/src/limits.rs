//! Rate limits of an organisation, as the headers of each reply report them.

use http::HeaderMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::headers::header_text;

/// The remaining capacity that the head of a reply reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub requests: Option<Limit>,
    /// Prompt tokens a minute. On current models cache reads do not count.
    pub input_tokens: Option<Limit>,
    /// Output tokens a minute. A starting reply is charged its `max_tokens`.
    pub output_tokens: Option<Limit>,
}

/// One of the [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Capacity of the window.
    pub limit: u64,
    /// Capacity that is left.
    pub remaining: u64,
    /// When the window is full again.
    pub reset: Option<OffsetDateTime>,
}

impl Limits {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            requests: Limit::from_headers(headers, "requests"),
            input_tokens: Limit::from_headers(headers, "input-tokens"),
            output_tokens: Limit::from_headers(headers, "output-tokens"),
        }
    }
}

impl Limit {
    fn from_headers(headers: &HeaderMap, name: &str) -> Option<Self> {
        let field =
            |field: &str| header_text(headers, &format!("anthropic-ratelimit-{name}-{field}"));

        Some(Self {
            limit: field("limit")?.parse().ok()?,
            remaining: field("remaining")?.parse().ok()?,
            reset: field("reset").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    #[test]
    fn limits_are_read_from_the_headers_and_a_malformed_one_is_none() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("anthropic-ratelimit-requests-limit", "1000"),
            ("anthropic-ratelimit-requests-remaining", "999"),
            ("anthropic-ratelimit-requests-reset", "2026-11-24T00:01:00Z"),
            ("anthropic-ratelimit-input-tokens-limit", "many"),
            ("anthropic-ratelimit-input-tokens-remaining", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }

        let requests = Limit {
            limit: 1000,
            remaining: 999,
            reset: Some(time::macros::datetime!(2026-11-24 00:01 UTC)),
        };
        let expected = Limits {
            requests: Some(requests),
            ..Limits::default()
        };
        assert_eq!(Limits::from_headers(&headers), expected);
    }
}
