//! `Db` on the worst pooler that our users have: PgBouncer in transaction mode with fewer connections than clients.
//!
//! Needs a migrated database, named by ICONOCLASH_TEST_DATABASE, and `pgbouncer`; `cargo local test` sees to both.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bouncer;
mod faults;
mod gate;
mod giving_up;
mod mix;
mod support;
mod tls;

use pooled_postgres::{Access, Db, Sql, Type};

use self::support::test_database;

/// Gives back what it was given, so that an answer of somebody else is noticed.
const ECHO: Sql<i64> = Sql::unchecked(Access::Read, &[Type::INT8], "select $1");
const SLEEP: Sql<i64> = Sql::unchecked(
    Access::Read,
    &[Type::FLOAT8],
    "select count(*) from pg_sleep($1)",
);
const BUSY: Sql<i64> = Sql::unchecked(
    Access::Read,
    &[Type::TEXT],
    "select count(*) from pg_stat_activity where application_name = $1 and state = 'active'",
);
const TERMINATE: Sql<i64> = Sql::unchecked(
    Access::Write,
    &[Type::TEXT],
    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1",
);

/// Straight to Postgres, under a name that no other test has.
fn direct(name: &str, pool_size: usize) -> Db {
    named(&test_database(), name, pool_size)
}

fn named(url: &str, name: &str, pool_size: usize) -> Db {
    let separator = if url.contains('?') { '&' } else { '?' };
    Db::new(
        &format!("{url}{separator}application_name={name}"),
        pool_size,
    )
    .unwrap()
}

async fn assert_echoes(db: &Db, number: i64) {
    assert_eq!(db.old_one(&ECHO, &[&number]).await.unwrap(), number);
}

/// As many statements at once as the pool has connections, so that each of them is made.
async fn warm_up(db: &Db, connections: i64) {
    futures_util::future::join_all((0..connections).map(|n| assert_echoes(db, n))).await;
}

async fn is_busy(watch: &Db, name: &str) -> bool {
    watch.old_one(&BUSY, &[&name]).await.unwrap() > 0
}
