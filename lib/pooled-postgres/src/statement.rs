//! Statements as values: the trait behind `sql!` and the types that a parameter may have.

use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::Row;

/// Whether a statement may be sent again when its connection died without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing. Sent once more on a fresh connection.
    Read,
    /// May have been executed although no answer came. Never sent twice.
    Write,
}

/// A statement with its parameters. Declared with [`sql!`](crate::sql), which also checks it against the schema.
pub trait Statement {
    /// What one row decodes to.
    type Row: Row;
    /// The statement's name, for error messages.
    const NAME: &'static str;
    /// The text, with numbered placeholders.
    const TEXT: &'static str;
    /// Whether the statement may be sent twice.
    const ACCESS: Access;
    /// The types of the parameters.
    const PARAMS: &'static [Type];

    /// The parameters, in the order of the placeholders.
    fn values(&self) -> Vec<&(dyn ToSql + Sync)>;
}

/// A Rust type that a parameter may have, with the Postgres type that it stands for.
pub trait Param: ToSql + Sync {
    /// The Postgres type.
    const TYPE: Type;
}

macro_rules! params {
    ($($rust:ty => $postgres:ident),* $(,)?) => {
        $(impl Param for $rust {
            const TYPE: Type = Type::$postgres;
        })*
    };
}
params! {
    bool => BOOL,
    i16 => INT2,
    i32 => INT4,
    i64 => INT8,
    f64 => FLOAT8,
    &str => TEXT,
    String => TEXT,
    &[u8] => BYTEA,
    Vec<u8> => BYTEA,
    Uuid => UUID,
    Date => DATE,
    OffsetDateTime => TIMESTAMPTZ,
    Value => JSONB,
    &Value => JSONB,
    &[bool] => BOOL_ARRAY,
    &[i32] => INT4_ARRAY,
    &[i64] => INT8_ARRAY,
    &[&str] => TEXT_ARRAY,
    &[String] => TEXT_ARRAY,
    &[Uuid] => UUID_ARRAY,
    &[Date] => DATE_ARRAY,
    &[OffsetDateTime] => TIMESTAMPTZ_ARRAY,
    &[Option<String>] => TEXT_ARRAY,
    &[Option<OffsetDateTime>] => TIMESTAMPTZ_ARRAY,
}

impl<T: Param> Param for Option<T> {
    const TYPE: Type = T::TYPE;
}
