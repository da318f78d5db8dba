//! Has sqlx describe a statement against the migrated schema and compares that with what `sql!` declared.

use sqlx::{Column as _, Connection, Either, Executor, PgConnection, SqlSafeStr};

use super::{Access, Row, Sql};

/// Panics with everything in which the statement and the schema differ.
pub(crate) async fn agrees<R: Row>(name: &str, sql: &Sql<R>) {
    let mut connection = PgConnection::connect(&test_database())
        .await
        .expect("ICONOCLASH_TEST_DATABASE is the URL of a migrated database that answers");
    let described = match connection.describe(sql.text.into_sql_str()).await {
        Ok(described) => described,
        Err(error) => panic!("{name}: the schema refuses it: {error}"),
    };

    let mut faults = Vec::new();
    if let Some(Either::Left(params)) = described.parameters() {
        let declared = sql.params.iter().map(|param| (param.oid(), param.name()));
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
    let (declared, given) = (R::COLUMNS, described.columns());
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
    match (sql.access, changes_something(sql.text)) {
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
    use super::{Access, Sql, agrees, changes_something};
    use crate::db::Type;
    use std::panic::AssertUnwindSafe;
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
        read BY_EMAIL(TEXT) -> UserRow =
            "select id, email, created_at from users where lower(email) = lower($1)";
        /// A single column.
        read COUNT_OF_PLAN(TEXT) -> i64 = "select count(*) from users where plan = $1";
        /// No row.
        write RAISE_TOKEN_VERSION(UUID) -> () =
            "update users set token_version = token_version + 1 where id = $1";
        /// An outer join makes null of what its table never is.
        read ICONS_OF(UUID) -> Option<String> =
            "select i.name from discussions d left join icons i on i.slug = any(d.icons) where d.id = $1";
    }

    async fn fault<R: super::Row>(sql: Sql<R>) -> String {
        let checked = AssertUnwindSafe(agrees("IT", &sql));
        let panic = futures_util::FutureExt::catch_unwind(checked)
            .await
            .unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[tokio::test]
    async fn every_kind_of_disagreement_is_found() {
        let read = Access::Read;
        let text = "select id, email from users where id = $1";
        for (fault, expected) in [
            (
                fault::<Uuid>(Sql::unchecked(read, &[], "select id from user_s")).await,
                "refuses it",
            ),
            (
                fault::<CarelessRow>(Sql::unchecked(read, &[Type::UUID], text)).await,
                "email may be null",
            ),
            (
                fault::<CarelessRow>(Sql::unchecked(read, &[Type::TEXT], text)).await,
                "parameters: declared",
            ),
            (
                fault::<Uuid>(Sql::unchecked(read, &[Type::UUID], text)).await,
                "columns: declared 1",
            ),
            (
                fault::<UserRow>(Sql::unchecked(
                    read,
                    &[],
                    "select id, plan, created_at from users",
                ))
                .await,
                "column 1 is plan",
            ),
            (
                fault::<i32>(Sql::unchecked(read, &[], "select count(*) from users")).await,
                "declared int4",
            ),
            (
                fault::<()>(Sql::unchecked(read, &[], "delete from users")).await,
                "declared read",
            ),
            (
                fault::<Uuid>(Sql::unchecked(Access::Write, &[], "select id from users")).await,
                "declared write",
            ),
            (
                fault::<String>(Sql::unchecked(
                    read,
                    &[],
                    "select i.name from discussions d left join icons i on i.slug = any(d.icons)",
                ))
                .await,
                "name may be null",
            ),
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
