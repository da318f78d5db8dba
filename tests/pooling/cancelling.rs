//! A statement whose caller stops waiting is cancelled at the server.

use std::time::Duration;

use iconoclash_fakes::pooler::{Pooler, test_database};
use pooled_postgres::{Db, Error};
use tokio::{task::JoinSet, time::Instant};

use crate::{Sleep, assert_echoes, assert_within, direct, wait_until_busy, wait_until_idle};

pooled_postgres::sql! {
    read BackendPid -> i32 = "select pg_backend_pid()";
}

#[tokio::test]
async fn a_statement_past_its_deadline_is_cancelled_through_the_pooler() {
    let pooler = Pooler::start().await;
    let application = "deadline_pooled";
    let db = Db::named(application, &pooler.url(), 1).unwrap();
    assert_cancelled_at_its_deadline(&db, application).await;
}

#[tokio::test]
async fn a_statement_past_its_deadline_is_cancelled_without_a_pooler() {
    let application = "deadline_direct";
    let db = direct(application, 1);

    let first = db.one(BackendPid).await.unwrap();
    assert_cancelled_at_its_deadline(&db, application).await;
    let second = db.one(BackendPid).await.unwrap();
    assert_ne!(first, second, "the connection was used again");
}

pub(crate) async fn assert_cancelled_at_its_deadline(db: &Db, application: &str) {
    let observer = direct("observer", 1);
    let hasty = db.with_deadline(Duration::from_millis(200));

    let started_at = Instant::now();
    let outcome = hasty.one(Sleep { seconds: 30.0 }).await;
    assert!(matches!(outcome, Err(Error::Deadline)), "{outcome:?}");
    assert_within(Duration::from_secs(2), started_at);

    wait_until_idle(&observer, application).await;
    assert_echoes(db, 1).await;
}

#[tokio::test]
async fn a_dropped_statement_is_cancelled_and_its_connection_is_not_used_again() {
    let pooler = Pooler::start().await;
    for (url, application) in [
        (pooler.url(), "dropped_pooled"),
        (test_database(), "dropped_direct"),
    ] {
        let db = Db::named(application, &url, 1).unwrap();
        let observer = direct("observer", 1);

        let mut caller = JoinSet::new();
        let sleeping = db.clone();
        caller.spawn(async move { sleeping.one(Sleep { seconds: 30.0 }).await });
        wait_until_busy(&observer, application).await;

        caller.shutdown().await;
        wait_until_idle(&observer, application).await;
        assert_echoes(&db, 7).await;
    }
}

#[tokio::test]
async fn a_pool_without_a_free_connection_is_unavailable_after_a_while() {
    let application = "full_pool";
    let db = direct(application, 1);
    let observer = direct("observer", 1);

    let mut caller = JoinSet::new();
    let sleeping = db.clone();
    caller.spawn(async move { sleeping.one(Sleep { seconds: 30.0 }).await });
    wait_until_busy(&observer, application).await;

    let started_at = Instant::now();
    let outcome = db.one(Sleep { seconds: 0.0 }).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert_within(Duration::from_secs(3), started_at);
}
