//! What breaks below a statement, and what its caller gets to see of it.

use std::time::Duration;

use futures_util::future::join_all;
use pooled_postgres::{Access, Db, Error, Sql, Type};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Config, config::Host};
use uuid::Uuid;

use crate::{
    ECHO, TERMINATE, assert_echoes,
    bouncer::{Bouncer, free_port},
    direct,
    gate::Gate,
    named,
    support::test_database,
    warm_up,
};

const INSERT_USER: Sql<()> = Sql::unchecked(
    Access::Write,
    &[Type::UUID, Type::TEXT, Type::TEXT],
    "insert into users (id, email, password_hash, plan, created_at) values ($1, $2, 'none', $3, now())",
);
const INSERT_DISCUSSION: Sql<()> = Sql::unchecked(
    Access::Write,
    &[Type::UUID],
    "insert into discussions (id, user_id, title, icons, created_at, updated_at)
     values ($1, $1, 'title', '{socrates}', now(), now())",
);
const COUNT_USER: Sql<i64> = Sql::unchecked(
    Access::Read,
    &[Type::UUID],
    "select count(*) from users where id = $1",
);

/// The test database behind a piece of network.
async fn gated(name: &str, pool_size: usize) -> (Gate, Db) {
    let server: Config = test_database().parse().unwrap();
    let Some(Host::Tcp(host)) = server.get_hosts().first() else {
        panic!("ICONOCLASH_TEST_DATABASE is reached over TCP");
    };
    let port = server.get_ports().first().copied().unwrap_or(5432);
    let gate = Gate::before(&format!("{host}:{port}")).await;
    let through = format!(
        "postgres://{}:{}@127.0.0.1:{}/{}",
        server.get_user().unwrap(),
        String::from_utf8_lossy(server.get_password().unwrap_or_default()),
        gate.port(),
        server.get_dbname().unwrap(),
    );
    let db = named(&through, name, pool_size);
    (gate, db)
}

fn user(id: Uuid) -> (Uuid, String) {
    (id, format!("{id}@example.com"))
}

#[tokio::test]
async fn reads_survive_the_end_of_every_backend() {
    let bouncer = Bouncer::start().await;
    let watch = direct("watch", 1);
    for (url, name) in [
        (bouncer.url(), "killed_pooled"),
        (test_database(), "killed_direct"),
    ] {
        let db = named(&url, name, 5);
        for round in 0..5 {
            warm_up(&db, 5).await;
            let killed = watch.old_one(&TERMINATE, &[&name]).await.unwrap();
            assert!(killed > 0, "nothing to kill in round {round}");
            join_all((0..10).map(|n| assert_echoes(&db, n))).await;
        }
    }
}

#[tokio::test]
async fn reads_survive_a_restart_of_the_pooler() {
    let mut bouncer = Bouncer::start().await;
    let db = Db::new(&bouncer.url(), 5).unwrap();
    for _ in 0..3 {
        warm_up(&db, 5).await;
        bouncer.restart().await;
        join_all((0..10).map(|n| assert_echoes(&db, n))).await;
    }
}

#[tokio::test]
async fn a_connection_that_went_dead_while_idle_is_replaced_before_anything_is_sent() {
    let (gate, db) = gated("idle", 2).await;
    let (id, email) = user(Uuid::from_u128(rand::random()));
    warm_up(&db, 2).await;
    gate.swallow_open_connections();
    // Not for luck: a connection counts as idle after five seconds.
    sleep(Duration::from_millis(5_100)).await;
    let begun = Instant::now();
    db.old_execute(&INSERT_USER, &[&id, &email, &"free"])
        .await
        .unwrap();
    assert_echoes(&db, 3).await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_asked_once_more() {
    let (gate, db) = gated("lost_read", 1).await;
    assert_echoes(&db, 1).await;
    gate.cut_next_answer();
    assert_echoes(&db, 2).await;
    assert_eq!(gate.accepted(), 2);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let (gate, db) = gated("lost_write", 1).await;
    let (id, email) = user(Uuid::from_u128(rand::random()));
    assert_echoes(&db, 1).await;
    gate.cut_next_answer();
    let outcome = db.old_execute(&INSERT_USER, &[&id, &email, &"free"]).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert_eq!(gate.accepted(), 1);
    // It did happen: sent again it would have failed on its own row, or counted twice where nothing is unique.
    assert_eq!(db.old_one(&COUNT_USER, &[&id]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable_and_no_hang() {
    let nobody = free_port().await;
    let refused = Db::new(&format!("postgres://u@127.0.0.1:{nobody}/d"), 2).unwrap();
    assert_unavailable(&refused, Duration::from_secs(1)).await;

    let (gate, silent) = gated("silent", 2).await;
    gate.swallow_new_connections();
    assert_unavailable(&silent, Duration::from_secs(4)).await;

    let bouncer = Bouncer::start_before(nobody).await;
    let behind = Db::new(&bouncer.url(), 2).unwrap();
    assert_unavailable(&behind, Duration::from_secs(4)).await;
}

async fn assert_unavailable(db: &Db, within: Duration) {
    let begun = Instant::now();
    let outcome = db.old_one(&ECHO, &[&1_i64]).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert!(begun.elapsed() < within, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_refused_write_names_its_constraint_and_keeps_its_connection() {
    let (gate, db) = gated("constraints", 1).await;
    let (id, email) = user(Uuid::from_u128(rand::random()));
    let other = Uuid::from_u128(rand::random());
    db.old_execute(&INSERT_USER, &[&id, &email, &"free"])
        .await
        .unwrap();

    let again = db
        .old_execute(&INSERT_USER, &[&other, &email.to_uppercase(), &"free"])
        .await;
    assert_eq!(again.unwrap_err().constraint(), Some("users_email_key"));
    let unknown = db
        .old_execute(&INSERT_USER, &[&other, &"a@example.com", &"gold"])
        .await;
    assert_eq!(unknown.unwrap_err().constraint(), Some("users_plan_known"));
    let orphan = db.old_execute(&INSERT_DISCUSSION, &[&other]).await;
    assert_eq!(
        orphan.unwrap_err().constraint(),
        Some("discussions_user_id_fkey")
    );
    assert_eq!(gate.accepted(), 1);
}

#[tokio::test]
async fn our_own_mistakes_are_told_from_the_servers() {
    let db = direct("mistakes", 1);
    let too_few = db.old_one(&ECHO, &[]).await.unwrap_err();
    assert!(
        too_few
            .to_string()
            .contains("0 parameters given where 1 are due"),
        "{too_few}"
    );
    let wrong_type = db.old_one(&ECHO, &[&"text"]).await.unwrap_err();
    assert!(matches!(wrong_type, Error::Other(_)), "{wrong_type:?}");

    let undecodable: Sql<i64> = Sql::unchecked(Access::Read, &[], "select 'text'");
    assert!(matches!(
        db.old_one(&undecodable, &[]).await,
        Err(Error::Other(_))
    ));
    let absent: Sql<i64> = Sql::unchecked(Access::Read, &[], "select 1::bigint where false");
    assert_eq!(db.old_optional(&absent, &[]).await.unwrap(), None);
    assert!(matches!(
        db.old_one(&absent, &[]).await,
        Err(Error::Other(_))
    ));
    let several: Sql<i32> = Sql::unchecked(Access::Read, &[], "select generate_series(1, 3)");
    assert_eq!(db.old_all(&several, &[]).await.unwrap(), [1, 2, 3]);
    assert!(matches!(
        db.old_optional(&several, &[]).await,
        Err(Error::Other(_))
    ));
}
