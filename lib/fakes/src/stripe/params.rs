//! Queries and forms, and Stripe's refusals of what they hold.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

/// An error of Stripe's shape.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl Problem {
    pub(super) fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
        }
    }

    fn invalid(code: &'static str, param: &str, message: String) -> Self {
        Self {
            code: Some(code),
            param: Some(param.to_owned()),
            ..Self::new(400, "invalid_request_error", message)
        }
    }

    /// Something that is named and is not there: 404 where it is the address itself.
    pub(super) fn missing(what: &str, param: &str, id: &str) -> Self {
        let problem = Self::invalid("resource_missing", param, format!("No such {what}: '{id}'"));
        if param == "id" {
            Self {
                status: StatusCode::NOT_FOUND,
                ..problem
            }
        } else {
            problem
        }
    }

    pub(super) fn body(&self) -> Value {
        let mut error = Map::from_iter([
            ("type".to_owned(), json!(self.kind)),
            ("message".to_owned(), json!(self.message)),
        ]);
        error.extend(self.code.map(|code| ("code".to_owned(), json!(code))));
        error.extend(
            self.param
                .as_ref()
                .map(|param| ("param".to_owned(), json!(param))),
        );
        json!({ "error": error })
    }
}

/// The pairs of a query or a form, each name as it was written: `line_items[0][price]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl Params {
    pub(super) fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            percent_decode_str(&part.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Problem> {
        let missing = || {
            Problem::invalid(
                "parameter_missing",
                name,
                format!("Missing required param: {name}."),
            )
        };
        self.get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(missing)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Problem::invalid(
                "parameter_invalid_boolean",
                name,
                format!("Invalid boolean: {other}"),
            )),
        }
    }

    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let limit = self
            .get("limit")
            .map_or(Ok(10), str::parse)
            .ok()
            .filter(|limit| (1..=100).contains(limit));
        limit.ok_or_else(|| {
            Problem::invalid(
                "parameter_invalid_integer",
                "limit",
                "Invalid integer".to_owned(),
            )
        })
    }

    /// What was written as `metadata[…]`.
    pub(super) fn metadata(&self, prefix: &str) -> Value {
        let inside = |name: &str| {
            Some(
                name.strip_prefix(prefix)?
                    .strip_prefix('[')?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        };
        self.0
            .iter()
            .filter_map(|(name, value)| Some((inside(name)?, json!(value))))
            .collect::<Map<_, _>>()
            .into()
    }

    /// Refuses whatever the version does not know, as Stripe does: an old parameter is an error, not a no-op.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let unknown = self.0.iter().map(|(name, _)| name).find(|name| {
            let general = name.replace(|c: char| c.is_ascii_digit(), "");
            let open = |known: &&str| {
                known
                    .strip_suffix('*')
                    .is_some_and(|start| general.starts_with(start))
            };
            !known.iter().any(|known| *known == general || open(known))
        });
        match unknown {
            None => Ok(()),
            Some(name) => {
                let root = name.split('[').next().unwrap_or(name);
                Err(Problem::invalid(
                    "parameter_unknown",
                    root,
                    format!("Received unknown parameter: {root}"),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_and_what_the_version_does_not_know_is_refused() {
        let params = Params::parse(
            "line_items[0][price]=a%20b&metadata%5Bx%5D=1+2&flag=true&limit=3&empty=",
        );
        assert_eq!(params.get("line_items[0][price]"), Some("a b"));
        assert_eq!(params.metadata("metadata"), json!({"x": "1 2"}));
        assert_eq!(params.flag("flag").unwrap(), Some(true));
        assert_eq!(params.limit().unwrap(), 3);
        assert!(params.required("empty").is_err() && params.required("none").is_err());
        assert!(
            params
                .only(&[
                    "line_items[][price]",
                    "metadata[*",
                    "flag",
                    "limit",
                    "empty"
                ])
                .is_ok()
        );
        let refused = params
            .only(&["line_items[][quantity]", "metadata[*"])
            .unwrap_err()
            .body();
        assert_eq!(refused["error"]["code"], "parameter_unknown");
        assert_eq!(refused["error"]["param"], "line_items");
    }
}
