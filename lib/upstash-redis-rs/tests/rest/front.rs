//! The local REST front, in cases that the client does not reach.

use iconoclash_fakes::upstash::RestProxy;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use upstash_redis_rs::{Command, Error, Script};

use crate::{client, front, http};

const FLAGGED: &str = "#!lua flags=allow-key-locking
redis.call('SET', KEYS[1], 'v')
return redis.call('GET', ARGV[1])";

struct Raw {
    front: RestProxy,
    http: reqwest::Client,
}

impl Raw {
    async fn new() -> Self {
        let http = http().build().unwrap();
        Self {
            front: front().await,
            http,
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.front.url());
        self.http
            .request(method, url)
            .bearer_auth(self.front.token())
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn ok(result: Value) -> (StatusCode, Value) {
    (StatusCode::OK, json!({ "result": result }))
}

fn error(status: StatusCode, text: &str) -> (StatusCode, Value) {
    (status, json!({ "error": text }))
}

#[tokio::test]
async fn the_front_strips_the_flag_and_keeps_the_sha_of_the_source() {
    let raw = Raw::new().await;
    let redis = client(&raw.front);
    let script = Script::new(FLAGGED);
    let exists = Command::new("SCRIPT").args(["EXISTS", script.sha1(), "0"]);

    assert_eq!(redis.exec::<[u8; 2]>(&exists).await.unwrap(), [0, 0]);
    let load = Command::new("SCRIPT").args(["LOAD", FLAGGED]);
    assert_eq!(redis.exec::<String>(&load).await.unwrap(), script.sha1());
    assert_eq!(redis.exec::<[u8; 2]>(&exists).await.unwrap(), [1, 0]);
    let run = Command::new("EVALSHA").args([script.sha1(), "1", "k", "k"]);
    assert_eq!(redis.exec::<String>(&run).await.unwrap(), "v");
}

#[tokio::test]
async fn other_flags_and_line_numbers_are_kept() {
    let raw = Raw::new().await;
    let redis = client(&raw.front);
    let write = "#!lua flags=no-writes,allow-key-locking\nreturn redis.call('SET', KEYS[1], 1)";
    let error = redis
        .eval::<Value>(&Script::new(write), &["k"], &[])
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Redis(text) if text.starts_with("ERR Write commands are not allowed")),
        "{error:?}"
    );

    let script = Script::new("#!lua flags=allow-key-locking\n\nreturn nothing()");
    let error = redis.eval::<Value>(&script, &[], &[]).await.unwrap_err();
    let Error::Redis(text) = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("user_script:3"), "{text}");
    // Valkey does not name the script.
    let named = text.contains(&format!("script: {},", script.sha1()));
    assert!(named || text.contains("script: on"), "{text}");
}

#[tokio::test]
async fn a_flagged_script_may_access_declared_keys_only() {
    let raw = Raw::new().await;
    let redis = client(&raw.front);
    let undeclared = "ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set. \
                      Key was: other";
    let flagged = Script::new(FLAGGED);
    let error = redis
        .eval::<Value>(&flagged, &["k"], &["other".into()])
        .await
        .unwrap_err();
    assert_eq!(format!("{error:?}"), format!("Redis({undeclared:?})"));

    let caught = Script::new(
        "#!lua flags=allow-key-locking\nreturn redis.pcall('MGET', KEYS[1], 'other').err",
    );
    assert_eq!(
        redis.eval::<String>(&caught, &["k"], &[]).await.unwrap(),
        undeclared
    );

    let unflagged = Script::new(FLAGGED.split_once('\n').unwrap().1);
    let value: Option<String> = redis
        .eval(&unflagged, &["k"], &["other".into()])
        .await
        .unwrap();
    assert_eq!(value, None);
}

#[tokio::test]
async fn commands_that_need_a_connection_are_rejected() {
    let raw = Raw::new().await;
    let refused = |name: &str| {
        format!(
            "ERR Command is not available: '{name}'. \
             See https://upstash.com/docs/redis/overall/rediscompatibility for details"
        )
    };
    for name in [
        "SUBSCRIBE",
        "MONITOR",
        "SELECT",
        "AUTH",
        "CLIENT",
        "BLPOP",
        "WATCH",
        "MULTI",
    ] {
        let command = json!([name.to_lowercase(), "x", 0]);
        let bad_request = error(StatusCode::BAD_REQUEST, &refused(name));
        assert_eq!(raw.post("/", command.clone()).await, bad_request);
        let items = json!([{ "result": "PONG" }, { "error": refused(name) }, { "result": 1 }]);
        let pipeline = json!([["PING"], command.clone(), ["INCR", name]]);
        assert_eq!(
            raw.post("/pipeline", pipeline).await,
            (StatusCode::OK, items)
        );
        let discarded = format!(
            "EXECABORT Transaction discarded because of: {}",
            refused(name)
        );
        let transaction = json!([["INCR", name], command]);
        assert_eq!(
            raw.post("/multi-exec", transaction).await,
            error(StatusCode::BAD_REQUEST, &discarded)
        );
        assert_eq!(raw.post("/", json!(["GET", name])).await, ok(json!("1")));
    }
}

#[tokio::test]
async fn strings_are_base64_on_request() {
    let raw = Raw::new().await;
    let base64 = |path, body: Value| {
        let request = raw
            .request(Method::POST, path)
            .header("Upstash-Encoding", "base64");
        answer(request.json(&body))
    };
    assert_eq!(base64("/", json!(["SET", "k", "é"])).await, ok(json!("OK")));
    assert_eq!(base64("/", json!(["GET", "k"])).await, ok(json!("w6k=")));
    assert_eq!(base64("/", json!(["GET", "none"])).await, ok(json!(null)));
    assert_eq!(base64("/", json!(["PING"])).await, ok(json!("UE9ORw==")));
    let nested = "return {1, 'OK', {'a', false}}";
    assert_eq!(
        base64("/", json!(["EVAL", nested, 0])).await,
        ok(json!([1, "T0s=", ["YQ==", null]]))
    );
    let (_, items) = base64(
        "/pipeline",
        json!([["SET", "k", 1], ["GET", "k"], ["INCR", "k", 2]]),
    )
    .await;
    assert_eq!(items[0], json!({ "result": "OK" }));
    assert_eq!(items[1], json!({ "result": "MQ==" }));
    assert_eq!(
        items[2],
        json!({ "error": "ERR wrong number of arguments for 'incr' command" })
    );

    let bytes = raw
        .request(Method::POST, "/set/bytes")
        .body(vec![0xff, b'a']);
    assert_eq!(answer(bytes).await, ok(json!("OK")));
    assert_eq!(
        base64("/", json!(["GET", "bytes"])).await,
        ok(json!("/2E="))
    );
    assert_eq!(
        raw.post("/", json!(["GET", "bytes"])).await,
        ok(json!("\u{fffd}a"))
    );
}

#[tokio::test]
async fn json_is_the_only_response_format() {
    let raw = Raw::new().await;
    let ping = |format| {
        answer(
            raw.request(Method::GET, "/ping")
                .header("Upstash-Response-Format", format),
        )
    };
    assert_eq!(ping("json").await, ok(json!("PONG")));
    assert_eq!(ping("resp2").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(ping("xml").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_token_is_checked_first() {
    let raw = Raw::new().await;
    let unauthorized = error(
        StatusCode::UNAUTHORIZED,
        "WRONGPASS invalid or missing auth token",
    );
    let url = raw.front.url();
    assert_eq!(answer(raw.http.get(url)).await, unauthorized);
    assert_eq!(
        answer(raw.http.delete(url).bearer_auth("x")).await,
        unauthorized
    );
    assert_eq!(
        answer(raw.http.get(format!("{url}/ping?_token=x"))).await,
        unauthorized
    );
    let in_query = format!("{url}/ping?_token={}", raw.front.token());
    assert_eq!(answer(raw.http.get(in_query)).await, ok(json!("PONG")));
}

#[tokio::test]
async fn a_command_may_be_a_path() {
    let raw = Raw::new().await;
    let get = |path| answer(raw.request(Method::GET, path));
    assert_eq!(get("/set/a%2Fb/v%20w/EX/100").await, ok(json!("OK")));
    assert_eq!(get("/get/a%2Fb").await, ok(json!("v w")));
    assert_eq!(get("/ttl/a%2Fb").await, ok(json!(100)));
    let body = raw
        .request(Method::POST, "/set/k?EX=50&NX")
        .body("the body");
    assert_eq!(answer(body).await, ok(json!("OK")));
    assert_eq!(get("/get/k").await, ok(json!("the body")));
    assert_eq!(get("/ttl/k").await, ok(json!(50)));
}

#[tokio::test]
async fn a_body_that_is_no_command_is_rejected() {
    let raw = Raw::new().await;
    let bad = |text| error(StatusCode::BAD_REQUEST, text);
    assert_eq!(
        raw.post("/", json!({})).await,
        bad("ERR failed to parse command")
    );
    assert_eq!(raw.post("/", json!([])).await, bad("ERR empty command"));
    assert_eq!(
        raw.post("/pipeline", json!(["GET"])).await,
        bad("ERR failed to parse pipeline request")
    );
    assert_eq!(
        raw.post("/pipeline", json!([])).await,
        bad("ERR empty pipeline request")
    );
    let (status, _) = answer(raw.request(Method::DELETE, "/get/k")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_invalid_argument_fails_its_own_command_only() {
    let raw = Raw::new().await;
    let refused = "ERR null args are not supported";
    assert_eq!(
        raw.post("/", json!(["GET", null])).await,
        error(StatusCode::BAD_REQUEST, refused)
    );
    let pipeline = json!([
        ["INCR", "n"],
        ["INCRBY", "n", null],
        ["GET", ["n"]],
        ["INCR", "n"]
    ]);
    let (status, items) = raw.post("/pipeline", pipeline).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(items[0], json!({ "result": 1 }));
    assert_eq!(items[1], json!({ "error": refused }));
    let text = items[2]["error"].as_str().unwrap();
    assert!(text.starts_with("ERR unsupported arg type"), "{text}");
    assert_eq!(items[3], json!({ "result": 2 }));

    let transaction = json!([["INCR", "n"], ["INCRBY", "n", null]]);
    let discarded = format!("EXECABORT Transaction discarded because of: {refused}");
    assert_eq!(
        raw.post("/multi-exec", transaction).await,
        error(StatusCode::BAD_REQUEST, &discarded)
    );
    assert_eq!(raw.post("/", json!(["GET", "n"])).await, ok(json!("2")));
}

#[tokio::test]
async fn a_number_is_stored_as_written() {
    let raw = Raw::new().await;
    for number in [
        "100000000000000000000",
        "1e21",
        "5e-324",
        "0.30000000000000004",
        "-0.10",
        "18446744073709551616",
    ] {
        let set = raw
            .request(Method::POST, "")
            .body(format!(r#"["SET", "n", {number}]"#));
        assert_eq!(answer(set).await, ok(json!("OK")));
        assert_eq!(raw.post("/", json!(["GET", "n"])).await, ok(json!(number)));
    }
    assert_eq!(
        raw.post("/", json!(["ECHO", true])).await,
        ok(json!("true"))
    );
}

#[tokio::test]
async fn each_front_has_its_own_data_and_scripts() {
    let (one, other) = (Raw::new().await, Raw::new().await);
    assert_ne!(one.front.database(), other.front.database());
    let eval = json!(["EVAL", "return redis.call('INCR', KEYS[1])", 1, "k"]);
    assert_eq!(one.post("/", eval.clone()).await, ok(json!(1)));
    assert_eq!(other.post("/", eval).await, ok(json!(1)));

    let sha1 = Script::new("return redis.call('INCR', KEYS[1])")
        .sha1()
        .to_owned();
    let evalsha = json!(["EVALSHA", sha1, 1, "k"]);
    assert_eq!(
        one.post("/pipeline", json!([["FLUSHALL"], ["SCRIPT", "FLUSH"]]))
            .await
            .0,
        200
    );
    assert_eq!(
        one.post("/", evalsha.clone()).await,
        error(
            StatusCode::BAD_REQUEST,
            "NOSCRIPT No matching script. Please use EVAL."
        )
    );
    assert_eq!(one.post("/", json!(["EXISTS", "k"])).await, ok(json!(0)));
    assert_eq!(other.post("/", evalsha).await, ok(json!(2)));
}

#[tokio::test]
async fn every_answer_carries_a_sync_token() {
    let raw = Raw::new().await;
    let response = raw.request(Method::GET, "/ping").send().await.unwrap();
    assert!(response.headers().contains_key("upstash-sync-token"));
}
