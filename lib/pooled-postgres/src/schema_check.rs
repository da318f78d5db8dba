//! Compares statements with the migrated schema, as sqlx describes them. [`sql!`](crate::sql) makes a test of it for
//! each statement.

use sqlx::{
    Column as _, Connection, Describe, Either, Executor, PgConnection, Postgres, SqlSafeStr,
    postgres::PgColumn,
};

use super::{Access, ColumnSpec, Row, Statement};

/// Panics with every difference between the statement and the schema.
///
/// The environment variable `ICONOCLASH_TEST_DATABASE` is the URL of a migrated database.
pub async fn agrees<S: Statement>() {
    let name = S::NAME;
    let mut connection = PgConnection::connect(&test_database())
        .await
        .expect("ICONOCLASH_TEST_DATABASE is the URL of a migrated database that answers");
    let described = match connection.describe(S::TEXT.into_sql_str()).await {
        Ok(described) => described,
        Err(error) => panic!("{name}: the server rejects the statement: {error}"),
    };

    let mut faults = Vec::new();
    faults.extend(fault_of_parameters::<S>(&described));
    faults.extend(fault_of_column_count::<S>(described.columns()));
    for (at, (declared, actual)) in S::Row::COLUMNS.iter().zip(described.columns()).enumerate() {
        // sqlx does not know whether an expression may be null; the declaration is trusted there.
        let may_be_null = described.nullable(at) == Some(true);
        faults.extend(faults_of_column(at, declared, actual, may_be_null));
    }
    faults.extend(fault_of_access(S::ACCESS, S::TEXT));

    assert!(faults.is_empty(), "{name}:\n  {}", faults.join("\n  "));
}

fn fault_of_parameters<S: Statement>(described: &Describe<Postgres>) -> Option<String> {
    let Some(Either::Left(inferred)) = described.parameters() else {
        return None;
    };
    let inferred_oids = inferred.iter().map(|kind| kind.oid().map(|oid| oid.0));
    let declared_oids = S::PARAMS.iter().map(|kind| Some(kind.oid()));

    let differ = !declared_oids.eq(inferred_oids);
    differ.then(|| {
        let declared: Vec<_> = S::PARAMS.iter().map(|kind| kind.name()).collect();
        format!("parameters: declared {declared:?}, inferred {inferred:?}")
    })
}

fn fault_of_column_count<S: Statement>(actual: &[PgColumn]) -> Option<String> {
    let declared = S::Row::COLUMNS.len();
    let differ = declared != actual.len();
    differ.then(|| {
        let names: Vec<_> = actual.iter().map(|column| column.name()).collect();
        format!("columns: declared {declared}, the statement returns {names:?}")
    })
}

fn faults_of_column(
    at: usize,
    declared: &ColumnSpec,
    actual: &PgColumn,
    may_be_null: bool,
) -> Vec<String> {
    let mut faults = Vec::new();
    let name = actual.name();

    if let Some(field) = declared.name
        && field.trim_start_matches("r#") != name
    {
        faults.push(format!("column {at} is {name}, declared {field}"));
    }

    let kind = actual.type_info();
    if kind.oid().map(|oid| oid.0) != Some(declared.kind.oid()) {
        let declared = declared.kind.name();
        faults.push(format!("{name} is {kind:?}, declared {declared}"));
    }

    if may_be_null && !declared.nullable {
        faults.push(format!("{name} may be null, so its type is an Option"));
    }
    faults
}

fn fault_of_access(access: Access, text: &str) -> Option<String> {
    match (access, changes_something(text)) {
        (Access::Read, true) => Some("declared read, but it writes or locks".to_owned()),
        (Access::Write, false) => Some("declared write, but it changes nothing".to_owned()),
        _ => None,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the test run, not of a deployment"
)]
fn test_database() -> String {
    std::env::var("ICONOCLASH_TEST_DATABASE").expect(
        "ICONOCLASH_TEST_DATABASE is not set: run `cargo local test`, which starts a \
                 migrated database",
    )
}

/// Whether the text has a word that writes, locks or acts outside the statement.
fn changes_something(text: &str) -> bool {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.map(str::to_ascii_lowercase).any(|word| {
        matches!(
            word.as_str(),
            "insert"
                | "update"
                | "delete"
                | "merge"
                | "truncate"
                | "nextval"
                | "set_config"
                | "pg_cancel_backend"
                | "pg_terminate_backend"
        ) || word.starts_with("pg_advisory")
    })
}

#[cfg(test)]
mod tests {
    use std::{marker::PhantomData, panic::AssertUnwindSafe};

    use futures_util::FutureExt;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::{Access, Statement, agrees, changes_something};
    use crate::{ToSql, Type};

    crate::row! {
        #[expect(dead_code, reason = "only described")]
        struct UserRow { id: Uuid, email: Option<String>, created_at: OffsetDateTime }
    }
    crate::row! {
        #[expect(dead_code, reason = "only described")]
        struct CarelessRow { id: Uuid, email: String }
    }
    crate::sql! {
        /// Returns rows of a struct.
        read ByEmail { email: &str } -> UserRow =
            "select id, email, created_at from users where lower(email) = lower(:email)";
        /// Returns a single column.
        read CountOfPlan { plan: &str } -> i64 = "select count(*) from users where plan = :plan";
        /// Returns nothing.
        write RaiseTokenVersion { user: Uuid } -> () =
            "update users set token_version = token_version + 1 where id = :user";
        /// An outer join makes a column nullable that is not null in its table.
        read IconsOf { discussion: Uuid } -> Option<String> = "
            select i.name from discussions d left join icons i on i.slug = any(d.icons)
            where d.id = :discussion";
    }

    /// A statement that disagrees with the schema; `sql!` would make a failing test of it.
    macro_rules! mismatched {
        ($name:ident, $access:ident, [$($param:ident),*], $row:ty, $text:literal) => {
            struct $name(PhantomData<$row>);

            impl Statement for $name {
                type Row = $row;
                const NAME: &'static str = stringify!($name);
                const TEXT: &'static str = $text;
                const ACCESS: Access = Access::$access;
                const PARAMS: &'static [Type] = &[$(Type::$param),*];

                fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
                    Vec::new()
                }
            }
        };
    }
    mismatched!(NoTable, Read, [], Uuid, "select id from user_s");
    mismatched!(
        Nullable,
        Read,
        [UUID],
        CarelessRow,
        "select id, email from users where id = $1"
    );
    mismatched!(
        WrongParam,
        Read,
        [TEXT],
        CarelessRow,
        "select id, email from users where id = $1"
    );
    mismatched!(
        TooFewColumns,
        Read,
        [UUID],
        Uuid,
        "select id, email from users where id = $1"
    );
    mismatched!(
        OtherName,
        Read,
        [],
        UserRow,
        "select id, plan, created_at from users"
    );
    mismatched!(OtherType, Read, [], i32, "select count(*) from users");
    mismatched!(ReadThatWrites, Read, [], (), "delete from users");
    mismatched!(WriteThatReads, Write, [], Uuid, "select id from users");
    mismatched!(
        OuterJoin,
        Read,
        [],
        String,
        "select i.name from discussions d left join icons i on i.slug = any(d.icons)"
    );

    async fn fault<S: Statement>() -> String {
        let check = AssertUnwindSafe(agrees::<S>());
        let panic = check.catch_unwind().await.unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[tokio::test]
    async fn every_kind_of_difference_is_found() {
        for (fault, expected) in [
            (fault::<NoTable>().await, "the server rejects"),
            (fault::<Nullable>().await, "email may be null"),
            (fault::<WrongParam>().await, "parameters: declared"),
            (fault::<TooFewColumns>().await, "columns: declared 1"),
            (fault::<OtherName>().await, "column 1 is plan"),
            (fault::<OtherType>().await, "declared int4"),
            (fault::<ReadThatWrites>().await, "declared read"),
            (fault::<WriteThatReads>().await, "declared write"),
            (fault::<OuterJoin>().await, "name may be null"),
        ] {
            assert!(fault.contains(expected), "{expected:?} is not in {fault:?}");
        }
    }

    #[test]
    fn writes_are_recognized_by_their_words() {
        assert!(!changes_something(
            "select updated_at, deleted from t order by inserted"
        ));
        assert!(changes_something(
            "with x as (delete from t returning id) select id from x"
        ));
        assert!(changes_something("select id from t for update"));
        assert!(changes_something("select pg_advisory_lock(1)"));
        assert!(changes_something("select pg_terminate_backend(1)"));
    }
}
