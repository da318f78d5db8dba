//! A function as a process of its own, the services that several of them share, and a client.

use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use iconoclash_fakes::test_services::{TestServices, needed};

/// Services of one test, and the settings of every process on them.
pub(crate) struct Stores {
    pub(crate) around: TestServices,
    settings: Vec<(String, String)>,
}

impl Stores {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let around = TestServices::start(Duration::ZERO).await;
        let mut all: Vec<_> = around.settings.clone().into_iter().collect();
        all.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        Self {
            around,
            settings: all,
        }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&format!(
            "{}/{}",
            needed("ICONOCLASH_TEST_POSTGRES"),
            self.around.database
        ))
        .await
        .unwrap()
    }

    async fn sql(&self, statement: &str) {
        self.connect()
            .await
            .execute(sqlx::AssertSqlSafe(statement.to_owned()))
            .await
            .unwrap();
    }

    /// The only value of a query, as text.
    pub(crate) async fn value(&self, query: &str) -> String {
        let query = sqlx::AssertSqlSafe(format!("select (q.value)::text from ({query}) q (value)"));
        sqlx::query_scalar(query)
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }

    /// Asks Redis for a number.
    pub(crate) async fn redis(&self, name: &str, args: &[&str]) -> i64 {
        let (url, token) = (self.around.redis.url(), self.around.redis.token());
        let redis = upstash_redis_rs::Redis::new(url, token, reqwest::Client::new()).unwrap();
        let command = upstash_redis_rs::Command::new(name.to_owned()).args(args.iter().copied());
        redis
            .with_deadline(Duration::from_secs(10))
            .exec(&command)
            .await
            .unwrap()
    }

    /// Sets a global spending limit.
    pub(crate) async fn budget(&self, scope: &str, limit: i64) {
        self.sql(&format!(
            "update budgets set limit_microusd = {limit} where scope = '{scope}'"
        ))
        .await;
        self.redis("DEL", &["{rl}:caps"]).await;
    }

    /// Lifts the limit on new discussions.
    pub(crate) async fn allow_discussions(&self, client: &Client) {
        *client.unlimited.lock().unwrap() = Some(self.around.database.clone());
    }

    /// Makes every running call look some minutes old.
    pub(crate) async fn let_leases_run_out(&self) {
        self.sql("update messages set lease_expires_at = now() - interval '1 second' where status = 'streaming'").await;
        let (url, token) = (self.around.redis.url(), self.around.redis.token());
        let redis = upstash_redis_rs::Redis::new(url, token, reqwest::Client::new()).unwrap();
        let range = upstash_redis_rs::Command::new("ZRANGE")
            .arg("{rl}:open")
            .arg(0)
            .arg(-1);
        let open: Vec<String> = redis.exec(&range).await.unwrap();
        for hold in open {
            self.redis("ZADD", &["{rl}:open", "1", &hold]).await;
        }
    }

    /// The exact hold of the last prompt that Claude got, at Haiku's prices.
    pub(crate) fn hold_of_the_last_prompt(&self) -> i64 {
        let body = self.around.claude.requests().last().unwrap().body.clone();
        let text = |value: &Value| value["text"].as_str().unwrap().len();
        let system: usize = body["system"].as_array().unwrap().iter().map(text).sum();
        let turns: usize = body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|turn| text(&turn["content"][0]))
            .sum();
        (i64::try_from(system + turns).unwrap() * 125_000 + 800 * 500_000 + 999_999) / 1_000_000
    }
}

/// This binary again, answering every route.
pub(crate) struct Function {
    process: Mutex<Child>,
    url: String,
    http: reqwest::Client,
}

impl Function {
    pub(crate) fn start(stores: &Stores, settings: &[(&str, &str)]) -> Self {
        Self::start_logging_to(Stdio::null(), stores, settings)
    }

    /// As [`Self::start`], with its log lines sent to `log`.
    pub(crate) fn start_logging_to(log: Stdio, stores: &Stores, settings: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env("ICONOCLASH_FUNCTION", "1")
            .env("VERCEL_DEV_PORT", port.to_string())
            .envs(stores.settings.iter().map(|(name, value)| (name, value)))
            .envs(settings.iter().copied())
            .stdout(log);
        let process = Mutex::new(command.spawn().unwrap());
        Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::new(),
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Reads the client's session.
    pub(crate) async fn session(&self, client: &Client) {
        let call = self.http.get(format!("{}/api/auth/session", self.url));
        assert_eq!(
            call.bearer_auth(&client.token)
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }

    /// Runs the reconcile cron and returns its report.
    pub(crate) async fn reconcile(&self) -> Value {
        let call = self.http.get(format!("{}/api/cron/reconcile", self.url));
        let answer = call
            .bearer_auth("a-cron-secret-of-32-characters!!")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// The process may still be starting.
    async fn post(
        &self,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> reqwest::Result<(u16, Value)> {
        let mut attempts = 0;
        loop {
            let mut request = self.http.post(format!("{}{path}", self.url)).json(body);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            match request.send().await {
                Err(error) if error.is_connect() && attempts < 1_000 => {
                    attempts += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answer => {
                    let answer = answer?;
                    break Ok((answer.status().as_u16(), answer.json().await?));
                }
            }
        }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap();
        let _already_gone = process.kill();
        let _reaped = process.wait();
    }
}

/// A signed-in user.
pub(crate) struct Client {
    token: String,
    /// The database, to create discussions past the limit on new ones.
    unlimited: Mutex<Option<String>>,
}

impl Client {
    pub(crate) async fn sign_up(function: &Function, name: &str) -> Self {
        let body = json!({"email": format!("{name}@example.org"), "password": "correct horse"});
        let (status, answer) = function
            .post("/api/auth/signup", None, &body)
            .await
            .unwrap();
        assert_eq!(status, 201, "{answer}");
        Self {
            token: answer["token"].as_str().unwrap().to_owned(),
            unlimited: Mutex::default(),
        }
    }

    pub(crate) async fn discussion(&self, function: &Function) -> String {
        // With a title, because a generated one takes another call.
        let body =
            json!({"icons": ["socrates"], "title": "Virtue", "topic": "Can virtue be taught?"});
        let unlimited = self.unlimited.lock().unwrap().clone();
        if let Some(database) = unlimited {
            let url = format!("{}/{database}", needed("ICONOCLASH_TEST_POSTGRES"));
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let statement = "insert into discussions (id, user_id, title, topic, icons, created_at, updated_at)
                select gen_random_uuid(), $1::uuid, 'Virtue', 'Can virtue be taught?', '{socrates}', now(), now()
                returning id::text";
            return sqlx::query_scalar(statement)
                .bind(self.id())
                .fetch_one(&mut connection)
                .await
                .unwrap();
        }
        let (status, answer) = function
            .post("/api/discussions", Some(&self.token), &body)
            .await
            .unwrap();
        assert_eq!(status, 201, "{answer}");
        answer["id"].as_str().unwrap().to_owned()
    }

    /// Status and code of the answer. A 503 is retried after its `Retry-After`.
    pub(crate) async fn send(&self, function: &Function, discussion: &str) -> (u16, String) {
        loop {
            let answer = self.try_send(function, discussion).await.unwrap();
            if answer != (503, "unavailable".to_owned()) {
                return answer;
            }
        }
    }

    pub(crate) async fn try_send(
        &self,
        function: &Function,
        discussion: &str,
    ) -> reqwest::Result<(u16, String)> {
        let path = format!("/api/discussions/{discussion}/messages");
        let (status, answer) = function
            .post(&path, Some(&self.token), &json!({"content": "Why?"}))
            .await?;
        Ok((
            status,
            answer["code"].as_str().unwrap_or_default().to_owned(),
        ))
    }

    /// The user's id, from the token.
    fn id(&self) -> String {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        let claims = BASE64_URL_SAFE_NO_PAD
            .decode(self.token.split('.').nth(1).unwrap())
            .unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        claims["sub"].as_str().unwrap().to_owned()
    }
}
