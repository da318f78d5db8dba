//! Forty clients on two server connections, every answer checked; and the proof that the check can fail.

use std::time::Duration;

use pooled_postgres::{Access, Db, Sql, Type};
use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::{ECHO, SLEEP, bouncer::Bouncer, direct};

const CLIENTS: i64 = 40;
const CALLS: i64 = 150;

/// The same parameters and the same type of answer, so that only the number tells whose statement ran.
const AFFINE: [(i64, i64, Sql<i64>); 6] = [
    (3, 1, affine("select $1 * 3 + 1")),
    (5, 2, affine("select $1 * 5 + 2")),
    (7, 3, affine("select $1 * 7 + 3")),
    (11, 5, affine("select $1 * 11 + 5")),
    (13, 7, affine("select $1 * 13 + 7")),
    (17, 11, affine("select $1 * 17 + 11")),
];

const fn affine(text: &'static str) -> Sql<i64> {
    Sql::unchecked(Access::Read, &[Type::INT8], text)
}

pooled_postgres::row! {
    struct PairRow { id: Uuid, label: String }
}
const PAIR: Sql<PairRow> = Sql::unchecked(
    Access::Read,
    &[Type::UUID, Type::INT8],
    "select $1 as id, 'client ' || $2 as label",
);
const CREATE_LEDGER: Sql<()> = Sql::unchecked(
    Access::Write,
    &[],
    "create table pooling_ledger (client bigint primary key, total bigint not null)",
);
const DROP_LEDGER: Sql<()> =
    Sql::unchecked(Access::Write, &[], "drop table if exists pooling_ledger");
const ADD: Sql<i64> = Sql::unchecked(
    Access::Write,
    &[Type::INT8, Type::INT8],
    "with added as (
       insert into pooling_ledger as l (client, total) values ($1, $2)
       on conflict (client) do update set total = l.total + excluded.total
       returning total
     ) select total from added",
);
const LEDGER_TOTAL: Sql<i64> = Sql::unchecked(
    Access::Read,
    &[],
    "select coalesce(sum(total), 0)::bigint from pooling_ledger",
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_clients_on_two_server_connections_get_their_own_answers() {
    let owner = direct("pooling_ledger", 1);
    owner.old_execute(&DROP_LEDGER, &[]).await.unwrap();
    owner.old_execute(&CREATE_LEDGER, &[]).await.unwrap();

    let bouncer = Bouncer::start().await;
    let instances: Vec<_> = (0..4)
        .map(|_| Db::new(&bouncer.url(), 10).unwrap())
        .collect();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let db = instances[client as usize % instances.len()].clone();
        clients.spawn(async move {
            let mut written = 0;
            for call in 0..CALLS {
                match call % 8 {
                    6 => {
                        let id = Uuid::from_u128((client * CALLS + call) as u128);
                        let pair = db.old_one(&PAIR, &[&id, &client]).await.unwrap();
                        assert_eq!((pair.id, pair.label), (id, format!("client {client}")));
                    }
                    7 => {
                        written += call;
                        assert_eq!(db.old_one(&ADD, &[&client, &call]).await.unwrap(), written);
                    }
                    _ => {
                        let (factor, term, sql) = &AFFINE[(client + call) as usize % AFFINE.len()];
                        let number = client * 1_000 + call;
                        let answer = db.old_one(sql, &[&number]).await.unwrap();
                        assert_eq!(answer, number * factor + term);
                    }
                }
            }
            written
        });
    }
    let written: i64 = clients.join_all().await.into_iter().sum();
    assert_eq!(owner.old_one(&LEDGER_TOTAL, &[]).await.unwrap(), written);
    owner.old_execute(&DROP_LEDGER, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_statements_on_the_same_pooler_fail() {
    let bouncer = Bouncer::start().await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let url = bouncer.url();
        clients.spawn(async move {
            let (connection, driving) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            let mut driver = JoinSet::new();
            driver.spawn(driving);
            let mut right = 0;
            for call in 0..10 {
                let (factor, term, text) = [
                    (3, 1, "select $1 * 3 + 1::bigint"),
                    (5, 2, "select $1 * 5 + 2::bigint"),
                ][call as usize % 2];
                let number = client * 1_000 + call;
                #[expect(clippy::disallowed_methods, reason = "shows what the rule is for")]
                let answer = connection.query_one(text, &[&number]).await;
                right += i64::from(
                    answer.is_ok_and(|row| row.get::<_, i64>(0) == number * factor + term),
                );
            }
            right
        });
    }
    let right: i64 = clients.join_all().await.into_iter().sum();
    assert!(
        right < CLIENTS * 10,
        "this pooler keeps named statements: it proves nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_right_while_others_give_up() {
    let bouncer = Bouncer::start().await;
    let db = Db::new(&bouncer.url(), 10).unwrap();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let db = db.clone();
        clients.spawn(async move {
            for call in 0..25 {
                let number = client * 1_000 + call;
                if (client + call) % 5 == 0 {
                    let impatience = Duration::from_millis((number % 7) as u64);
                    drop(timeout(impatience, db.old_one(&SLEEP, &[&0.05])).await);
                } else {
                    assert_eq!(db.old_one(&ECHO, &[&number]).await.unwrap(), number);
                }
            }
        });
    }
    clients.join_all().await;
}
