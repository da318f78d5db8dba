//! Parameters of queries and forms, and Stripe's errors about them.

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

    /// A missing object: 404 if the path names it, else 400.
    pub(super) fn missing(kind: &str, param: &str, id: &str) -> Self {
        let message = format!("No such {kind}: '{id}'");
        let mut problem = Self::invalid("resource_missing", param, message);
        if param == "id" {
            problem.status = StatusCode::NOT_FOUND;
        }

        problem
    }

    pub(super) fn body(&self) -> Value {
        let mut error = Map::from_iter([
            ("type".to_owned(), json!(self.kind)),
            ("message".to_owned(), json!(self.message)),
        ]);
        if let Some(code) = self.code {
            error.insert("code".to_owned(), json!(code));
        }
        if let Some(param) = &self.param {
            error.insert("param".to_owned(), json!(param));
        }

        json!({ "error": error })
    }
}

/// The pairs of a query or a form, with names as sent, such as `line_items[0][price]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl Params {
    pub(super) fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            let part = part.replace('+', " ");
            let decoded = percent_decode_str(&part).decode_utf8_lossy();
            decoded.into_owned()
        };

        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });

        Self(pairs.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(found, _)| found == name);

        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Problem> {
        let value = self.get(name).filter(|value| !value.is_empty());

        value.ok_or_else(|| {
            let message = format!("Missing required param: {name}.");
            Problem::invalid("parameter_missing", name, message)
        })
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
        let limit = self.get("limit").map_or(Ok(10), str::parse).ok();
        let limit = limit.filter(|limit| (1..=100).contains(limit));

        limit.ok_or_else(|| {
            let message = "Invalid integer".to_owned();
            Problem::invalid("parameter_invalid_integer", "limit", message)
        })
    }

    /// The object of the parameters `prefix[…]`.
    pub(super) fn metadata(&self, prefix: &str) -> Value {
        let key = |name: &str| {
            let rest = name.strip_prefix(prefix)?;
            let key = rest.strip_prefix('[')?.strip_suffix(']')?;
            Some(key.to_owned())
        };

        let pairs = self.0.iter();
        let pairs = pairs.filter_map(|(name, value)| Some((key(name)?, json!(value))));
        Value::Object(pairs.collect())
    }

    /// Refuses unknown parameters, as Stripe does: a removed parameter is an error.
    ///
    /// An index is left out of the known names, and `*` at the end allows any rest.
    pub(super) fn allow(&self, known: &[&str]) -> Result<(), Problem> {
        let is_known = |name: &str| {
            let name = name.replace(|c: char| c.is_ascii_digit(), "");
            known.iter().any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => *known == name,
            })
        };

        match self.0.iter().find(|(name, _)| !is_known(name)) {
            None => Ok(()),
            Some((name, _)) => {
                let root = name.split('[').next().unwrap_or(name);
                let message = format!("Received unknown parameter: {root}");
                Err(Problem::invalid("parameter_unknown", root, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_parsed_and_unknown_parameters_are_refused() {
        let params = Params::parse(
            "line_items[0][price]=a%20b&metadata%5Bx%5D=1+2&flag=true&limit=3&empty=",
        );
        assert_eq!(params.get("line_items[0][price]"), Some("a b"));
        assert_eq!(params.metadata("metadata"), json!({"x": "1 2"}));
        assert_eq!(params.flag("flag").unwrap(), Some(true));
        assert_eq!(params.limit().unwrap(), 3);
        assert!(params.required("empty").is_err());
        assert!(params.required("none").is_err());

        let known = [
            "line_items[][price]",
            "metadata[*",
            "flag",
            "limit",
            "empty",
        ];
        assert!(params.allow(&known).is_ok());

        let known = ["line_items[][quantity]", "metadata[*"];
        let refused = params.allow(&known).unwrap_err().body();
        assert_eq!(refused["error"]["code"], "parameter_unknown");
        assert_eq!(refused["error"]["param"], "line_items");
    }
}
