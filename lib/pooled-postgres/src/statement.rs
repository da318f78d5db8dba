//! The trait behind `sql!` and the types of parameters.

use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::Row;

/// Whether a statement may be sent again after its connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing. Sent once more, on a fresh connection.
    Read,
    /// Sent only once, because the server may have executed it without its answer arriving.
    Write,
}

/// A statement with its parameters. Declare one with [`sql!`](crate::sql), which also checks it against the schema.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a statement",
    note = "declare statements with `pooled_postgres::sql!` and pass them by value"
)]
pub trait Statement {
    /// The type that a row decodes to.
    type Row: Row;
    /// The name in error messages.
    const NAME: &'static str;
    /// The SQL with numbered placeholders.
    const TEXT: &'static str;
    /// Whether the statement may be sent twice.
    const ACCESS: Access;
    /// The types of the parameters, in the order of their numbers.
    const PARAMS: &'static [Type];

    /// The values of the parameters, in the order of [`Self::PARAMS`].
    fn values(&self) -> Vec<&(dyn ToSql + Sync)>;
}

/// A type that a parameter of a statement may have.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a statement",
    note = "each parameter type has exactly one Postgres type: `i32` is integer, `i64` bigint, \
            `&str` and enums of `text_enum!` are text, `&[Uuid]` is uuid[]"
)]
pub trait Param: ToSql + Sync {
    /// The Postgres type that it stands for.
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
