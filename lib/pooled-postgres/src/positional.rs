//! Temporary: statements with positional parameters, until all are declared with named ones.
#![allow(missing_docs)]

use crate::*;
use std::marker::PhantomData;

pub struct Sql<R> {
    pub text: &'static str,
    pub params: &'static [Type],
    pub access: Access,
    row: PhantomData<fn() -> R>,
}

impl<R> Sql<R> {
    pub const fn unchecked(access: Access, params: &'static [Type], text: &'static str) -> Self {
        Self {
            text,
            params,
            access,
            row: PhantomData,
        }
    }
}

impl Db {
    pub async fn old_all<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<R>, Error> {
        let (rows, _) = self.old_fetch(sql, params).await?;
        rows.iter().map(decode).collect()
    }

    pub async fn old_optional<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<R>, Error> {
        let (rows, _) = self.old_fetch(sql, params).await?;
        match rows.as_slice() {
            [] => Ok(None),
            [row] => decode(row).map(Some),
            _ => Err(Error::other("more than one row where at most one was due")),
        }
    }

    pub async fn old_one<R: Row>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<R, Error> {
        let row = self.old_optional(sql, params).await?;
        row.ok_or_else(|| Error::other("no row where one was due"))
    }

    pub async fn old_execute(
        &self,
        sql: &Sql<()>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        let (_, touched) = self.old_fetch(sql, params).await?;
        Ok(touched)
    }

    async fn old_fetch<R>(
        &self,
        sql: &Sql<R>,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<(Vec<tokio_postgres::Row>, u64), Error> {
        let (due, given) = (sql.params.len(), params.len());
        if due != given {
            let text = sql.text;
            return Err(Error::other(format!(
                "{given} parameters given where {due} are due: {text}"
            )));
        }
        let query = Query {
            text: sql.text,
            types: sql.params,
            values: params,
        };
        let until = Instant::now() + self.deadline;
        let answer = match self.run(&query, until).await {
            Err(Failure::ConnectionLost(_)) if sql.access == Access::Read => {
                self.pool.retain(|_, _| false);
                self.run(&query, until).await
            }
            answer => answer,
        };
        answer.map_err(Error::from)
    }
}

#[macro_export]
macro_rules! sql_positional {
    () => {};
    ($(#[$attribute:meta])* $visibility:vis read $($rest:tt)*) => {
        $crate::sql_positional!(@ [$(#[$attribute])* $visibility] Read $($rest)*);
    };
    ($(#[$attribute:meta])* $visibility:vis write $($rest:tt)*) => {
        $crate::sql_positional!(@ [$(#[$attribute])* $visibility] Write $($rest)*);
    };
    (
        @ [$($head:tt)*] $access:ident $name:ident($($param:ident),* $(,)?) -> $row:ty = $text:expr;
        $($rest:tt)*
    ) => {
        $($head)* const $name: $crate::Sql<$row> = $crate::Sql::unchecked(
            $crate::Access::$access,
            const { &[$($crate::Type::$param),*] },
            $text,
        );
        $crate::sql_positional!($($rest)*);
    };
}
