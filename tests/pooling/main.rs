//! `Db` behind the pooler that asks most of it: PgBouncer in transaction mode with fewer connections than clients.
//!
//! Needs `pgbouncer` and a migrated database, whose URL is in ICONOCLASH_TEST_DATABASE; `cargo local test` starts both.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cancelling;
mod faults;
mod many_clients;
mod network;
mod tls;
mod values;

use std::time::Duration;

use futures_util::future::join_all;
use iconoclash_fakes::pooler::test_database;
use pooled_postgres::Db;
use tokio::time::{Instant, sleep};

pooled_postgres::sql! {
    /// Returns its parameter, so that a test notices the answer to another statement.
    read Echo { number: i64 } -> i64 = "select :number::bigint";

    read Sleep { seconds: f64 } -> i64 = "select count(*) from pg_sleep(:seconds)";

    read CountActive { application: &str } -> i64 = "
        select count(*) from pg_stat_activity
        where application_name = :application and state = 'active'";

    write TerminateBackends { application: &str } -> i64 = "
        select count(pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = :application";
}

/// Connects to Postgres without a pooler. No other test has the same application name.
fn direct(application: &str, pool_size: usize) -> Db {
    Db::named(application, &test_database(), pool_size).unwrap()
}

async fn assert_echoes(db: &Db, number: i64) {
    assert_eq!(db.one(Echo { number }).await.unwrap(), number);
}

/// Makes every connection of the pool, by running as many statements at once.
async fn warm_up(db: &Db, connections: i64) {
    join_all((0..connections).map(|number| assert_echoes(db, number))).await;
}

async fn is_busy(observer: &Db, application: &str) -> bool {
    observer.one(CountActive { application }).await.unwrap() > 0
}

async fn wait_until_busy(observer: &Db, application: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while !is_busy(observer, application).await {
        assert!(Instant::now() < until, "the statement does not run");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_until_idle(observer: &Db, application: &str) {
    let until = Instant::now() + Duration::from_secs(1);
    while is_busy(observer, application).await {
        assert!(Instant::now() < until, "the server is still busy");
        sleep(Duration::from_millis(10)).await;
    }
}

#[track_caller]
fn assert_within(limit: Duration, started_at: Instant) {
    let elapsed = started_at.elapsed();
    assert!(elapsed < limit, "took {elapsed:?}, more than {limit:?}");
}
