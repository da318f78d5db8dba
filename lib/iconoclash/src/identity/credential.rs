//! The token that a request presents: in its `Authorization` header, or in the session cookie of a browser.

use http::{HeaderMap, HeaderValue, header};

const COOKIE_NAME: &str = "__Host-session";

/// A token that a request presents, valid or not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Credential<'a> {
    pub(super) token: &'a str,
    /// A browser adds the cookie to requests of any page, so an unsafe method also needs an allowed origin.
    pub(super) is_cookie: bool,
}

/// The tokens of a request: that of the `Authorization` header, which counts before that of the cookie.
pub(super) fn credentials(headers: &HeaderMap) -> impl Iterator<Item = Credential<'_>> {
    let in_header = bearer_token(headers).map(|token| Credential {
        token,
        is_cookie: false,
    });
    let in_cookie = cookie_token(headers).map(|token| Credential {
        token,
        is_cookie: true,
    });
    in_header.into_iter().chain(in_cookie)
}

/// Whether the session cookie is the only credential of a request.
pub(crate) fn is_cookie_authenticated(headers: &HeaderMap) -> bool {
    credentials(headers)
        .next()
        .is_some_and(|first| first.is_cookie)
}

/// The token after the scheme `Bearer`, which is empty if only the scheme is sent.
///
/// Other schemes are for others: a proxy in front of a staging site has the browser send `Basic`.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .find_map(|value| {
            let value = value.as_bytes().trim_ascii();
            let end = value.iter().position(u8::is_ascii_whitespace);
            let (scheme, token) = value.split_at(end.unwrap_or(value.len()));

            scheme
                .eq_ignore_ascii_case(b"bearer")
                .then(|| str::from_utf8(token.trim_ascii()).unwrap_or_default())
        })
}

/// The token in the session cookie of a request.
fn cookie_token(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE_NAME)
        .map(|(_, value)| value)
}

/// The `Set-Cookie` value that keeps a browser signed in. An empty token with age 0 removes the cookie.
pub(crate) fn session_cookie(token: &str, max_age_secs: i64) -> HeaderValue {
    let attributes = "Secure; HttpOnly; SameSite=Lax";
    let cookie = format!("{COOKIE_NAME}={token}; Path=/; Max-Age={max_age_secs}; {attributes}");
    HeaderValue::try_from(cookie).expect("a token is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn the_session_cookie_is_found_among_others() {
        let several = headers(header::COOKIE, &["a=b; __Host-session=tok.en; c=d"]);
        assert_eq!(cookie_token(&several), Some("tok.en"));
        let other = headers(header::COOKIE, &["session=tok.en"]);
        assert_eq!(cookie_token(&other), None);
    }

    #[test]
    fn only_the_scheme_bearer_presents_a_token() {
        for (values, expected) in [
            (&["Bearer tok.en"][..], Some("tok.en")),
            (&["bearer   tok.en "], Some("tok.en")),
            (&["BEARER\ttok.en"], Some("tok.en")),
            (&["Bearer"], Some("")),
            (&["Bearer "], Some("")),
            (&["Bearer null"], Some("null")),
            (&["Bearer a b"], Some("a b")),
            (&["Bearer \u{e9}"], Some("\u{e9}")),
            (&["Basic eDp5", "Bearer tok.en"], Some("tok.en")),
            (&[], None),
            (&[""], None),
            (&["null"], None),
            (&["undefined"], None),
            (&["tok.en"], None),
            (&["Basic eDp5"], None),
            (&["Bearertok.en"], None),
            (&["Digest username=\"Bearer x\""], None),
        ] {
            let found = bearer_token(&headers(header::AUTHORIZATION, values)).map(str::to_owned);
            assert_eq!(found.as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn the_header_counts_before_the_cookie() {
        let mut both = headers(header::COOKIE, &["__Host-session=of-cookie"]);
        assert!(is_cookie_authenticated(&both));

        let basic = HeaderValue::from_static("Basic eDp5");
        both.insert(header::AUTHORIZATION, basic);
        assert!(is_cookie_authenticated(&both));

        let bearer = HeaderValue::from_static("Bearer of-header");
        both.insert(header::AUTHORIZATION, bearer);
        assert!(!is_cookie_authenticated(&both));
        let tokens: Vec<_> = credentials(&both).map(|found| found.token).collect();
        assert_eq!(tokens, ["of-header", "of-cookie"]);
    }
}
