//! What operators and crons do to an app, and whether all counters agree afterwards.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Executor, Row};
use std::time::Duration;
use time::UtcOffset;

use crate::harness::TestApp;

/// The number of days whose sums differ from the ledger.
const DIFFERING: &str = "select (select count(*) from (
      select subject, (created_at at time zone 'UTC')::date as day, count(*) filter (where counted) as messages,
        sum(cost_microusd) as spent
      from usage_events group by 1, 2
    ) l full join subject_days s using (subject, day)
    where s.messages is distinct from l.messages or s.spent_microusd is distinct from l.spent)
  + (select count(*) from (
      select (created_at at time zone 'UTC')::date as day, sum(cost_microusd) as spent from usage_events group by 1
    ) l full join budget_days b using (day) where b.spent_microusd is distinct from l.spent)";

impl TestApp {
    /// Sets a spending limit as an operator would.
    pub(crate) async fn budget(&self, scope: &str, limit_microusd: i64) {
        iconoclash::spending::budgets::set(&self.app, scope, limit_microusd)
            .await
            .unwrap();
    }

    /// Calls a cron as the platform does.
    pub(crate) async fn cron(&self, path: &str) -> Value {
        let secret = [("authorization", "Bearer a-cron-secret-of-32-characters!!")];
        let answer = self
            .anonymous()
            .request(Method::GET, path, &secret, Value::Null)
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
        answer.json
    }

    /// Runs the reconcile cron until it has compared Redis with the ledger.
    ///
    /// On a busy machine Redis misses its deadline now and then, and the circuit breaker pauses for seconds.
    pub(crate) async fn reconcile(&self) -> Value {
        for _ in 0..60 {
            let report = self.cron("/api/cron/reconcile").await;
            if report["redis"].is_null() {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("Redis was not reachable for half a minute");
    }

    /// Runs a command on the app's Redis, past the app's circuit breaker.
    pub(crate) async fn redis_command(&self, words: &[&str]) -> Value {
        let redis = upstash_redis_rs::Redis::new(
            self.redis.url(),
            self.redis.token(),
            reqwest::Client::new(),
        )
        .unwrap();
        let [name, args @ ..] = words else {
            panic!("no command")
        };
        let command = upstash_redis_rs::Command::new((*name).to_owned()).args(args.iter().copied());
        redis
            .with_deadline(Duration::from_secs(10))
            .exec(&command)
            .await
            .unwrap()
    }

    /// All rows of text columns.
    pub(crate) async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let mut connection = self.connect().await;
        let rows = connection
            .fetch_all(sqlx::AssertSqlSafe(query.to_owned()))
            .await
            .unwrap();
        rows.iter()
            .map(|row| (0..row.len()).map(|at| row.get(at)).collect())
            .collect()
    }

    /// Asserts that the sums in Postgres equal the ledger, and that Redis equals the sums with no open hold.
    pub(crate) async fn assert_counters_equal_the_ledger(&self) {
        assert_eq!(
            self.value(DIFFERING).await,
            "0",
            "days differ from the ledger"
        );
        assert_eq!(
            self.redis_command(&["ZRANGE", "{rl}:open", "0", "-1"])
                .await,
            json!([]),
            "holds are left"
        );
        let day = self.app.now().to_offset(UtcOffset::UTC).date();
        self.assert_budget(day).await;
        let query = format!(
            "select subject, messages::text, spent_microusd::text from subject_days where day = '{day}'"
        );
        for row in self.rows(&query).await {
            let counted = self
                .redis_command(&["HMGET", &format!("{{rl}}:{}:{day}", row[0]), "n", "c"])
                .await;
            // The next message restores what Redis has lost.
            if counted[0].is_string() {
                assert_eq!(counted, json!([row[1], row[2]]), "{}", row[0]);
            }
        }
    }

    /// Asserts that each request that Claude got has a row, whatever became of it. A call that was dropped before Claude
    /// got it has a row too: whether it was sent is not known.
    pub(crate) async fn assert_every_call_is_in_the_ledger(&self) {
        self.background.idle().await;
        let rows = self.value("select count(*) from usage_events").await;
        let requests = self.claude.requests().len();
        assert!(
            rows.parse::<usize>().unwrap() >= requests,
            "{rows} rows for {requests} requests"
        );
        let running = "select count(*) from usage_events where outcome = 'running'";
        assert_eq!(self.value(running).await, "0");
    }

    async fn assert_budget(&self, day: time::Date) {
        let month = day.to_string()[..7].to_owned();
        let mut keys = vec![
            "MGET".to_owned(),
            format!("{{rl}}:g:{day}"),
            format!("{{rl}}:g:{month}"),
        ];
        keys.extend((1..day.day()).map(|at| format!("{{rl}}:g:{month}-{at:02}")));
        let words: Vec<&str> = keys.iter().map(String::as_str).collect();
        let parts = self.redis_command(&words).await;
        if parts[0].is_null() {
            return;
        }
        let sum: i64 = parts
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|part| part.as_str()?.parse::<i64>().ok())
            .sum();
        let query = format!(
            "select coalesce(sum(spent_microusd) filter (where day = '{day}'), 0)::text, coalesce(sum(spent_microusd), 0)::text
             from budget_days where to_char(day, 'YYYY-MM') = '{month}' and day <= '{day}'"
        );
        let truth = self.rows(&query).await.remove(0);
        assert_eq!(
            [parts[0].as_str().unwrap().to_owned(), sum.to_string()],
            truth[..],
            "spending: {parts}"
        );
    }
}
