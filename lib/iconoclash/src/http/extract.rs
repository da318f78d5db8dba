//! Body, query and path of a request, with rejections in our own error shape.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{header, request::Parts},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use std::fmt;
use uuid::Uuid;

use crate::http::error::Error;

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// A JSON body that may be left out.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

/// A body as it came, byte for byte, as signatures need it.
#[derive(Debug)]
pub struct Raw(pub Bytes);

/// The query string. Vercel adds a dynamic segment to it, so unknown names are ignored and ids are never read from here.
#[derive(Debug)]
pub struct Query<T>(pub T);

/// The segments of the path. One that does not parse is an address that does not exist.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        if !is_json(&request) {
            return Err(Error::UnsupportedMediaType);
        }
        parse(&body(request, state).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let json = is_json(&request);
        let body = body(request, state).await?;
        match (body.is_empty(), json) {
            (true, _) => Ok(Self(T::default())),
            (false, false) => Err(Error::UnsupportedMediaType),
            (false, true) => parse(&body).map(Self),
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        body(request, state).await.map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query
            .map(|query| Self(query.0))
            .map_err(|rejection| Error::BadRequest(rejection.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|_| Error::NotFound)
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    essence.eq_ignore_ascii_case("application/json")
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(broken)
                if broken.status() == http::StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Error::TooLarge
            }
            broken => Error::BadRequest(broken.body_text()),
        })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let cause = error.into_inner();
        if cause.is_data() {
            Error::invalid(
                if field == "." {
                    "body".to_owned()
                } else {
                    field
                },
                without_position(&cause),
            )
        } else {
            Error::BadRequest(format!("The body is not JSON: {cause}."))
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Error::BadRequest(format!("The body is not JSON: {error}.")))?;
    Ok(parsed)
}

/// serde_json appends "at line 1 column 20", which says nothing to the person who filled in a form.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message
        .rsplit_once(" at line ")
        .map_or(message.clone(), |(text, _)| text.to_owned())
}

/// `?limit=1..100&cursor=…` of every list. A cursor is the id of the last row seen.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Rows to return.
    #[serde(default)]
    #[param(value_type = u8, minimum = 1, maximum = 100, default = 20)]
    pub limit: Limit,
    /// `next_cursor` of the page before.
    pub cursor: Option<Uuid>,
}

/// How many rows a page holds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Limit(i64);

impl Limit {
    /// Rows to ask the database for: one more than shown tells whether there is a next page.
    pub fn rows(self) -> i64 {
        self.0 + 1
    }

    /// Cuts the extra row off and names the cursor of the next page.
    pub fn cut<T>(self, mut rows: Vec<T>, id: impl Fn(&T) -> Uuid) -> (Vec<T>, Option<Uuid>) {
        let shown = usize::try_from(self.0).expect("a limit is between 1 and 100");
        let more = rows.len() > shown;
        rows.truncate(shown);
        let next = rows.last().map(id).filter(|_| more);
        (rows, next)
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(20)
    }
}

impl TryFrom<i64> for Limit {
    type Error = &'static str;

    fn try_from(limit: i64) -> Result<Self, Self::Error> {
        if (1..=100).contains(&limit) {
            Ok(Self(limit))
        } else {
            Err("limit must be between 1 and 100")
        }
    }
}

/// Text of a bounded length without surrounding space, for fields that people type.
#[derive(Clone, PartialEq, Eq)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
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
        let typed = String::deserialize(deserializer)?;
        let text = typed.trim();
        if text.is_empty() {
            return Err(serde::de::Error::custom("must not be empty"));
        }
        if text.chars().count() > MAX {
            return Err(serde::de::Error::custom(format_args!(
                "must be at most {MAX} characters"
            )));
        }
        // Postgres cannot store it, and no person types it.
        if text.contains('\0') {
            return Err(serde::de::Error::custom(
                "must not contain a null character",
            ));
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
        let got = parse::<Form>(body.as_bytes());
        match (got, expected) {
            (Ok(_), Ok(())) => {}
            (Err(Error::Invalid { field, message }), Err(expected)) => {
                assert_eq!((field.as_str(), message.as_str()), expected);
            }
            (Err(Error::BadRequest(detail)), Err(("", start))) => {
                assert!(detail.starts_with(start), "{detail}")
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_body_that_does_not_hold_names_the_field() {
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
    fn a_page_knows_whether_there_is_another() {
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        assert_eq!(
            Limit(2).cut(ids.clone(), |id| *id),
            (ids[..2].to_vec(), Some(ids[1]))
        );
        assert_eq!(Limit(3).cut(ids.clone(), |id| *id), (ids, None));
    }
}
