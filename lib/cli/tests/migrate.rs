//! `migrate` and `doctor` on new databases of the server that ICONOCLASH_TEST_DATABASE names.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use iconoclash_cli::{
    Error,
    doctor::{Finding, Severity, doctor},
    migrate,
};
use iconoclash_fakes::pooler::{Pooler, test_database};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

/// A new, empty database.
struct Scratch {
    name: String,
    url: String,
}

impl Scratch {
    async fn create() -> Self {
        let name = format!(
            "iconoclash_{:032x}",
            Uuid::from_u128(rand::random()).as_u128()
        );
        let mut server = PgConnection::connect(&test_database()).await.unwrap();
        server
            .execute(AssertSqlSafe(format!("create database {name}")))
            .await
            .unwrap();

        let base = test_database();
        let (address, query) = base.split_once('?').unwrap_or((&base, ""));
        let (server, _) = address.rsplit_once('/').unwrap();
        let url = format!("{server}/{name}?{query}");
        Self { name, url }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    async fn remove(self) {
        let mut server = PgConnection::connect(&test_database()).await.unwrap();
        server
            .execute(AssertSqlSafe(format!(
                "drop database {} with (force)",
                self.name
            )))
            .await
            .unwrap();
    }
}

async fn run_migrate(direct: &str, pooled: Option<&str>) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    migrate(direct, pooled, &mut |line| lines.push(line)).await?;
    Ok(lines)
}

async fn query_number(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

fn has_finding(findings: &[Finding], severity: Severity, text: &str) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == severity && finding.text.contains(text))
}

#[tokio::test]
async fn four_runs_at_once_on_an_empty_database_all_succeed() {
    let scratch = Scratch::create().await;
    let mut runs = JoinSet::new();
    for _ in 0..4 {
        let url = scratch.url.clone();
        runs.spawn(async move { run_migrate(&url, Some(&url)).await });
    }

    let runs = timeout(Duration::from_secs(60), runs.join_all())
        .await
        .unwrap();
    let applying = runs.iter().filter(|lines| {
        lines
            .as_ref()
            .unwrap()
            .iter()
            .any(|line| line.starts_with("applied "))
    });
    assert_eq!(applying.count(), 1, "{runs:?}");

    let mut connection = scratch.connect().await;
    assert!(
        query_number(
            &mut connection,
            "select count(*) from icons where not retired"
        )
        .await
            >= 14
    );
    // Only locks of this database: other tests migrate theirs on the same server.
    let held = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
         where l.locktype = 'advisory' and d.datname = current_database()";
    assert_eq!(query_number(&mut connection, held).await, 0);

    let timeouts: Vec<String> = sqlx::query_scalar(
        "select current_setting(name) from unnest(array['statement_timeout', 'lock_timeout',
         'idle_in_transaction_session_timeout']) as name",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(timeouts, ["5s", "3s", "10s"]);

    scratch.remove().await;
}

#[tokio::test]
async fn seeding_again_repairs_icons_and_retires_those_that_the_file_lacks() {
    let scratch = Scratch::create().await;
    run_migrate(&scratch.url, None).await.unwrap();
    let again = run_migrate(&scratch.url, None).await.unwrap();
    assert!(
        again.contains(&"schema: up to date".to_owned()),
        "{again:?}"
    );
    assert!(
        again.contains(&"icons: 0 added, 0 changed, 0 retired".to_owned()),
        "{again:?}"
    );
    assert!(
        again.contains(&"timeouts: skipped, DATABASE_URL is not set".to_owned()),
        "{again:?}"
    );

    let mut connection = scratch.connect().await;
    connection
        .execute(
            "update icons set tagline = 'edited' where position = 0;
             update icons set retired = true where position = 1;
             delete from icons where position = 2;
             insert into icons values ('nobody', 'Nobody', 'never', 'was', 'here', 99, false);",
        )
        .await
        .unwrap();
    let repaired = run_migrate(&scratch.url, None).await.unwrap();
    assert!(
        repaired.contains(&"icons: 1 added, 2 changed, 1 retired".to_owned()),
        "{repaired:?}"
    );
    let retired = "select count(*) from icons where slug = 'nobody' and retired";
    assert_eq!(query_number(&mut connection, retired).await, 1);
    scratch.remove().await;
}

#[tokio::test]
async fn a_role_without_permission_to_set_timeouts_gets_the_statement_to_ask_for() {
    let scratch = Scratch::create().await;
    run_migrate(&scratch.url, None).await.unwrap();
    let mut connection = scratch.connect().await;
    let owner = format!("owner_{}", &scratch.name[11..27]);
    connection
        .execute(AssertSqlSafe(format!(
            "create role {owner} login password 'of a test'; grant all on schema public to {owner};
             grant all on all tables in schema public to {owner}"
        )))
        .await
        .unwrap();

    let (scheme, rest) = scratch.url.split_once("://").unwrap();
    let (_, address) = rest.split_once('@').unwrap();
    let direct = format!("{scheme}://{owner}:of%20a%20test@{address}");

    let lines = run_migrate(&direct, Some(&scratch.url)).await.unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("timeouts: skipped") && line.contains("alter role")),
        "{lines:?}"
    );
    connection
        .execute(AssertSqlSafe(format!(
            "drop owned by {owner}; drop role {owner}"
        )))
        .await
        .unwrap();
    scratch.remove().await;
}

#[tokio::test]
async fn a_pooler_is_refused_before_anything_changes() {
    let scratch = Scratch::create().await;
    let pooler = Pooler::start().await;
    let refused = run_migrate(&pooler.url_of(&scratch.name), None)
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Pooler(_)), "{refused:?}");
    let mut connection = scratch.connect().await;
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    assert_eq!(query_number(&mut connection, tables).await, 0);
    drop(pooler);
    scratch.remove().await;
}

#[tokio::test]
async fn a_history_of_migrations_that_differs_from_this_release_is_refused() {
    let scratch = Scratch::create().await;
    run_migrate(&scratch.url, None).await.unwrap();
    let mut connection = scratch.connect().await;
    for (fault, expected) in [
        (
            "update _sqlx_migrations set checksum = '\\x00'",
            "was edited after",
        ),
        (
            "update _sqlx_migrations set version = 99990101000000
             where version = (select max(version) from _sqlx_migrations)",
            "later release",
        ),
    ] {
        connection.execute(fault).await.unwrap();
        let refused = run_migrate(&scratch.url, None)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    scratch.remove().await;
}

#[tokio::test]
async fn the_doctor_says_how_to_repair_each_fault() {
    let scratch = Scratch::create().await;
    let pooler = Pooler::start().await;
    let pooled = pooler.url_of(&scratch.name);

    let findings = doctor(None, None).await;
    assert!(
        has_finding(&findings, Severity::Failure, "DATABASE_URL is not set"),
        "{findings:?}"
    );
    assert!(
        has_finding(
            &findings,
            Severity::Failure,
            "DATABASE_URL_UNPOOLED is not set"
        ),
        "{findings:?}"
    );

    let findings = doctor(Some(&pooled), Some(&scratch.url)).await;
    assert!(
        has_finding(&findings, Severity::Failure, "run `iconoclash migrate`"),
        "{findings:?}"
    );
    assert!(
        has_finding(&findings, Severity::Fine, "does not track named statements"),
        "{findings:?}"
    );

    run_migrate(&scratch.url, Some(&pooled)).await.unwrap();
    let findings = doctor(Some(&pooled), Some(&scratch.url)).await;
    assert!(
        !has_finding(&findings, Severity::Failure, ""),
        "{findings:?}"
    );
    assert!(
        has_finding(&findings, Severity::Fine, "the same database"),
        "{findings:?}"
    );

    let swapped = doctor(Some(&scratch.url), Some(&pooled)).await;
    assert!(
        has_finding(&swapped, Severity::Notice, "no pooler"),
        "{swapped:?}"
    );
    assert!(
        has_finding(&swapped, Severity::Failure, "leads to a pooler"),
        "{swapped:?}"
    );

    let elsewhere = doctor(Some(&pooler.url()), Some(&scratch.url)).await;
    assert!(
        has_finding(&elsewhere, Severity::Failure, "different databases"),
        "{elsewhere:?}"
    );

    let nonsense = doctor(Some("postgres://u:secret@127.0.0.1:1/d"), Some("nonsense")).await;
    assert!(
        has_finding(&nonsense, Severity::Failure, "DATABASE_URL: "),
        "{nonsense:?}"
    );
    assert!(
        has_finding(&nonsense, Severity::Failure, "no Postgres URL"),
        "{nonsense:?}"
    );
    assert!(!format!("{nonsense:?}").contains("secret"), "{nonsense:?}");

    drop(pooler);
    scratch.remove().await;
}
