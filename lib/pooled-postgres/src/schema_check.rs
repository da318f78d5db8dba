//! Compares a statement with the migrated schema, as sqlx describes it. `sql!` makes a test of it for each statement.

use sqlx::{Column as _, Connection, Either, Executor, PgConnection, SqlSafeStr};

use super::{Access, Row, Statement};

/// Panics with everything in which the statement and the schema differ.
pub async fn agrees<S: Statement>() {
    let name = S::NAME;
    let mut connection = PgConnection::connect(&test_database())
        .await
        .expect("ICONOCLASH_TEST_DATABASE is the URL of a migrated database that answers");
    let described = match connection.describe(S::TEXT.into_sql_str()).await {
        Ok(described) => described,
        Err(error) => panic!("{name}: the schema refuses it: {error}"),
    };

    let mut faults = Vec::new();
    if let Some(Either::Left(params)) = described.parameters() {
        let declared = S::PARAMS.iter().map(|param| (param.oid(), param.name()));
        let inferred: Vec<_> = params
            .iter()
            .map(|param| param.oid().map(|oid| oid.0))
            .collect();
        if !declared.clone().map(|(oid, _)| Some(oid)).eq(inferred) {
            let declared: Vec<_> = declared.map(|(_, name)| name).collect();
            faults.push(format!(
                "parameters: declared {declared:?}, inferred {params:?}"
            ));
        }
    }
    let (declared, given) = (S::Row::COLUMNS, described.columns());
    if declared.len() != given.len() {
        let names: Vec<_> = given.iter().map(|column| column.name()).collect();
        faults.push(format!(
            "columns: declared {}, given {names:?}",
            declared.len()
        ));
    }
    for (at, (declared, given)) in declared.iter().zip(given).enumerate() {
        let name = given.name();
        if let Some(wanted) = declared.name
            && wanted.trim_start_matches("r#") != name
        {
            faults.push(format!("column {at} is {name}, declared {wanted}"));
        }
        if given.type_info().oid().map(|oid| oid.0) != Some(declared.kind.oid()) {
            let kind = given.type_info();
            faults.push(format!(
                "{name} is {kind:?}, declared {}",
                declared.kind.name()
            ));
        }
        // Of an expression sqlx knows nothing; there the declaration stands.
        if described.nullable(at) == Some(true) && !declared.nullable {
            faults.push(format!("{name} may be null and is no Option"));
        }
    }
    match (S::ACCESS, changes_something(S::TEXT)) {
        (Access::Read, true) => faults.push("declared read, but it writes or locks".to_owned()),
        (Access::Write, false) => faults.push("declared write, but it changes nothing".to_owned()),
        _ => {}
    }
    assert!(faults.is_empty(), "{name}:\n  {}", faults.join("\n  "));
}

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the test run, not of a deployment"
)]
fn test_database() -> String {
    std::env::var("ICONOCLASH_TEST_DATABASE")
        .expect("ICONOCLASH_TEST_DATABASE is not set: run `cargo local test`, which starts a migrated database")
}

/// A read that is sent twice must not do anything twice.
fn changes_something(text: &str) -> bool {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.map(str::to_ascii_lowercase).any(|word| {
        matches!(
            word.as_str(),
            "insert" | "update" | "delete" | "merge" | "truncate" | "nextval" | "set_config"
        ) || word.starts_with("pg_advisory")
    })
}

#[cfg(test)]
mod tests {
    use super::{Access, Statement, agrees, changes_something};
    use crate::{ToSql, Type};
    use std::{marker::PhantomData, panic::AssertUnwindSafe};
    use time::OffsetDateTime;
    use uuid::Uuid;

    crate::row! {
        #[expect(dead_code, reason = "only described")]
        struct UserRow { id: Uuid, email: Option<String>, created_at: OffsetDateTime }
    }
    crate::row! {
        #[expect(dead_code, reason = "only described")]
        struct CarelessRow { id: Uuid, email: String }
    }
    crate::sql! {
        /// A row of a struct.
        read ByEmail { email: &str } -> UserRow =
            "select id, email, created_at from users where lower(email) = lower(:email)";
        /// A single column.
        read CountOfPlan { plan: &str } -> i64 = "select count(*) from users where plan = :plan";
        /// No row.
        write RaiseTokenVersion { user: Uuid } -> () =
            "update users set token_version = token_version + 1 where id = :user";
        /// An outer join makes null of what its table never is.
        read IconsOf { discussion: Uuid } -> Option<String> = "
            select i.name from discussions d left join icons i on i.slug = any(d.icons)
            where d.id = :discussion";
    }

    macro_rules! wrong {
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
    wrong!(NoTable, Read, [], Uuid, "select id from user_s");
    wrong!(
        Nullable,
        Read,
        [UUID],
        CarelessRow,
        "select id, email from users where id = $1"
    );
    wrong!(
        WrongParam,
        Read,
        [TEXT],
        CarelessRow,
        "select id, email from users where id = $1"
    );
    wrong!(
        TooFewColumns,
        Read,
        [UUID],
        Uuid,
        "select id, email from users where id = $1"
    );
    wrong!(
        OtherName,
        Read,
        [],
        UserRow,
        "select id, plan, created_at from users"
    );
    wrong!(OtherType, Read, [], i32, "select count(*) from users");
    wrong!(ReadThatWrites, Read, [], (), "delete from users");
    wrong!(WriteThatReads, Write, [], Uuid, "select id from users");
    wrong!(
        OuterJoin,
        Read,
        [],
        String,
        "select i.name from discussions d left join icons i on i.slug = any(d.icons)"
    );

    async fn fault<S: Statement>() -> String {
        let checked = AssertUnwindSafe(agrees::<S>());
        let panic = futures_util::FutureExt::catch_unwind(checked)
            .await
            .unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[tokio::test]
    async fn every_kind_of_disagreement_is_found() {
        for (fault, expected) in [
            (fault::<NoTable>().await, "refuses it"),
            (fault::<Nullable>().await, "email may be null"),
            (fault::<WrongParam>().await, "parameters: declared"),
            (fault::<TooFewColumns>().await, "columns: declared 1"),
            (fault::<OtherName>().await, "column 1 is plan"),
            (fault::<OtherType>().await, "declared int4"),
            (fault::<ReadThatWrites>().await, "declared read"),
            (fault::<WriteThatReads>().await, "declared write"),
            (fault::<OuterJoin>().await, "name may be null"),
        ] {
            assert!(
                fault.contains(expected),
                "{fault:?} says nothing of {expected:?}"
            );
        }
    }

    #[test]
    fn reads_are_told_from_writes_by_their_words() {
        assert!(!changes_something(
            "select updated_at, deleted from t order by inserted"
        ));
        assert!(changes_something(
            "with x as (delete from t returning id) select id from x"
        ));
        assert!(changes_something("select id from t for update"));
        assert!(changes_something("select pg_advisory_lock(1)"));
    }
}
