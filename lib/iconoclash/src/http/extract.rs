//! Extractors of body, query, path and headers, whose rejections are our [`Error`].

use std::{convert::Infallible, fmt};

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{header, request::Parts},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::http::error::Error;

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        if !is_json(&request) {
            return Err(Error::UnsupportedMediaType);
        }
        let body = read_body(request, state).await?;
        parse(&body).map(Self)
    }
}

/// A JSON body that may be left out.
#[derive(Debug)]
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let is_json = is_json(&request);
        let body = read_body(request, state).await?;

        if body.is_empty() {
            Ok(Self(T::default()))
        } else if is_json {
            parse(&body).map(Self)
        } else {
            Err(Error::UnsupportedMediaType)
        }
    }
}

/// The bytes of a body, unparsed, as a signature covers them.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        read_body(request, state).await.map(Self)
    }
}

/// The query string. Unknown names are ignored, because Vercel adds the dynamic segment of the path.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|rejection| Error::BadRequest(rejection.body_text()))
    }
}

/// The dynamic segments of the path. One that does not parse is 404.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|path| Self(path.0))
            .map_err(|_| Error::NotFound)
    }
}

/// The entity tags of `If-None-Match`.
#[derive(Debug)]
pub(crate) struct IfNoneMatch(Vec<String>);

impl IfNoneMatch {
    /// Whether the client has the entity with this strong tag.
    ///
    /// Tags compare weakly, as a CDN that compresses turns our strong tag into a weak one.
    pub(crate) fn matches(&self, etag: &str) -> bool {
        self.0.iter().any(|known| known == etag || known == "*")
    }
}

impl<S: Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let tags = parts
            .headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|tag| tag.trim().trim_start_matches("W/").to_owned());
        Ok(Self(tags.collect()))
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let body = Bytes::from_request(request, state).await;
    body.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(failed)
            if failed.status() == http::StatusCode::PAYLOAD_TOO_LARGE =>
        {
            Error::TooLarge
        }
        other => Error::BadRequest(other.body_text()),
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "body".to_owned() } else { path };
        let cause = error.into_inner();

        if cause.is_data() {
            Error::invalid(field, without_position(&cause))
        } else {
            not_json(&cause)
        }
    })?;

    deserializer.end().map_err(|cause| not_json(&cause))?;
    Ok(parsed)
}

fn not_json(cause: &serde_json::Error) -> Error {
    Error::BadRequest(format!("The body is not JSON: {cause}."))
}

/// Removes the " at line 1 column 20" of `serde_json`, which means nothing to a person who filled in a form.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = message.rfind(" at line ").unwrap_or(message.len());
    message[..position].to_owned()
}

/// `?limit=1..100&cursor=…` of every list. A cursor is the id of the last row of the previous page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Rows to return.
    #[serde(default)]
    #[param(value_type = u8, minimum = 1, maximum = 100, default = 20)]
    pub(crate) limit: PageSize,
    /// `next_cursor` of the previous page.
    pub(crate) cursor: Option<Uuid>,
}

/// How many rows a page has.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub(crate) struct PageSize(i64);

impl PageSize {
    /// Rows to query: one more than the page has shows whether there is a next page.
    pub(crate) fn rows(self) -> i64 {
        self.0 + 1
    }

    /// Cuts the extra row off, and returns the cursor of the next page.
    pub(crate) fn cut<T>(
        self,
        mut rows: Vec<T>,
        id: impl Fn(&T) -> Uuid,
    ) -> (Vec<T>, Option<Uuid>) {
        let size = usize::try_from(self.0).expect("a page size is between 1 and 100");
        let has_next = rows.len() > size;
        rows.truncate(size);

        let cursor = rows.last().map(id).filter(|_| has_next);
        (rows, cursor)
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(20)
    }
}

impl TryFrom<i64> for PageSize {
    type Error = &'static str;

    fn try_from(rows: i64) -> Result<Self, Self::Error> {
        if (1..=100).contains(&rows) {
            Ok(Self(rows))
        } else {
            Err("limit must be between 1 and 100")
        }
    }
}

/// Trimmed text of 1 to `MAX` characters, for fields that people type.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} bytes)", self.0.len())
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;

        let typed = String::deserialize(deserializer)?;
        let text = typed.trim();

        if text.is_empty() {
            return Err(D::Error::custom("must not be empty"));
        }
        if text.chars().count() > MAX {
            let message = format_args!("must be at most {MAX} characters");
            return Err(D::Error::custom(message));
        }
        // Postgres cannot store it.
        if text.contains('\0') {
            return Err(D::Error::custom("must not contain a null character"));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Form {
        #[expect(dead_code, reason = "only its parsing is tested")]
        name: Text<5>,
    }

    #[track_caller]
    fn check(body: &str, expected: Result<(), (&str, &str)>) {
        let parsed = parse::<Form>(body.as_bytes());

        match (parsed, expected) {
            (Ok(_), Ok(())) => {}
            (Err(Error::Invalid { field, message }), Err(expected)) => {
                assert_eq!((field.as_str(), message.as_str()), expected);
            }
            (Err(Error::BadRequest(detail)), Err(("", start))) => {
                assert!(detail.starts_with(start), "{detail}")
            }
            (parsed, expected) => panic!("{parsed:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn an_invalid_body_names_the_field() {
        check(r#"{"name":" Ada "}"#, Ok(()));
        check(
            r#"{"name":7}"#,
            Err(("name", "invalid type: integer `7`, expected a string")),
        );
        check(r#"{"name":"  "}"#, Err(("name", "must not be empty")));
        check(
            r#"{"name":"éééééé"}"#,
            Err(("name", "must be at most 5 characters")),
        );
        check(
            r#"{"name":"a\u0000"}"#,
            Err(("name", "must not contain a null character")),
        );
        check("{}", Err(("body", "missing field `name`")));
        check(
            "[]",
            Err((
                "body",
                "invalid length 0, expected struct Form with 1 element",
            )),
        );
        check("{\"name\":", Err(("", "The body is not JSON")));
        check(r#"{"name":"Ada"} x"#, Err(("", "The body is not JSON")));
    }

    #[test]
    fn an_extra_row_becomes_the_cursor_of_the_next_page() {
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();

        assert_eq!(
            PageSize(2).cut(ids.clone(), |id| *id),
            (ids[..2].to_vec(), Some(ids[1]))
        );
        assert_eq!(PageSize(3).cut(ids.clone(), |id| *id), (ids, None));
    }
}
