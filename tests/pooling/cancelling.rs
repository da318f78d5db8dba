//! Whoever gives a statement up frees the server of it.

use std::time::Duration;

use pooled_postgres::{Access, Db, Error, Sql};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    SLEEP, assert_echoes,
    bouncer::Bouncer,
    direct, is_busy, named,
    support::{eventually, test_database},
};

const BACKEND: Sql<i32> = Sql::unchecked(Access::Read, &[], "select pg_backend_pid()");

#[tokio::test]
async fn a_statement_past_its_deadline_is_cancelled_through_the_pooler() {
    let bouncer = Bouncer::start().await;
    past_its_deadline(
        &named(&bouncer.url(), "deadline_pooled", 1),
        "deadline_pooled",
    )
    .await;
}

#[tokio::test]
async fn a_statement_past_its_deadline_is_cancelled_directly() {
    let db = direct("deadline_direct", 1);
    let first = db.old_one(&BACKEND, &[]).await.unwrap();
    past_its_deadline(&db, "deadline_direct").await;
    let second = db.old_one(&BACKEND, &[]).await.unwrap();
    assert_ne!(first, second, "the connection was used again");
}

pub(crate) async fn past_its_deadline(db: &Db, name: &str) {
    let watch = direct("watch", 1);
    let hasty = db.with_deadline(Duration::from_millis(200));
    let begun = Instant::now();
    let outcome = hasty.old_one(&SLEEP, &[&30.0]).await;
    assert!(matches!(outcome, Err(Error::Deadline)), "{outcome:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    eventually(Duration::from_secs(1), "the server is free", || async {
        !is_busy(&watch, name).await
    })
    .await;
    assert_echoes(db, 1).await;
}

#[tokio::test]
async fn a_dropped_statement_is_cancelled_and_its_connection_not_used_again() {
    let bouncer = Bouncer::start().await;
    for (url, name) in [
        (bouncer.url(), "dropped_pooled"),
        (test_database(), "dropped_direct"),
    ] {
        let db = named(&url, name, 1);
        let watch = direct("watch", 1);
        let mut caller = JoinSet::new();
        let sleeping = db.clone();
        caller.spawn(async move { sleeping.old_one(&SLEEP, &[&30.0]).await });
        eventually(Duration::from_secs(5), "the statement runs", || {
            is_busy(&watch, name)
        })
        .await;
        caller.shutdown().await;
        eventually(Duration::from_secs(1), "the server is free", || async {
            !is_busy(&watch, name).await
        })
        .await;
        assert_echoes(&db, 7).await;
    }
}

#[tokio::test]
async fn a_full_pool_is_unavailable_within_its_bound() {
    let db = direct("full_pool", 1);
    let watch = direct("watch", 1);
    let mut caller = JoinSet::new();
    let sleeping = db.clone();
    caller.spawn(async move { sleeping.old_one(&SLEEP, &[&30.0]).await });
    eventually(Duration::from_secs(5), "the statement runs", || {
        is_busy(&watch, "full_pool")
    })
    .await;
    let begun = Instant::now();
    let outcome = db.old_one(&SLEEP, &[&0.0]).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}
