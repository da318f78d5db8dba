//! Extractors of body, query, path and headers, whose rejections are our [`Error`].

pub(crate) mod accept;
mod fields;
mod page;
mod text;

use std::convert::Infallible;

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{header, request::Parts},
};
use bytes::Bytes;
use http::HeaderMap;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::fields::{FieldError, Source};
use crate::http::error::Error;

pub(crate) use self::{
    page::{Page, PageSize},
    text::{Label, Text, is_blank},
};

/// Some editors and tools write it before the text of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        check_encoding(request.headers())?;
        if !is_json(request.headers()) {
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
        let encoding = check_encoding(request.headers());
        let is_json = is_json(request.headers());
        let body = read_body(request, state).await?;

        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        encoding?;
        if is_json {
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
        let pairs = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state);
        let axum::extract::Query(pairs) = pairs
            .await
            .map_err(|_| Error::BadRequest("The query string cannot be read.".to_owned()))?;

        let texts = pairs
            .into_iter()
            .map(|(name, value)| (name, Value::String(value)));
        fields::read(texts.collect(), Source::Query)
            .map(Self)
            .map_err(|FieldError { field, message }| Error::InvalidQuery { field, message })
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

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Rejects a compressed body, which would otherwise count as broken JSON.
fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let is_plain = |value: &http::HeaderValue| {
        let codings = value.to_str().unwrap_or("?").split(',').map(str::trim);
        let mut codings = codings.filter(|coding| !coding.is_empty());
        codings.all(|coding| coding.eq_ignore_ascii_case("identity"))
    };

    match headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(is_plain)
    {
        true => Ok(()),
        false => Err(Error::CompressedBody),
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let body = Bytes::from_request(request, state).await;
    body.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(failed)
            if failed.status() == http::StatusCode::PAYLOAD_TOO_LARGE =>
        {
            Error::TooLarge
        }
        _ => Error::BadRequest("The body did not arrive in full.".to_owned()),
    })
}

/// Reads a JSON object. Its syntax is judged as a whole, before any field.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let fields = parse_object(body)?;
    fields::read(fields, Source::Body)
        .map_err(|FieldError { field, message }| Error::Invalid { field, message })
}

fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Error> {
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);

    match serde_json::from_slice(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::invalid("body", "must be a JSON object")),
        Err(_) if text.trim_ascii().is_empty() => Err(Error::BadRequest(
            "The body is empty. It must be a JSON object.".to_owned(),
        )),
        Err(cause) if cause.is_eof() => Err(Error::BadRequest(
            "The body is not JSON: it ends too early.".to_owned(),
        )),
        Err(cause) => {
            let line = cause.line();
            let column = cause.column();
            Err(Error::BadRequest(format!(
                "The body is not JSON: see line {line}, column {column}."
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Form {
        name: Option<Label<5>>,
        #[serde(default)]
        done: bool,
        count: Option<u8>,
        kind: Option<Kind>,
        parts: Option<Vec<Part>>,
        id: Option<uuid::Uuid>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Part {
        text: Text<5>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Small,
        Large,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Required {
        name: Label<5>,
        password: String,
    }

    #[track_caller]
    fn check<T: DeserializeOwned + std::fmt::Debug>(body: &str, field: &str, expected: &str) {
        match parse::<T>(body.as_bytes()) {
            Err(error @ Error::Invalid { .. }) => {
                let problem = error.problem();
                let message = problem.errors.get(field).map(String::as_str);
                assert_eq!(message, Some(expected), "{body}: {problem:?}");
                assert!(problem.detail.contains(field), "{body}: {problem:?}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_wrong_field_is_named_in_our_words() {
        for (body, field, expected) in [
            (r#"{"name":7}"#, "name", "must be a string"),
            (r#"{"name":{}}"#, "name", "must be a string"),
            (r#"{"name":[]}"#, "name", "must be a string"),
            (r#"{"name":true}"#, "name", "must be a string"),
            (
                r#"{"name":"éééééé"}"#,
                "name",
                "must be at most 5 characters",
            ),
            (
                r#"{"name":"a\u0000"}"#,
                "name",
                "must not contain a null character",
            ),
            (r#"{"done":"yes"}"#, "done", "must be true or false"),
            (r#"{"done":1}"#, "done", "must be true or false"),
            (r#"{"count":"7"}"#, "count", "must be a whole number"),
            (r#"{"count":7.5}"#, "count", "must be a whole number"),
            (r#"{"count":-1}"#, "count", "is out of range"),
            (r#"{"count":256}"#, "count", "is out of range"),
            (r#"{"kind":"huge"}"#, "kind", "must be one of: small, large"),
            (r#"{"kind":7}"#, "kind", "must be one of: small, large"),
            (r#"{"parts":"a"}"#, "parts", "must be a list"),
            (r#"{"parts":[["a"]]}"#, "parts[0]", "must be an object"),
            (r#"{"parts":[{}]}"#, "parts[0].text", "is missing"),
            (
                r#"{"parts":[{"text":7}]}"#,
                "parts[0].text",
                "must be a string",
            ),
            (
                r#"{"parts":[{"text":" "}]}"#,
                "parts[0].text",
                "must not be empty",
            ),
            (r#"{"id":"x"}"#, "id", "must be a UUID"),
            (r#"{"id":7}"#, "id", "must be a UUID"),
            ("[]", "body", "must be a JSON object"),
            (r#"["Ada"]"#, "body", "must be a JSON object"),
            ("null", "body", "must be a JSON object"),
            ("7", "body", "must be a JSON object"),
            (r#""Ada""#, "body", "must be a JSON object"),
        ] {
            check::<Form>(body, field, expected);
        }

        for (body, field, expected) in [
            ("{}", "name", "is missing"),
            (r#"{"name":"Ada"}"#, "password", "is missing"),
            (r#"{"name":"","password":"p"}"#, "name", "must not be empty"),
            (
                r#"{"name":" \u200b","password":"p"}"#,
                "name",
                "must not be empty",
            ),
            (
                r#"{"name":null,"password":"p"}"#,
                "name",
                "must be a string",
            ),
        ] {
            check::<Required>(body, field, expected);
        }
    }

    #[test]
    fn an_empty_value_means_an_absent_field() {
        for empty in ["null", r#""""#, r#""  ""#, r#""\u200b""#] {
            for field in ["name", "done", "count", "kind", "parts", "id"] {
                let body = format!(r#"{{"{field}":{empty}}}"#);
                let form = parse::<Form>(body.as_bytes()).unwrap();
                assert!(form.name.is_none() && !form.done, "{body}: {form:?}");
            }
        }

        // Where a text may be empty or blank, it stays as it is.
        let body = r#"{"name":"Ada","password":"  "}"#;
        assert_eq!(parse::<Required>(body.as_bytes()).unwrap().password, "  ");
    }

    #[test]
    fn the_syntax_is_judged_before_the_fields() {
        for body in [
            "",
            " \n",
            "{",
            r#"{"name":"#,
            r#"{"name":7"#,
            r#"{"name":7,}"#,
            r#"{"name":7} x"#,
            r#"{"name":7}{}"#,
            "{'name':7}",
            "{name:7}",
            r#"[{"name":7}"#,
            "name=Ada",
            "<form/>",
            "NaN",
            r#"{"name":"\ud800"}"#,
            "{\"name\":\"a\nb\"}",
        ] {
            let error = parse::<Form>(body.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::BadRequest(_)), "{body}: {error:?}");
            assert!(error.to_string().starts_with("The body is "), "{error}");
        }

        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for body in [deep.as_bytes(), b"{\"name\":\"\xff\"}", b"\xff\xfe{\0}\0"] {
            let error = parse::<Form>(body).unwrap_err();
            assert!(matches!(error, Error::BadRequest(_)), "{error:?}");
        }

        assert!(parse::<Form>(b"\xef\xbb\xbf{\"name\":\"Ada\"}").is_ok());
    }

    #[test]
    fn a_body_in_a_coding_is_refused() {
        let check = |values: &[&'static str]| {
            let values = values.iter().map(|value| {
                let value = http::HeaderValue::from_static(value);
                (header::CONTENT_ENCODING, value)
            });
            check_encoding(&values.collect()).is_ok()
        };

        for plain in [&[][..], &[""], &["identity"], &["Identity"]] {
            assert!(check(plain), "{plain:?}");
        }
        for coded in [
            &["gzip"][..],
            &["br"],
            &["deflate"],
            &["zstd"],
            &["identity, gzip"],
            &["identity", "gzip"],
        ] {
            assert!(!check(coded), "{coded:?}");
        }
    }

    #[test]
    fn a_query_means_what_people_mean() {
        let read = |pairs: &[(&str, &str)]| {
            let texts = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Value::from(*value)));
            fields::read::<Form>(texts.collect(), Source::Query)
        };

        for yes in ["true", "True", "TRUE", " true ", "1", "yes", "on", "On"] {
            assert!(read(&[("done", yes)]).unwrap().done, "{yes}");
        }
        for no in ["false", "False", "FALSE", "0", "no", "off", "", " "] {
            assert!(!read(&[("done", no)]).unwrap().done, "{no}");
        }
        for large in ["large", "Large", "LARGE", " large "] {
            let form = read(&[("kind", large)]).unwrap();
            assert_eq!(form.kind, Some(Kind::Large), "{large}");
        }
        assert_eq!(read(&[("count", " 7 ")]).unwrap().count, Some(7));
        assert_eq!(read(&[("count", "")]).unwrap().count, None);

        for (name, value, expected) in [
            ("done", "maybe", "must be true or false"),
            ("count", "x", "must be a whole number"),
            ("count", "7.5", "must be a whole number"),
            ("count", "256", "is out of range"),
            ("kind", "huge", "must be one of: small, large"),
            ("id", "x", "must be a UUID"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!(
                (error.field.as_str(), error.message.as_str()),
                (name, expected)
            );
        }
    }
}
