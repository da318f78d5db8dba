//! The macros `row!` and `text_enum!`, and the types of columns.

use std::fmt;

use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::types::{FromSqlOwned, Type};
use uuid::Uuid;

/// A type that a column of a result may have.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a column of a result",
    note = "each column type has exactly one Postgres type: `i32` is integer, `i64` bigint, \
            `String` and enums of `text_enum!` are text; a column that may be null is an `Option`"
)]
pub trait Column: FromSqlOwned {
    /// The Postgres type that it stands for.
    const TYPE: Type;
    /// Whether it has a value for null.
    const NULLABLE: bool = false;
}

macro_rules! columns {
    ($($rust:ty => $postgres:ident),* $(,)?) => {
        $(impl Column for $rust {
            const TYPE: Type = Type::$postgres;
        })*
    };
}
columns! {
    bool => BOOL,
    i16 => INT2,
    i32 => INT4,
    i64 => INT8,
    f64 => FLOAT8,
    String => TEXT,
    Vec<u8> => BYTEA,
    Vec<String> => TEXT_ARRAY,
    Vec<Uuid> => UUID_ARRAY,
    Uuid => UUID,
    Date => DATE,
    OffsetDateTime => TIMESTAMPTZ,
    Value => JSONB,
}

impl<T: Column> Column for Option<T> {
    const TYPE: Type = T::TYPE;
    const NULLABLE: bool = true;
}

/// The declared name and type of a column, which `schema_check` compares with the schema.
pub struct ColumnSpec {
    /// The column's name, or `None` for any name.
    pub name: Option<&'static str>,
    /// The Postgres type.
    pub kind: Type,
    /// Whether the column may be null.
    pub nullable: bool,
}

impl ColumnSpec {
    /// The specification of a field of type `T`.
    pub const fn new<T: Column>(name: Option<&'static str>) -> Self {
        Self {
            name,
            kind: T::TYPE,
            nullable: T::NULLABLE,
        }
    }
}

/// A row of a result: a struct of [`row!`](crate::row), a single column, or `()` for a statement without a result.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row of a result",
    note = "a row is a struct of `pooled_postgres::row!`, the type of a single column, or `()` for \
            no result"
)]
pub trait Row: Sized {
    /// The columns, in the order of the result.
    const COLUMNS: &'static [ColumnSpec];

    /// Reads the columns in order.
    fn decode(cells: &mut Cells<'_>) -> Result<Self, tokio_postgres::Error>;
}

impl Row for () {
    const COLUMNS: &'static [ColumnSpec] = &[];

    fn decode(_: &mut Cells<'_>) -> Result<Self, tokio_postgres::Error> {
        Ok(())
    }
}

impl<T: Column> Row for T {
    const COLUMNS: &'static [ColumnSpec] = &[ColumnSpec::new::<T>(None)];

    fn decode(cells: &mut Cells<'_>) -> Result<Self, tokio_postgres::Error> {
        cells.read()
    }
}

/// Reads the columns of a row, one after the other.
pub struct Cells<'a> {
    row: &'a tokio_postgres::Row,
    next: usize,
}

impl<'a> Cells<'a> {
    pub(super) fn new(row: &'a tokio_postgres::Row) -> Self {
        Self { row, next: 0 }
    }

    /// Reads the next column.
    pub fn read<T: Column>(&mut self) -> Result<T, tokio_postgres::Error> {
        let cell = self.row.try_get(self.next);
        self.next += 1;
        cell
    }
}

/// The error for a text that is no variant of a [`text_enum!`](crate::text_enum).
#[derive(Debug)]
pub struct UnknownVariant {
    /// The name of the enum.
    pub kind: &'static str,
    /// The value in the column.
    pub value: String,
}

impl fmt::Display for UnknownVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a {}", self.value, self.kind)
    }
}

impl std::error::Error for UnknownVariant {}

impl UnknownVariant {
    /// `value` is no variant of the enum named `kind`.
    pub fn new(kind: &'static str, value: &str) -> Self {
        Self {
            kind,
            value: value.to_owned(),
        }
    }
}

/// Declares the struct of a row. Its fields are the columns, by name and in order; they have the struct's visibility.
///
/// ```
/// pooled_postgres::row! {
///     /// An account.
///     pub(crate) struct UserRow { id: uuid::Uuid, email: Option<String> }
/// }
/// ```
#[macro_export]
macro_rules! row {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field:ident: $kind:ty),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[$field_attribute])* $visibility $field: $kind,)*
        }

        impl $crate::Row for $name {
            const COLUMNS: &'static [$crate::ColumnSpec] =
                &[$($crate::ColumnSpec::new::<$kind>(
                    ::std::option::Option::Some(::std::stringify!($field))
                )),*];

            fn decode(
                cells: &mut $crate::Cells<'_>,
            ) -> ::std::result::Result<Self, $crate::DriverError> {
                ::std::result::Result::Ok(Self { $($field: cells.read()?),* })
            }
        }
    };
}

/// Declares an enum that Postgres stores as text, with `ALL`, `as_str` and `parse`.
///
/// It may be a parameter and a column. A stored text that is no variant is a decoding error, never a default.
///
/// ```
/// pooled_postgres::text_enum! {
///     /// The author of a message.
///     #[derive(PartialOrd, Ord)]
///     pub enum Speaker {
///         /// The person.
///         User = "user",
///         /// Claude.
///         Assistant = "assistant",
///     }
/// }
///
/// assert_eq!(Speaker::parse("user"), Some(Speaker::User));
/// assert_eq!(Speaker::Assistant.as_str(), "assistant");
/// ```
#[macro_export]
macro_rules! text_enum {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $name:ident {
            $($(#[$variant_attribute:meta])* $variant:ident = $text:literal),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$variant_attribute])* $variant,)+
        }

        #[allow(dead_code, reason = "not every enum needs all of these")]
        impl $name {
            /// Every variant, in the order of the declaration.
            $visibility const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            /// The stored text.
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The variant with this text.
            $visibility fn parse(text: &str) -> ::std::option::Option<Self> {
                match text {
                    $($text => ::std::option::Option::Some(Self::$variant),)+
                    _ => ::std::option::Option::None,
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::ToSql for $name {
            fn to_sql(
                &self,
                kind: &$crate::Type,
                out: &mut $crate::codec::BytesMut,
            ) -> ::std::result::Result<$crate::codec::IsNull, $crate::codec::BoxError> {
                $crate::ToSql::to_sql(&self.as_str(), kind, out)
            }

            fn accepts(kind: &$crate::Type) -> bool {
                *kind == $crate::Type::TEXT
            }

            fn to_sql_checked(
                &self,
                kind: &$crate::Type,
                out: &mut $crate::codec::BytesMut,
            ) -> ::std::result::Result<$crate::codec::IsNull, $crate::codec::BoxError> {
                $crate::ToSql::to_sql_checked(&self.as_str(), kind, out)
            }
        }

        impl $crate::Param for $name {
            const TYPE: $crate::Type = $crate::Type::TEXT;
        }

        impl<'a> $crate::codec::FromSql<'a> for $name {
            fn from_sql(
                kind: &$crate::Type,
                raw: &'a [u8],
            ) -> ::std::result::Result<Self, $crate::codec::BoxError> {
                let text = <&str as $crate::codec::FromSql>::from_sql(kind, raw)?;
                Self::parse(text).ok_or_else(|| {
                    $crate::UnknownVariant::new(::std::stringify!($name), text).into()
                })
            }

            fn accepts(kind: &$crate::Type) -> bool {
                *kind == $crate::Type::TEXT
            }
        }

        impl $crate::Column for $name {
            const TYPE: $crate::Type = $crate::Type::TEXT;
        }
    };
}

#[cfg(test)]
mod tests {
    //! The macros are used where other items have the names of the prelude.
    #![expect(dead_code, reason = "the names only hide those of the prelude")]
    #![expect(clippy::allow_attributes, reason = "part of `text_enum!`")]

    struct Result;
    struct Option;
    struct Box;
    struct Vec;
    struct Some;
    struct Ok;
    mod std {}

    crate::text_enum! {
        enum Direction { Up = "up", Down = "down" }
    }
    crate::row! {
        struct StepRow { r#type: Direction, size: i64 }
    }
    crate::sql! {
        read Steps { r#type: Direction, name: &str } -> StepRow =
            "select type, length(:name)::bigint as size from (select :type::text as type) s";
    }

    #[test]
    fn a_text_enum_has_texts_for_all_its_variants() {
        assert_eq!(Direction::ALL, [Direction::Up, Direction::Down]);
        assert_eq!(Direction::ALL.map(Direction::as_str), ["up", "down"]);
        assert_eq!(Direction::Down.to_string(), "down");

        assert!(Direction::parse("down") == Direction::Down.into());
        assert!(Direction::parse("Down").is_none());
    }

    #[test]
    fn a_statement_has_its_parameters_in_order() {
        use crate::Statement;

        let steps = Steps {
            r#type: Direction::Up,
            name: "",
        };
        assert_eq!(steps.values().len(), 2);
        assert_eq!(Steps::PARAMS, [crate::Type::TEXT, crate::Type::TEXT]);
        assert!(Steps::TEXT.contains("length($2)"), "{}", Steps::TEXT);
        assert_eq!(<StepRow as crate::Row>::COLUMNS.len(), 2);
    }
}
