//! Statements and rows as values: `sql!` and `row!`.

use std::marker::PhantomData;

use serde_json::Value;
use time::{Date, OffsetDateTime};
use tokio_postgres::types::{FromSqlOwned, Type};
use uuid::Uuid;

/// Whether a statement may be sent again when its connection died without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing: asked once more on a fresh connection.
    Read,
    /// May have happened although no answer came: never sent twice.
    Write,
}

/// A statement that gives rows of `R`. Declared with `sql!`, which also checks it against the schema.
pub struct Sql<R> {
    pub(super) text: &'static str,
    pub(super) params: &'static [Type],
    pub(super) access: Access,
    row: PhantomData<fn() -> R>,
}

impl<R> Sql<R> {
    /// What `sql!` expands to. A statement made by hand is checked by nobody.
    #[doc(hidden)]
    pub const fn unchecked(access: Access, params: &'static [Type], text: &'static str) -> Self {
        Self {
            text,
            params,
            access,
            row: PhantomData,
        }
    }
}

/// A type that a column of a result may have.
pub trait Column: FromSqlOwned {
    /// The type as the server names it.
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

/// What a row promises of one of its columns.
pub struct ColumnSpec {
    /// None where any name will do.
    pub name: Option<&'static str>,
    /// The type as the server names it.
    pub kind: Type,
    /// Whether null is a value.
    pub nullable: bool,
}

impl ColumnSpec {
    /// The promise that a field makes by its name and type.
    pub const fn of<T: Column>(name: Option<&'static str>) -> Self {
        Self {
            name,
            kind: T::TYPE,
            nullable: T::NULLABLE,
        }
    }
}

/// A row of a result: a struct of `row!`, a single column, or nothing.
pub trait Row: Sized {
    /// In the order of the result.
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
    const COLUMNS: &'static [ColumnSpec] = &[ColumnSpec::of::<T>(None)];

    fn decode(cells: &mut Cells<'_>) -> Result<Self, tokio_postgres::Error> {
        cells.read()
    }
}

/// The columns of one row that are still to be read.
pub struct Cells<'a> {
    row: &'a tokio_postgres::Row,
    next: usize,
}

impl<'a> Cells<'a> {
    pub(super) fn of(row: &'a tokio_postgres::Row) -> Self {
        Self { row, next: 0 }
    }

    /// The next column.
    pub fn read<T: Column>(&mut self) -> Result<T, tokio_postgres::Error> {
        let cell = self.row.try_get(self.next);
        self.next += 1;
        cell
    }
}

/// Declares the struct of a row; its fields are the columns, by name and in order.
///
/// ```
/// iconoclash::row! {
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

        impl $crate::db::Row for $name {
            const COLUMNS: &'static [$crate::db::ColumnSpec] =
                &[$($crate::db::ColumnSpec::of::<$kind>(Some(stringify!($field)))),*];

            fn decode(
                cells: &mut $crate::db::Cells<'_>,
            ) -> Result<Self, $crate::db::DriverError> {
                Ok(Self { $($field: cells.read()?),* })
            }
        }
    };
}

/// Declares statements, each with a test of its own that has the migrated schema describe it.
///
/// `read` or `write`, the types of the parameters by Postgres' name, what a row is (`()` for a statement that gives
/// none), and the text. Only at the level of a module, for the test is a module of the statement's name.
///
/// ```
/// iconoclash::sql! {
///     /// Whatever the case it was typed in.
///     pub(crate) read ID_BY_EMAIL(TEXT) -> uuid::Uuid =
///         "select id from users where lower(email) = lower($1)";
///
///     /// Ends every session of a user at once.
///     write RAISE_TOKEN_VERSION(UUID) -> () =
///         "update users set token_version = token_version + 1 where id = $1";
/// }
///
/// async fn sign_out_everywhere(db: &iconoclash::db::Db, email: &str) -> Result<(), iconoclash::db::Error> {
///     if let Some(id) = db.optional(&ID_BY_EMAIL, &[&email]).await? {
///         db.execute(&RAISE_TOKEN_VERSION, &[&id]).await?;
///     }
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! sql {
    () => {};
    ($(#[$attribute:meta])* $visibility:vis read $($rest:tt)*) => {
        $crate::sql!(@ [$(#[$attribute])* $visibility] Read $($rest)*);
    };
    ($(#[$attribute:meta])* $visibility:vis write $($rest:tt)*) => {
        $crate::sql!(@ [$(#[$attribute])* $visibility] Write $($rest)*);
    };
    (
        @ [$($head:tt)*] $access:ident $name:ident($($param:ident),* $(,)?) -> $row:ty = $text:expr;
        $($rest:tt)*
    ) => {
        $($head)* const $name: $crate::db::Sql<$row> = $crate::db::Sql::unchecked(
            $crate::db::Access::$access,
            const { &[$($crate::db::Type::$param),*] },
            $text,
        );

        #[cfg(test)]
        #[expect(non_snake_case, reason = "named after the statement, so that a failure names it")]
        mod $name {
            #[tokio::test]
            async fn agrees_with_the_schema() {
                $crate::db::check::agrees(stringify!($name), &super::$name).await;
            }
        }

        $crate::sql!($($rest)*);
    };
}
