//! Answers of a healthy server.

use serde_json::{Value, json};
use upstash_redis_rs::{Command, Error, Script, SetupError};

use crate::{client, client_of, front, http};

/// With the flag that production scripts have.
const INCR: &str = "#!lua flags=allow-key-locking\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])";

fn incr(key: &str) -> Command {
    Command::new("INCR").arg(key)
}

fn get(key: &str) -> Command {
    Command::new("GET").arg(key)
}

/// Results with errors as text, so a whole batch can be compared at once.
fn plain(results: Vec<Result<Value, Error>>) -> Vec<Value> {
    let plain =
        |result: Result<Value, Error>| result.unwrap_or_else(|error| json!(format!("{error:?}")));
    results.into_iter().map(plain).collect()
}

#[tokio::test]
async fn values_keep_their_types() {
    let front = front().await;
    let redis = client(&front);
    let set = Command::new("SET").arg("k").arg("é \"✓\"\n\0");
    assert_eq!(redis.exec::<String>(&set).await.unwrap(), "OK");
    assert_eq!(
        redis.exec::<String>(&get("k")).await.unwrap(),
        "é \"✓\"\n\0"
    );
    assert_eq!(
        redis.exec::<Option<String>>(&get("none")).await.unwrap(),
        None
    );

    let big = Command::new("INCRBY").arg("n").arg(i64::MAX);
    assert_eq!(redis.exec::<i64>(&big).await.unwrap(), i64::MAX);

    let nested = Script::new("return {1, 'a', false, {KEYS[1], ARGV[1]}}");
    let value: Value = redis.eval(&nested, &["key"], &[7.into()]).await.unwrap();
    assert_eq!(value, json!([1, "a", null, ["key", "7"]]));
}

#[tokio::test]
async fn a_rejected_command_returns_the_servers_error() {
    let front = front().await;
    let redis = client(&front);
    redis.exec::<i64>(&incr("n")).await.unwrap();

    let push = Command::new("LPUSH").arg("n").arg(1);
    let error = redis.exec::<i64>(&push).await.unwrap_err();
    assert!(matches!(error, Error::WrongType), "{error:?}");
    assert!(!error.is_unavailable());

    let error = redis
        .exec::<Value>(&Command::new("NONESUCH"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Redis(text) if text.starts_with("ERR unknown command")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_result_of_another_type_is_an_error() {
    let front = front().await;
    let redis = client(&front);
    redis
        .exec::<String>(&Command::new("SET").arg("k").arg("private"))
        .await
        .unwrap();
    let error = redis.exec::<i64>(&get("k")).await.unwrap_err();
    let Error::BadBody {
        status: 200,
        detail,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(detail, "the result is a string, not i64");
}

#[tokio::test]
async fn an_error_in_a_pipeline_affects_its_own_command_only() {
    let front = front().await;
    let redis = client(&front);
    let commands = [
        incr("n"),
        Command::new("LPUSH").arg("n").arg(1),
        get("n"),
        get("none"),
    ];
    let results = redis.pipeline(&commands).await.unwrap();
    assert_eq!(
        plain(results),
        [json!(1), json!("WrongType"), json!("1"), json!(null)]
    );
    assert_eq!(plain(redis.pipeline(&[]).await.unwrap()), [json!(null); 0]);
}

#[tokio::test]
async fn a_transaction_runs_completely_or_not_at_all() {
    let front = front().await;
    let redis = client(&front);
    let commands = [incr("n"), Command::new("LPUSH").arg("n").arg(1), incr("n")];
    let results = redis.multi_exec(&commands).await.unwrap();
    assert_eq!(plain(results), [json!(1), json!("WrongType"), json!(2)]);

    let discarded = redis
        .multi_exec(&[incr("n"), Command::new("NONESUCH")])
        .await;
    let error = discarded.unwrap_err();
    assert!(
        matches!(&error, Error::Redis(text) if text.starts_with("EXECABORT")),
        "{error:?}"
    );
    assert_eq!(redis.exec::<String>(&get("n")).await.unwrap(), "2");
}

#[tokio::test]
async fn concurrent_transactions_do_not_interleave() {
    let front = front().await;
    let redis = client(&front);
    let commands = [incr("n"), incr("n"), get("n")];
    let runs = (0..50).map(|_| redis.multi_exec(&commands));
    for results in futures_util::future::join_all(runs).await {
        let results = plain(results.unwrap());
        let first = results[0].as_i64().unwrap();
        assert_eq!(
            results[1..],
            [json!(first + 1), json!((first + 1).to_string())]
        );
    }
    assert_eq!(redis.exec::<String>(&get("n")).await.unwrap(), "100");
}

#[tokio::test]
async fn an_unknown_script_runs_once_and_is_cached() {
    let front = front().await;
    let redis = client(&front);
    let script = Script::new(INCR);
    let by_hand = Command::new("EVALSHA")
        .arg(script.sha1())
        .args(["1", "n", "5"]);

    let error = redis.exec::<i64>(&by_hand).await.unwrap_err();
    assert!(matches!(error, Error::Noscript), "{error:?}");
    assert_eq!(
        redis
            .eval::<i64>(&script, &["n"], &[5.into()])
            .await
            .unwrap(),
        5
    );
    assert_eq!(redis.exec::<i64>(&by_hand).await.unwrap(), 10);

    let flush = Command::new("SCRIPT").arg("FLUSH");
    assert_eq!(redis.exec::<String>(&flush).await.unwrap(), "OK");
    let error = redis.exec::<i64>(&by_hand).await.unwrap_err();
    assert!(matches!(error, Error::Noscript), "{error:?}");
    assert_eq!(
        redis
            .eval::<i64>(&script, &["n"], &[5.into()])
            .await
            .unwrap(),
        15
    );
}

#[tokio::test]
async fn only_the_unknown_scripts_of_a_pipeline_are_sent_again() {
    let front = front().await;
    let redis = client(&front);
    let script = Script::new(INCR);
    let run = |key| script.command(&[key], &[1.into()]);
    let commands = [
        incr("n"),
        run("a"),
        incr("n"),
        run("n"),
        Command::new("EVALSHA").args(["0", "0"]),
    ];
    let results = redis.pipeline(&commands).await.unwrap();
    // The two scripts ran after the rest; the EVALSHA written by hand has no source to fall back on.
    assert_eq!(
        plain(results),
        [json!(1), json!(1), json!(2), json!(3), json!("Noscript")]
    );
}

#[tokio::test]
async fn an_unknown_script_runs_inside_a_transaction() {
    let front = front().await;
    let redis = client(&front);
    let script = Script::new(INCR);
    let commands = [incr("n"), script.command(&["n"], &[2.into()]), get("n")];
    let results = redis.multi_exec(&commands).await.unwrap();
    assert_eq!(plain(results), [json!(1), json!(3), json!("3")]);
}

#[tokio::test]
async fn a_wrong_token_is_an_authentication_error() {
    let front = front().await;
    let redis = client_of(front.url(), "another-token");
    let error = redis.exec::<Value>(&get("k")).await.unwrap_err();
    assert!(matches!(error, Error::Auth), "{error:?}");
    assert!(error.is_unavailable());
    let error = redis.pipeline(&[get("k")]).await.unwrap_err();
    assert!(matches!(error, Error::Auth), "{error:?}");
}

#[tokio::test]
async fn debug_output_and_errors_never_show_the_token() {
    let secret = "s3cr3t-t0k3n";
    // Nothing listens on port 1, so this error has all the details that reqwest records.
    let redis = client_of("http://127.0.0.1:1", secret);
    let error = redis.exec::<Value>(&get("k")).await.unwrap_err();
    let setup = upstash_redis_rs::Redis::new(
        &format!("https://user:{secret}@example.upstash.io"),
        "token",
        http().build().unwrap(),
    );
    assert_eq!(setup.as_ref().unwrap_err(), &SetupError::Url);
    let shown = format!("{redis:?} {redis:#?} {error:?} {error:#?} {error} {setup:?}");
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("127.0.0.1"), "{shown}");
}

#[test]
fn an_invalid_url_or_token_is_rejected_at_once() {
    let new = |url, token| upstash_redis_rs::Redis::new(url, token, http().build().unwrap()).err();
    assert_eq!(new("https://example.upstash.io/", "token"), None);
    assert_eq!(new("example.upstash.io", "token"), Some(SetupError::Url));
    assert_eq!(
        new("redis://example.upstash.io", "token"),
        Some(SetupError::Url)
    );
    assert_eq!(
        new("https://example.upstash.io/?_token=x", "token"),
        Some(SetupError::Url)
    );
    assert_eq!(
        new("https://example.upstash.io", ""),
        Some(SetupError::Token)
    );
    assert_eq!(
        new("https://example.upstash.io", "token\n"),
        Some(SetupError::Token)
    );
}
