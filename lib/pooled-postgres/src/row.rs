//! Rows of a result as values: the `row!` macro and the types that a column may have.

use std::fmt;

use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::types::{FromSqlOwned, Type};
use uuid::Uuid;

/// A type that a column of a result may have.
pub trait Column: FromSqlOwned {
    /// The Postgres type.
    const TYPE: Type;
    /// Whether null is a value.
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

/// The declared name and type of a column, compared with the schema by `schema_check`.
pub struct ColumnSpec {
    /// The column's name, or `None` where any name is fine.
    pub name: Option<&'static str>,
    /// The Postgres type.
    pub kind: Type,
    /// Whether null is a value.
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

/// A row of a result: a struct of `row!`, a single column, or `()` for a statement that returns nothing.
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

/// The columns of one row that are not read yet.
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

/// The error of a text column whose value the enum does not have.
#[derive(Debug)]
pub struct UnknownVariant {
    /// The enum.
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

/// Declares the struct of a row. Its fields are the columns, by name and in order.
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
                &[$($crate::ColumnSpec::new::<$kind>(Some(stringify!($field)))),*];

            fn decode(
                cells: &mut $crate::Cells<'_>,
            ) -> Result<Self, $crate::DriverError> {
                Ok(Self { $($field: cells.read()?),* })
            }
        }
    };
}

/// Declares an enum that Postgres stores as text, with `ALL`, `as_str` and `parse`.
///
/// A value that the enum does not have is a decoding error, never a default.
///
/// ```
/// pooled_postgres::text_enum! {
///     /// Who said a message.
///     #[derive(serde::Serialize)]
///     #[serde(rename_all = "snake_case")]
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
            $($(#[$variant_attribute:meta])* $variant:ident = $text:literal),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$variant_attribute])* $variant,)*
        }

        #[allow(dead_code, reason = "not every enum needs all of these")]
        impl $name {
            /// Every variant, in the order of the declaration.
            $visibility const ALL: [Self; [$(Self::$variant),*].len()] = [$(Self::$variant),*];

            /// The text that is stored.
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The variant that a text stands for.
            $visibility fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::ToSql for $name {
            fn to_sql(
                &self,
                kind: &$crate::Type,
                out: &mut $crate::codec::BytesMut,
            ) -> Result<$crate::codec::IsNull, Box<dyn std::error::Error + Sync + Send>> {
                self.as_str().to_sql(kind, out)
            }

            fn accepts(kind: &$crate::Type) -> bool {
                *kind == $crate::Type::TEXT
            }

            $crate::codec::to_sql_checked!();
        }

        impl $crate::Param for $name {
            const TYPE: $crate::Type = $crate::Type::TEXT;
        }

        impl<'a> $crate::codec::FromSql<'a> for $name {
            fn from_sql(
                kind: &$crate::Type,
                raw: &'a [u8],
            ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
                let text = <&str as $crate::codec::FromSql>::from_sql(kind, raw)?;
                Self::parse(text).ok_or_else(|| {
                    let kind = stringify!($name);
                    $crate::UnknownVariant { kind, value: text.to_owned() }.into()
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
