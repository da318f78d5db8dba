//! Several processes on the same services, and processes that are killed: this binary starts itself again as a function
//! that serves every route.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test plays the platform: it has an environment and a client"
)]

mod function;

use function::{Client, Function, Stores};
use futures_util::future::join_all;
use iconoclash::{http::serve, routes};
use iconoclash_fakes::claude::Behaviour;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::{
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    if std::env::var_os("ICONOCLASH_FUNCTION").is_some() {
        let served = Runtime::new().unwrap().block_on(serve::run(routes::all));
        return if served.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let trials = vec![
        trial(
            "of_200_messages_in_4_processes_the_last_one_is_answered_once",
            last_message,
        ),
        trial(
            "of_200_messages_in_4_processes_the_last_money_is_spent_once",
            last_money,
        ),
        trial(
            "log_lines_tell_what_the_cache_gave_and_why_something_was_slower",
            logged,
        ),
        trial(
            "a_process_that_is_killed_at_any_step_leaves_nothing_open",
            killed,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial<F: Future<Output = ()> + 'static>(name: &str, test: fn() -> F) -> Trial {
    Trial::test(name, move || {
        Runtime::new().unwrap().block_on(test());
        Ok::<_, Failed>(())
    })
}

const PROCESSES: usize = 4;
const MESSAGES: usize = 200;

/// Sends the first messages of 200 discussions over all processes at once, and returns each answer.
async fn send_all(
    stores: &Stores,
    functions: &[Function],
    clients: &[Client],
) -> Vec<(u16, String)> {
    let mut sends = Vec::new();
    for at in 0..MESSAGES {
        let client = &clients[at % clients.len()];
        sends.push((
            client,
            client.discussion(&functions[0]).await,
            &functions[at % functions.len()],
        ));
    }
    // The reply ends after all others are refused, so that its settled hold makes room for none of them.
    stores.around.claude.always(Behaviour::Hold { after: 0 });
    let answered = AtomicUsize::new(0);
    let answers = sends.iter().map(|(client, discussion, function)| async {
        let answer = client.send(function, discussion).await;
        answered.fetch_add(1, Ordering::Relaxed);
        answer
    });
    let release = async {
        while answered.load(Ordering::Relaxed) < MESSAGES - 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..MESSAGES {
            stores.around.claude.release();
        }
    };
    tokio::join!(join_all(answers), release).0
}

async fn last_message() {
    let stores = Stores::start(&[("QUOTA_FREE", "3")]).await;
    let functions: Vec<Function> = (0..PROCESSES)
        .map(|_| Function::start(&stores, &[]))
        .collect();
    let ada = Client::sign_up(&functions[0], "ada").await;
    let discussion = ada.discussion(&functions[0]).await;
    for function in &functions[..2] {
        assert_eq!(ada.send(function, &discussion).await.0, 201);
    }
    stores.allow_discussions(&ada).await;
    let answers = send_all(&stores, &functions, std::slice::from_ref(&ada)).await;
    assert_eq!(
        answers.iter().filter(|(status, _)| *status == 201).count(),
        1
    );
    assert_eq!(
        answers
            .iter()
            .filter(|answer| **answer == (429, "quota_exceeded".to_owned()))
            .count(),
        MESSAGES - 1
    );
    assert_eq!(stores.value("select messages from subject_days").await, "3");
}

async fn last_money() {
    let stores = Stores::start(&[]).await;
    let functions: Vec<Function> = (0..PROCESSES)
        .map(|_| Function::start(&stores, &[]))
        .collect();
    let names = ["ada", "bob", "cleo", "dan"];
    let clients = join_all(names.map(|name| Client::sign_up(&functions[0], name))).await;
    for (client, function) in clients.iter().zip(&functions) {
        stores.allow_discussions(client).await;
        let discussion = client.discussion(function).await;
        assert_eq!(client.send(function, &discussion).await.0, 201);
    }
    let spent: i64 = stores
        .value("select spent_microusd from budget_days")
        .await
        .parse()
        .unwrap();
    let exact = stores.hold_of_the_last_prompt();
    stores.budget("day", spent + exact + exact / 2).await;
    let answers = send_all(&stores, &functions, &clients).await;
    assert_eq!(
        answers.iter().filter(|(status, _)| *status == 201).count(),
        1
    );
    assert_eq!(
        answers
            .iter()
            .filter(|answer| **answer == (503, "budget_spent".to_owned()))
            .count(),
        MESSAGES - 1
    );
}

async fn logged() {
    let stores = Stores::start(&[]).await;
    let path = std::env::temp_dir().join(format!("iconoclash-log-{}", std::process::id()));
    let log = || std::fs::File::create(&path).unwrap().into();
    let lines = |message: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message).collect()
    };
    let warm = Function::start_logging_to(log(), &stores, &[]);
    let ada = Client::sign_up(&warm, "ada").await;
    for _ in 0..2 {
        warm.session(&ada).await;
    }
    let told = lines("request").pop().unwrap();
    assert_eq!(
        (
            &told["cache_hits"],
            &told["redis_requests"],
            &told["degraded"]
        ),
        (&json!(1), &json!(1), &Value::Null)
    );
    assert!(
        told["cache_age_ms"].as_i64().is_some_and(|age| age >= 0),
        "{told}"
    );
    warm.kill();

    let alone = Function::start_logging_to(
        log(),
        &stores,
        &[("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9")],
    );
    let discussion = ada.discussion(&alone).await;
    assert_eq!(ada.send(&alone, &discussion).await.0, 201);
    let told = lines("reply").pop().unwrap();
    assert!(
        told["degraded"]
            .as_str()
            .is_some_and(|cause| cause.contains("Redis") || cause.contains("store")),
        "{told}"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        !text.contains(&stores.around.settings["UPSTASH_REDIS_REST_TOKEN"]),
        "{text}"
    );
    std::fs::remove_file(&path).unwrap();
}

/// A step, the reply's status after reconciling, and whether the message counts.
const STEPS: [(&str, &str, bool); 6] = [
    ("admitted", "", false),
    ("begun", "failed", false),
    ("relaying", "failed", false),
    ("streamed", "failed", false),
    ("ended", "complete", true),
    ("settled", "complete", true),
];

async fn killed() {
    for (step, status, counts) in STEPS {
        let stores = Stores::start(&[]).await;
        let witness = Function::start(&stores, &[]);
        let ada = Client::sign_up(&witness, "ada").await;
        let bob = Client::sign_up(&witness, "bob").await;
        let warm = bob.discussion(&witness).await;
        assert_eq!(bob.send(&witness, &warm).await.0, 201);
        let discussion = ada.discussion(&witness).await;

        let flag = std::env::temp_dir().join(format!("iconoclash-{step}-{}", std::process::id()));
        let _left_over = std::fs::remove_file(&flag);
        let place = format!("{step}:{}", flag.display());
        let doomed = Function::start(&stores, &[("ICONOCLASH_FREEZE_AT", &place)]);
        let killed = async {
            while !flag.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            doomed.kill();
        };
        let (answer, ()) = tokio::join!(ada.try_send(&doomed, &discussion), killed);
        assert!(answer.is_err(), "{step}: {answer:?}");
        std::fs::remove_file(&flag).unwrap();

        stores.let_leases_run_out().await;
        let report = witness.reconcile().await;
        let replies = format!(
            "select coalesce(max(status), '') from messages where role = 'assistant' and discussion_id = '{discussion}'"
        );
        assert_eq!(stores.value(&replies).await, status, "{step}: {report}");
        assert_eq!(
            stores.redis("ZCARD", &["{rl}:open"]).await,
            0,
            "{step}: {report}"
        );
        let counted = "select count(*) from usage_events where counted";
        assert_eq!(
            stores.value(counted).await,
            if counts { "2" } else { "1" },
            "{step}: {report}"
        );
        // The ledger has at least what the provider reported.
        let asked = stores.around.claude.requests().len();
        let paid =
            "select count(*) from usage_events where cost_microusd >= 20 and outcome <> 'running'";
        let expected = if step == "admitted" { 1 } else { 2 };
        assert!(asked >= expected, "{step}");
        assert_eq!(
            stores.value(paid).await,
            expected.to_string(),
            "{step}: {report}"
        );
        assert_eq!(
            ada.send(&witness, &discussion).await.0,
            201,
            "{step}: {report}"
        );
    }
}
