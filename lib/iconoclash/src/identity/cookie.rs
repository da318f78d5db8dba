//! The session cookie of a browser.

use http::{HeaderMap, HeaderValue, header};

const NAME: &str = "__Host-session";

/// The token in the session cookie of a request.
pub(super) fn session_token(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == NAME)
        .map(|(_, value)| value.to_owned())
}

/// Whether the session cookie is the only credential of a request.
pub(crate) fn is_cookie_authenticated(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::AUTHORIZATION) && session_token(headers).is_some()
}

/// The `Set-Cookie` value that keeps a browser signed in. An empty token with age 0 removes the cookie.
pub(crate) fn session_cookie(token: &str, max_age_secs: i64) -> HeaderValue {
    let attributes = "Secure; HttpOnly; SameSite=Lax";
    let cookie = format!("{NAME}={token}; Path=/; Max-Age={max_age_secs}; {attributes}");
    HeaderValue::try_from(cookie).expect("a token is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        let several = HeaderValue::from_static("a=b; __Host-session=tok.en; c=d");
        headers.insert(header::COOKIE, several);
        assert_eq!(session_token(&headers).as_deref(), Some("tok.en"));

        let other = HeaderValue::from_static("session=tok.en");
        headers.insert(header::COOKIE, other);
        assert_eq!(session_token(&headers), None);
    }
}
