//! Failures below a statement, and the errors that its caller gets.

use std::time::Duration;

use futures_util::future::join_all;
use iconoclash_fakes::pooler::{Pooler, free_port, test_database};
use pooled_postgres::{Db, Error};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Config, config::Host};
use uuid::Uuid;

use crate::{
    Echo, TerminateBackends, assert_echoes, assert_within, direct, network::FaultyNetwork, warm_up,
};

pooled_postgres::sql! {
    write InsertUser { id: Uuid, email: &str, plan: &str } -> () = "
        insert into users (id, email, password_hash, plan, created_at)
        values (:id, :email, 'none', :plan, now())";

    write InsertDiscussion { user: Uuid } -> () = "
        insert into discussions (id, user_id, title, icons, created_at, updated_at)
        values (:user, :user, 'title', '{socrates}', now(), now())";

    read CountUsers { id: Uuid } -> i64 = "select count(*) from users where id = :id";
}

/// The test database behind a network that can break.
async fn behind_faulty_network(application: &str, pool_size: usize) -> (FaultyNetwork, Db) {
    let server: Config = test_database().parse().unwrap();
    let Some(Host::Tcp(host)) = server.get_hosts().first() else {
        panic!("ICONOCLASH_TEST_DATABASE names no TCP host");
    };
    let port = server.get_ports().first().copied().unwrap_or(5432);

    let network = FaultyNetwork::in_front_of(&format!("{host}:{port}")).await;
    let url = format!(
        "postgres://{}:{}@127.0.0.1:{}/{}",
        server.get_user().unwrap(),
        String::from_utf8_lossy(server.get_password().unwrap_or_default()),
        network.port(),
        server.get_dbname().unwrap(),
    );
    let db = Db::named(application, &url, pool_size).unwrap();
    (network, db)
}

/// A user that no other test has.
struct NewUser {
    id: Uuid,
    email: String,
}

impl NewUser {
    fn random() -> Self {
        let id = Uuid::from_u128(rand::random());
        let email = format!("{id}@example.com");
        Self { id, email }
    }

    fn insert(&self) -> InsertUser<'_> {
        InsertUser {
            id: self.id,
            email: &self.email,
            plan: "free",
        }
    }
}

#[tokio::test]
async fn reads_survive_the_end_of_every_backend() {
    let pooler = Pooler::start().await;
    let observer = direct("observer", 1);
    for (url, application) in [
        (pooler.url(), "killed_pooled"),
        (test_database(), "killed_direct"),
    ] {
        let db = Db::named(application, &url, 5).unwrap();
        for round in 0..5 {
            warm_up(&db, 5).await;
            let killed = observer.one(TerminateBackends { application }).await;
            assert!(killed.unwrap() > 0, "no backend to end in round {round}");
            join_all((0..10).map(|number| assert_echoes(&db, number))).await;
        }
    }
}

#[tokio::test]
async fn reads_survive_a_restart_of_the_pooler() {
    let mut pooler = Pooler::start().await;
    let db = Db::new(&pooler.url(), 5).unwrap();
    for _ in 0..3 {
        warm_up(&db, 5).await;
        pooler.restart().await;
        join_all((0..10).map(|number| assert_echoes(&db, number))).await;
    }
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_replaced_before_a_write_is_sent() {
    let (network, db) = behind_faulty_network("idle", 2).await;
    let user = NewUser::random();
    warm_up(&db, 2).await;
    network.silence_open_connections();
    // A connection is checked only after five idle seconds.
    sleep(Duration::from_millis(5_100)).await;

    let started_at = Instant::now();
    db.execute(user.insert()).await.unwrap();
    assert_echoes(&db, 3).await;
    assert_within(Duration::from_secs(2), started_at);
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_sent_once_more() {
    let (network, db) = behind_faulty_network("lost_read", 1).await;
    assert_echoes(&db, 1).await;
    network.cut_next_answer();
    assert_echoes(&db, 2).await;
    assert_eq!(network.accepted(), 2);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let (network, db) = behind_faulty_network("lost_write", 1).await;
    let user = NewUser::random();
    assert_echoes(&db, 1).await;
    network.cut_next_answer();

    let outcome = db.execute(user.insert()).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert_eq!(network.accepted(), 1);

    // The server did execute it: a second attempt would have failed on the row of the first.
    let count = db.one(CountUsers { id: user.id }).await.unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn an_absent_server_is_unavailable_and_does_not_block() {
    let closed_port = free_port();
    let url = format!("postgres://u@127.0.0.1:{closed_port}/d");
    let refused = Db::new(&url, 2).unwrap();
    assert_unavailable(&refused, Duration::from_secs(1)).await;

    let (network, silent) = behind_faulty_network("silent", 2).await;
    network.silence_new_connections();
    assert_unavailable(&silent, Duration::from_secs(4)).await;

    let pooler = Pooler::start_in_front_of(closed_port).await;
    let pooled = Db::new(&pooler.url(), 2).unwrap();
    assert_unavailable(&pooled, Duration::from_secs(4)).await;
}

async fn assert_unavailable(db: &Db, limit: Duration) {
    let started_at = Instant::now();
    let outcome = db.one(Echo { number: 1 }).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert_within(limit, started_at);
}

#[tokio::test]
async fn a_refused_write_names_its_constraint_and_keeps_its_connection() {
    let (network, db) = behind_faulty_network("constraints", 1).await;
    let user = NewUser::random();
    let other = NewUser::random();
    db.execute(user.insert()).await.unwrap();

    let same_email = InsertUser {
        email: &user.email.to_uppercase(),
        ..other.insert()
    };
    assert_refused_by(&db.execute(same_email).await, "users_email_key");

    let unknown_plan = InsertUser {
        plan: "gold",
        ..other.insert()
    };
    assert_refused_by(&db.execute(unknown_plan).await, "users_plan_known");

    let without_user = InsertDiscussion { user: other.id };
    assert_refused_by(&db.execute(without_user).await, "discussions_user_id_fkey");

    assert_eq!(network.accepted(), 1);
}

#[track_caller]
fn assert_refused_by(outcome: &Result<u64, Error>, constraint: &str) {
    let error = outcome.as_ref().unwrap_err();
    assert_eq!(error.constraint(), Some(constraint));
}
