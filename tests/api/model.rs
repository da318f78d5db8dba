//! Model-based test: 10,000 random operations against a simple arithmetic model of quotas and spending.
//!
//! No user gets more messages than the plan allows, or fewer except for a message whose process died, and after
//! reconciliation all counters agree.

use claude::Usage;

use iconoclash::{crash_point::CrashTrigger, identity::session_cache};
use iconoclash_fakes::{
    claude::{Behaviour, Failure, Script},
    proxy,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::harness::{Actor, Events, TestApp};
use iconoclash_fakes::test_services::needed;

const STEPS: usize = 10_000;
/// Messages and micro-dollars a day.
const FREE: (i64, i64) = (4, 1_500);
const PRO: (i64, i64) = (7, 60_000);
const DAY: i64 = 90_000;
const MONTH: i64 = 500_000;
/// No hold of these short conversations is larger: the prompt's bytes and the longest reply at Sonnet's prices.
const MAX_HOLD: i64 = 40_000;
/// The crash points, and whether the ledger has a row by then.
const CRASH_POINTS: [(&str, bool); 5] = [
    ("admitted", false),
    ("begun", true),
    ("relaying", true),
    ("streamed", true),
    ("ended", true),
];

struct User<'a> {
    actor: Actor<'a>,
    id: Uuid,
    discussions: Vec<String>,
    is_pro: bool,
    /// Counted messages of today.
    messages: i64,
    /// Messages that only Redis counts: their process died before the ledger had a row.
    lost: i64,
}

struct World<'a> {
    app: &'a TestApp,
    second_instance: &'a TestApp,
    redis: proxy::Http,
    /// The crash point of the next message, and the channel that reports it.
    death: Arc<Mutex<Option<&'static str>>>,
    died: Arc<Notify>,
    users: Vec<User<'a>>,
    /// Running streams: user and discussion.
    running: Vec<(usize, String, Events)>,
    random: StdRng,
    counts: Counts,
}

/// How often each outcome occurred.
#[derive(Debug, Default)]
struct Counts {
    answered: usize,
    over_quota: usize,
    over_budget: usize,
    failed: usize,
    crashed: usize,
}

#[tokio::test]
async fn ten_thousand_random_steps_keep_every_limit() {
    let seed = std::env::var("ICONOCLASH_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("ICONOCLASH_TEST_SEED={seed}");
    let second_instance = TestApp::start().await;
    let redis = proxy::Http::start(second_instance.redis.url(), Duration::ZERO)
        .await
        .unwrap();
    let (death, died) = (
        Arc::new(Mutex::new(None::<&'static str>)),
        Arc::new(Notify::new()),
    );
    let (dies, tell) = (death.clone(), died.clone());
    let database = format!(
        "{}/{}",
        needed("ICONOCLASH_TEST_PGBOUNCER"),
        second_instance.database
    );
    let url = redis.url();
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("UPSTASH_REDIS_REST_URL", &url),
        ("UPSTASH_REDIS_REST_TOKEN", second_instance.redis.token()),
        ("QUOTA_FREE", "4"),
        ("QUOTA_PRO", "7"),
    ];
    let app = TestApp::adjusted(&settings, |config| {
        config.crash_trigger = Some(CrashTrigger::when(move |at| {
            let here = dies.lock().unwrap().take_if(|step| *step == at).is_some();
            if here {
                tell.notify_one();
            }
            here
        }));
    })
    .await;
    for (scope, limit) in [
        ("free", FREE.1),
        ("pro", PRO.1),
        ("day", DAY),
        ("month", MONTH),
    ] {
        app.budget(scope, limit).await;
    }
    let mut users = Vec::new();
    for name in ["ada", "bob", "cleo"] {
        let actor = app.member(name).await;
        let id = actor.get("/api/auth/session").await.json["user"]["id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let discussions = vec![
            actor.discussion().await,
            actor.discussion().await,
            actor.discussion().await,
        ];
        users.push(User {
            actor,
            id,
            discussions,
            is_pro: false,
            messages: 0,
            lost: 0,
        });
    }
    let random = StdRng::seed_from_u64(seed);
    let mut world = World {
        app: &app,
        second_instance: &second_instance,
        redis,
        death,
        died,
        users,
        running: Vec::new(),
        random,
        counts: Counts::default(),
    };
    for _ in 0..STEPS {
        world.step().await;
    }
    world.redis.mode(proxy::Mode::Pass);
    world.settle_everything().await;
    let Counts {
        answered,
        over_quota,
        over_budget,
        failed,
        crashed,
    } = world.counts;
    eprintln!("{:?}", world.counts);
    for count in [answered, over_quota, over_budget, failed, crashed] {
        assert!(count > 20, "{:?}", world.counts);
    }
}

impl World<'_> {
    async fn step(&mut self) {
        match self.random.random_range(0..1000) {
            0..600 => self.send().await,
            600..720 => self.begin().await,
            720..850 => self.finish().await,
            850..890 => self.die().await,
            890..930 => self.change_plan().await,
            930..945 => {
                self.finish().await;
                let seconds = self.random.random_range(1..5000);
                self.advance(time::Duration::seconds(seconds));
            }
            945..955 => drop(self.second_instance.redis_command(&["FLUSHDB"]).await),
            955..957 => self.redis.mode(proxy::Mode::Html),
            957..970 => self.redis.mode(proxy::Mode::Pass),
            970..980 => drop(self.app.cron("/api/cron/reconcile").await),
            980..990 => {
                self.finish().await;
                self.advance(time::Duration::days(1));
            }
            _ => self.settle_everything().await,
        }
    }

    fn any(&mut self) -> (usize, String) {
        let user = self.random.random_range(0..self.users.len());
        let discussion = self.users[user]
            .discussions
            .choose(&mut self.random)
            .unwrap()
            .clone();
        (user, discussion)
    }

    fn usage(&mut self) -> Usage {
        Usage {
            input: self.random.random_range(1..300),
            output: self.random.random_range(1..400),
            ..Usage::default()
        }
    }

    async fn send(&mut self) {
        let (user, discussion) = self.any();
        let usage = self.usage();
        let kind = self.random.random_range(0..10);
        let script = match kind {
            0 => Script::from(Failure::Overloaded),
            1 => Script::from(Behaviour::Cut { after: 1 }).with_usage(usage),
            _ => Script::say("So it is.").with_usage(usage),
        };
        let is_running = self
            .running
            .iter()
            .any(|(_, running, _)| *running == discussion);
        self.app.claude.clear();
        // The first overload is retried.
        if kind == 0 {
            self.app.claude.next(script.clone());
        }
        self.app.claude.next(script);
        let answer = self.users[user].actor.send(&discussion, "Why?").await;
        self.app.claude.clear();
        let (status, code) = answer.problem();
        match (status, code) {
            (201, _) => self.admitted(user),
            (503, "unavailable") if kind == 0 => self.counts.failed += 1,
            (409, "reply_in_progress") if is_running => {}
            _ => self.refused(user, status, code).await,
        }
    }

    fn admitted(&mut self, user: usize) {
        self.counts.answered += 1;
        let user = &mut self.users[user];
        user.messages += 1;
        let quota = if user.is_pro { PRO.0 } else { FREE.0 };
        assert!(
            user.messages <= quota,
            "message {} of {quota}",
            user.messages
        );
    }

    /// A refusal is right if there is no room in the ledger, or in what Redis counts beyond it until reconciliation: holds
    /// of dead processes, and of replies that were running when Redis lost data or was unreachable.
    async fn refused(&mut self, user: usize, status: u16, code: &str) {
        let User {
            id,
            is_pro,
            messages,
            lost,
            ..
        } = self.users[user];
        let (quota, cap) = if is_pro { PRO } else { FREE };
        let day = self.app.app.now().date();
        let month = day.to_string()[..7].to_owned();
        match (status, code) {
            (429, "quota_exceeded") => {
                self.counts.over_quota += 1;
                assert!(
                    messages + lost >= quota,
                    "refused after {messages} of {quota}, {lost} lost"
                );
            }
            (402, "spend_limit") => {
                self.counts.over_budget += 1;
                let of_user =
                    format!("from subject_days where subject = 'u:{id}' and day = '{day}'");
                let counted = self
                    .second_instance
                    .redis_command(&["HGET", &format!("{{rl}}:u:{id}:{day}"), "c"])
                    .await;
                let spent = self.spent(&of_user).await.max(number(&counted));
                assert!(
                    spent + MAX_HOLD > cap,
                    "refused with {spent} of {cap} spent"
                );
            }
            (503, "budget_spent") => {
                self.counts.over_budget += 1;
                let days = (1..=day.day()).map(|at| format!("{{rl}}:g:{month}-{at:02}"));
                let keys: Vec<String> = std::iter::once(format!("{{rl}}:g:{month}"))
                    .chain(days)
                    .collect();
                let words: Vec<&str> = std::iter::once("MGET")
                    .chain(keys.iter().map(String::as_str))
                    .collect();
                let counted: Vec<i64> = self
                    .second_instance
                    .redis_command(&words)
                    .await
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(number)
                    .collect();
                let today = self
                    .spent(&format!("from budget_days where day = '{day}'"))
                    .await;
                let today = today.max(*counted.last().unwrap());
                let of_month = self
                    .spent(&format!(
                        "from budget_days where to_char(day, 'YYYY-MM') = '{month}'"
                    ))
                    .await;
                let of_month = of_month.max(counted.iter().sum());
                let room = (DAY - today).min(MONTH - of_month);
                assert!(MAX_HOLD > room, "refused with room for {room}");
            }
            other => panic!("{other:?}"),
        }
    }

    async fn spent(&self, from: &str) -> i64 {
        self.second_instance
            .value(&format!("select coalesce(sum(spent_microusd), 0) {from}"))
            .await
            .parse()
            .unwrap()
    }

    /// Begins a reply that runs while other steps happen.
    async fn begin(&mut self) {
        let (user, discussion) = self.any();
        if self.running.len() >= 3
            || self
                .running
                .iter()
                .any(|(_, running, _)| *running == discussion)
        {
            return;
        }
        let usage = self.usage();
        self.app.claude.clear();
        self.app.claude.next(
            Script::from(Behaviour::Hold { after: 1 })
                .with_text("So it is, and more.")
                .with_usage(usage),
        );
        match self.users[user].actor.try_stream(&discussion, "Why?").await {
            Ok(mut events) => {
                events.first_delta().await;
                self.admitted(user);
                self.running.push((user, discussion, events));
            }
            Err(answer) => {
                let (status, code) = answer.problem();
                self.refused(user, status, code).await;
            }
        }
        self.app.claude.clear();
    }

    /// Ends the running replies.
    async fn finish(&mut self) {
        for _ in &self.running {
            self.app.claude.release();
        }
        for (_, _, events) in std::mem::take(&mut self.running) {
            assert_eq!(events.rest().await.last().unwrap().name, "done");
        }
    }

    /// Sends a message whose process dies at a crash point.
    async fn die(&mut self) {
        self.finish().await;
        let (user, discussion) = self.any();
        let (step, has_row) = *CRASH_POINTS.choose(&mut self.random).unwrap();
        let usage = self.usage();
        self.app.claude.clear();
        self.app
            .claude
            .next(Script::say("So it is.").with_usage(usage));
        *self.death.lock().unwrap() = Some(step);
        let answer = tokio::select! {
            answer = self.users[user].actor.send(&discussion, "Why?") => Some(answer),
            () = self.died.notified() => None,
        };
        *self.death.lock().unwrap() = None;
        match answer {
            Some(answer) => {
                let (status, code) = answer.problem();
                self.refused(user, status, code).await;
            }
            None => {
                self.counts.crashed += 1;
                // Whether an admitted message counts is open until its lease ends.
                self.users[user].lost += 1;
                if has_row {
                    self.end_leases().await;
                }
            }
        }
    }

    /// Lets leases expire and has the cron end their replies; then the ledger says which messages count.
    async fn end_leases(&mut self) {
        self.finish().await;
        self.advance(time::Duration::minutes(3));
        self.app.cron("/api/cron/reconcile").await;
        self.read_messages().await;
    }

    async fn read_messages(&mut self) {
        let day = self.app.app.now().date();
        for user in &mut self.users {
            let counted = format!(
                "select count(*) from usage_events where counted and subject = 'u:{}' and (created_at at time zone 'UTC')::date = '{day}'",
                user.id
            );
            user.messages = self.second_instance.value(&counted).await.parse().unwrap();
        }
    }

    /// Advances the clock of both instances. A new day starts empty.
    fn advance(&mut self, by: time::Duration) {
        let before = self.app.app.now().date();
        self.app.advance(by);
        self.second_instance.advance(by);
        if self.app.app.now().date() != before {
            let now = self.app.app.now();
            for user in &mut self.users {
                (user.messages, user.lost) = (0, 0);
                // Before the old token expires.
                let tokens = self.app.app.tokens().unwrap();
                user.actor.token = Some(
                    tokens
                        .sign(user.id, Uuid::now_v7(), 1, false, now)
                        .unwrap()
                        .0,
                );
            }
        }
    }

    async fn change_plan(&mut self) {
        let at = self.random.random_range(0..self.users.len());
        let user = &mut self.users[at];
        session_cache::invalidate(&self.app.app, user.id)
            .await
            .unwrap();
        user.is_pro = !user.is_pro;
        let plan = if user.is_pro { "pro" } else { "free" };
        self.second_instance
            .sql(&format!(
                "update users set plan = '{plan}' where id = '{}'",
                user.id
            ))
            .await;
    }

    /// With no running reply and a reachable Redis, one reconciliation makes all counters agree.
    async fn settle_everything(&mut self) {
        self.finish().await;
        self.redis.mode(proxy::Mode::Pass);
        self.advance(time::Duration::minutes(3));
        // The circuit breaker of the first instance may still be open; the second never saw a failure.
        self.second_instance.reconcile().await;
        self.second_instance
            .assert_counters_equal_the_ledger()
            .await;
        // Conversations stay too short for a summary, which would be another call.
        self.second_instance.sql("delete from messages").await;
        for user in &mut self.users {
            user.lost = 0;
        }
        self.read_messages().await;
    }
}

/// A number in Redis, or 0.
fn number(counted: &Value) -> i64 {
    counted
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}
