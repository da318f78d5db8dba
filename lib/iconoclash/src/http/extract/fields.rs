//! Reads the fields of a body or a query into a type, with errors in our own words.
//!
//! The errors of `serde_json` and of serde's own parsers name Rust types and parsers. Here each error says what the
//! field must be.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use super::text::is_blank;

/// Where the fields come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A JSON body: values have types.
    Body,
    /// A query string: every value is text, which people type in lower or upper case.
    Query,
}

/// A field that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    /// Path of the field; empty for the whole.
    pub(super) field: String,
    /// What is wrong with it, as the predicate of a sentence.
    pub(super) message: String,
}

/// Reads the fields. An empty value that its field does not accept counts as absent.
pub(super) fn read<T: DeserializeOwned>(
    mut fields: Map<String, Value>,
    source: Source,
) -> Result<T, FieldError> {
    let mut refused: Option<FieldError> = None;

    loop {
        let error = match read_as_is(&fields, source) {
            Ok(read) => return Ok(read),
            Err(error) => error,
        };

        let is_empty = fields.get(&error.field).is_some_and(is_empty);
        if is_empty {
            fields.remove(&error.field);
            refused = Some(error);
        } else {
            // A required field that was empty is not missing: say what is wrong with it.
            let is_same = |refused: &FieldError| refused.field == error.field;
            return Err(refused.filter(is_same).unwrap_or(error));
        }
    }
}

fn read_as_is<T: DeserializeOwned>(
    fields: &Map<String, Value>,
    source: Source,
) -> Result<T, FieldError> {
    let fields = Fields { fields, source };
    serde_path_to_error::deserialize(fields).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let cause = error.into_inner();

        let field = match (path.as_str(), cause.missing) {
            (_, None) => path,
            ("", Some(missing)) => missing.to_owned(),
            (_, Some(missing)) => format!("{path}.{missing}"),
        };
        FieldError {
            field,
            message: cause.message,
        }
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => is_blank(text),
        _ => false,
    }
}

/// All fields of a body or a query.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    source: Source,
}

impl<'de> Deserializer<'de> for Fields<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visit_map(self.fields, self.source, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

/// One value.
struct Field<'a> {
    value: &'a Value,
    source: Source,
}

impl<'de> Field<'de> {
    /// The text of a query's value, as its words are compared: without spaces around it, in lower case.
    fn word(&self) -> Option<String> {
        let text = self.value.as_str()?;
        let is_query = self.source == Source::Query;
        is_query.then(|| text.trim().to_lowercase())
    }

    fn visit_number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.word().map(|word| word.parse::<i64>()) {
            Some(Ok(number)) => visitor.visit_i64(number),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> IntoDeserializer<'de, Refusal> for Field<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Methods that read a whole number.
macro_rules! whole_numbers {
    ($($method:ident)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
                self.visit_number(visitor)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Field<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let source = self.source;

        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => {
                let items = items.iter().map(|value| Field { value, source });
                SeqDeserializer::new(items).deserialize_any(visitor)
            }
            Value::Object(fields) => visit_map(fields, source, visitor),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => visitor.visit_i64(number),
                (None, Some(number)) => visitor.visit_u64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.word().as_deref() {
            Some("true" | "1" | "yes" | "on") => visitor.visit_bool(true),
            Some("false" | "0" | "no" | "off") => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    /// A list is not an object, although serde would read one in the order of the fields.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.value {
            Value::Object(fields) => visit_map(fields, self.source, visitor),
            _ => Err(Refusal::new("must be an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let word = self.word();
        let name = word.as_deref().or(self.value.as_str());
        let name = name.ok_or_else(|| Refusal::one_of(variants))?;
        visitor.visit_enum(IntoDeserializer::<Refusal>::into_deserializer(name))
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map identifier ignored_any
    }
}

fn visit_map<'de, V: Visitor<'de>>(
    fields: &'de Map<String, Value>,
    source: Source,
    visitor: V,
) -> Result<V::Value, Refusal> {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.as_str(), Field { value, source }));
    MapDeserializer::new(fields).deserialize_any(visitor)
}

/// Why a value is refused. [`FieldError`] adds where it is.
#[derive(Debug)]
struct Refusal {
    /// The field that its object lacks.
    missing: Option<&'static str>,
    message: String,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        Self {
            missing: None,
            message: message.into(),
        }
    }

    fn one_of(names: &[&str]) -> Self {
        Self::new(format!("must be one of: {}", names.join(", ")))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    /// Our own types say in our own words what a value must be. Of other crates' types only this one is read.
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        match message.starts_with("UUID parsing failed") {
            true => Self::new("must be a UUID"),
            false => Self::new(message),
        }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(must_be(&expected.to_string()))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        match found {
            // The right type, so the number is too large or too small for the field.
            Unexpected::Signed(_) | Unexpected::Unsigned(_) => Self::new("is out of range"),
            _ => Self::invalid_type(found, expected),
        }
    }

    fn invalid_length(_: usize, _: &dyn de::Expected) -> Self {
        Self::new("has the wrong number of items")
    }

    fn unknown_variant(_: &str, variants: &'static [&'static str]) -> Self {
        Self::one_of(variants)
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self::new("has a field that is not known")
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            message: "is missing".to_owned(),
        }
    }

    fn duplicate_field(_: &'static str) -> Self {
        Self::new("has a field twice")
    }
}

/// What serde's visitor expects, in our words.
fn must_be(expected: &str) -> String {
    let kind = match expected {
        "a string" | "a borrowed string" | "a character" => "a string",
        "a boolean" => "true or false",
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" | "isize" => {
            "a whole number"
        }
        "f32" | "f64" => "a number",
        other if other.contains("UUID") => "a UUID",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        _ => return "has the wrong type".to_owned(),
    };
    format!("must be {kind}")
}
