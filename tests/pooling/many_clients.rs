//! Forty clients share two server connections, and each answer is checked. Another test shows that the check can fail.

use std::time::Duration;

use iconoclash_fakes::pooler::Pooler;
use pooled_postgres::{Db, Error};
use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::{Echo, Sleep, direct};

const CLIENTS: i64 = 40;
const CALLS: i64 = 150;

pooled_postgres::row! {
    struct LabelRow { id: Uuid, label: String }
}

pooled_postgres::sql! {
    // The same parameter and the same type of result: only the number shows which statement ran.
    read TimesThree { number: i64 } -> i64 = "select :number::bigint * 3 + 1";
    read TimesFive { number: i64 } -> i64 = "select :number::bigint * 5 + 2";
    read TimesSeven { number: i64 } -> i64 = "select :number::bigint * 7 + 3";
    read TimesEleven { number: i64 } -> i64 = "select :number::bigint * 11 + 5";
    read TimesThirteen { number: i64 } -> i64 = "select :number::bigint * 13 + 7";
    read TimesSeventeen { number: i64 } -> i64 = "select :number::bigint * 17 + 11";

    read Label { id: Uuid, client: i64 } -> LabelRow =
        "select :id::uuid as id, 'client ' || :client::bigint as label";

    // The token version of a user serves as the total of a client.
    write CreateUsers { users: &[Uuid] } -> () = "
        insert into users (id, plan, created_at)
        select id, 'guest', now() from unnest(:users::uuid[]) as id";
    write AddToTotal { user: Uuid, amount: i32 } -> i32 = "
        update users set token_version = token_version + :amount
        where id = :user
        returning token_version";
    read SumOfTotals { users: &[Uuid] } -> i64 =
        "select coalesce(sum(token_version), 0) from users where id = any(:users)";
    write DeleteUsers { users: &[Uuid] } -> () = "delete from users where id = any(:users)";
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_clients_on_two_server_connections_get_their_own_answers() {
    let owner = direct("many_clients", 1);
    let users: Vec<Uuid> = (0..CLIENTS).map(|_| random_id()).collect();
    owner.execute(CreateUsers { users: &users }).await.unwrap();

    let pooler = Pooler::start().await;
    let instances: Vec<_> = (0..4)
        .map(|_| Db::new(&pooler.url(), 10).unwrap())
        .collect();

    let mut clients = JoinSet::new();
    for (client, user) in users.iter().enumerate() {
        let db = instances[client % instances.len()].clone();
        clients.spawn(run_client(db, client as i64, *user));
    }
    let totals: i64 = clients.join_all().await.into_iter().map(i64::from).sum();

    let stored = owner.one(SumOfTotals { users: &users }).await.unwrap();
    assert_eq!(stored, totals);
    owner.execute(DeleteUsers { users: &users }).await.unwrap();
}

/// Makes all calls of one client, checks their answers and returns its total.
async fn run_client(db: Db, client: i64, user: Uuid) -> i32 {
    let mut total = 1;
    for call in 0..CALLS {
        match call % 8 {
            6 => {
                let id = Uuid::from_u128((client * CALLS + call) as u128);
                let row = db.one(Label { id, client }).await.unwrap();
                assert_eq!((row.id, row.label), (id, format!("client {client}")));
            }
            7 => {
                let amount = call as i32;
                total += amount;
                let stored = db.one(AddToTotal { user, amount }).await.unwrap();
                assert_eq!(stored, total);
            }
            _ => {
                let number = client * 1_000 + call;
                let (answer, expected) = calculate(&db, client + call, number).await;
                assert_eq!(answer.unwrap(), expected);
            }
        }
    }
    total
}

/// Runs one of the six calculations, and returns the server's answer and the right one.
async fn calculate(db: &Db, which: i64, number: i64) -> (Result<i64, Error>, i64) {
    match which % 6 {
        0 => (db.one(TimesThree { number }).await, number * 3 + 1),
        1 => (db.one(TimesFive { number }).await, number * 5 + 2),
        2 => (db.one(TimesSeven { number }).await, number * 7 + 3),
        3 => (db.one(TimesEleven { number }).await, number * 11 + 5),
        4 => (db.one(TimesThirteen { number }).await, number * 13 + 7),
        _ => (db.one(TimesSeventeen { number }).await, number * 17 + 11),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_statements_on_the_same_pooler_fail() {
    let pooler = Pooler::start().await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(count_right_answers_with_named_statements(
            pooler.url(),
            client,
        ));
    }

    let right: i64 = clients.join_all().await.into_iter().sum();
    assert!(
        right < CLIENTS * 10,
        "this pooler supports named statements, so the other test proves nothing"
    );
}

async fn count_right_answers_with_named_statements(url: String, client: i64) -> i64 {
    const STATEMENTS: [(i64, i64, &str); 2] = [
        (3, 1, "select $1 * 3 + 1::bigint"),
        (5, 2, "select $1 * 5 + 2::bigint"),
    ];
    let (connection, driving) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(driving);

    let mut right = 0;
    for call in 0..10 {
        let (factor, term, text) = STATEMENTS[call as usize % STATEMENTS.len()];
        let number = client * 1_000 + call;

        #[expect(clippy::disallowed_methods, reason = "shows why the rule exists")]
        let answer = connection.query_one(text, &[&number]).await;
        let is_right = answer.is_ok_and(|row| row.get::<_, i64>(0) == number * factor + term);
        right += i64::from(is_right);
    }
    right
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_right_while_other_clients_give_up() {
    let pooler = Pooler::start().await;
    let db = Db::new(&pooler.url(), 10).unwrap();

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let db = db.clone();
        clients.spawn(async move {
            for call in 0..25 {
                let number = client * 1_000 + call;
                if (client + call) % 5 == 0 {
                    let patience = Duration::from_millis((number % 7) as u64);
                    drop(timeout(patience, db.one(Sleep { seconds: 0.05 })).await);
                } else {
                    assert_eq!(db.one(Echo { number }).await.unwrap(), number);
                }
            }
        });
    }
    clients.join_all().await;
}

fn random_id() -> Uuid {
    Uuid::from_u128(rand::random())
}
