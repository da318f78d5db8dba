//! Ten thousand random steps against a model that only knows arithmetic: nobody gets more messages or money than there
//! are, nobody gets fewer but for a message whose process died, and after reconciling all that counts agrees.

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
/// No exact hold of these short conversations is greater: the prompt's bytes at the price of Sonnet, and its longest reply.
const GREATEST_HOLD: i64 = 40_000;
/// Where a process can die, and whether the ledger has a row by then.
const DEATHS: [(&str, bool); 5] = [
    ("admitted", false),
    ("begun", true),
    ("relaying", true),
    ("told", true),
    ("ended", true),
];

struct User<'a> {
    actor: Actor<'a>,
    id: Uuid,
    discussions: Vec<String>,
    is_pro: bool,
    /// Messages of today that count.
    messages: i64,
    /// What Redis may count too many: messages whose process died before the ledger had a row.
    lost: i64,
}

struct World<'a> {
    app: &'a TestApp,
    behind: &'a TestApp,
    redis: proxy::Http,
    /// The step at which the next message's process dies, and who is told when it has.
    death: Arc<Mutex<Option<&'static str>>>,
    died: Arc<Notify>,
    users: Vec<User<'a>>,
    /// Streams under way: whose, in which discussion.
    open: Vec<(usize, String, Events)>,
    random: StdRng,
    told: [usize; 5],
}

#[tokio::test]
async fn ten_thousand_random_steps_keep_to_every_limit() {
    let seed = std::env::var("ICONOCLASH_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("ICONOCLASH_TEST_SEED={seed}");
    let behind = TestApp::start().await;
    let redis = proxy::Http::start(behind.redis.url(), Duration::ZERO)
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
        behind.database
    );
    let url = redis.url();
    let settings = [
        ("DATABASE_URL", database.as_str()),
        ("UPSTASH_REDIS_REST_URL", &url),
        ("UPSTASH_REDIS_REST_TOKEN", behind.redis.token()),
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
        behind: &behind,
        redis,
        death,
        died,
        users,
        open: Vec::new(),
        random,
        told: [0; 5],
    };
    for _ in 0..STEPS {
        world.step().await;
    }
    world.redis.mode(proxy::Mode::Pass);
    world.settle_everything().await;
    let [answered, quota, money, failed, deaths] = world.told;
    eprintln!(
        "{answered} answered, {quota} over quota, {money} over money, {failed} failed, {deaths} deaths"
    );
    assert!(
        world.told.iter().all(|count| *count > 20),
        "{:?}",
        world.told
    );
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
            945..955 => drop(self.behind.redis_says(&["FLUSHDB"]).await),
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
            1 => Script::from(Behaviour::Cut { after: 1 }).costing(usage),
            _ => Script::say("So it is.").costing(usage),
        };
        let is_running = self
            .open
            .iter()
            .any(|(_, running, _)| *running == discussion);
        self.app.claude.clear();
        self.app.claude.next(script);
        let answer = self.users[user].actor.send(&discussion, "Why?").await;
        self.app.claude.clear();
        let (status, code) = answer.problem();
        match (status, code) {
            (201, _) => self.admitted(user),
            (503, "unavailable") if kind == 0 => self.told[3] += 1,
            (409, "reply_in_progress") if is_running => {}
            _ => self.refused(user, status, code).await,
        }
    }

    fn admitted(&mut self, user: usize) {
        self.told[0] += 1;
        let user = &mut self.users[user];
        user.messages += 1;
        let quota = if user.is_pro { PRO.0 } else { FREE.0 };
        assert!(
            user.messages <= quota,
            "message {} of {quota}",
            user.messages
        );
    }

    /// A refusal is right if there is no room, by the ledger or by what Redis counts beyond it until it is reconciled:
    /// holds of processes that died, and of replies that were under way when Redis forgot or was away.
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
                self.told[1] += 1;
                assert!(
                    messages + lost >= quota,
                    "refused after {messages} of {quota}, {lost} lost"
                );
            }
            (402, "spend_limit") => {
                self.told[2] += 1;
                let of_user =
                    format!("from subject_days where subject = 'u:{id}' and day = '{day}'");
                let counted = self
                    .behind
                    .redis_says(&["HGET", &format!("{{rl}}:u:{id}:{day}"), "c"])
                    .await;
                let spent = self.spent(&of_user).await.max(number(&counted));
                assert!(
                    spent + GREATEST_HOLD > cap,
                    "refused with {spent} of {cap} spent"
                );
            }
            (503, "budget_spent") => {
                self.told[2] += 1;
                let days = (1..=day.day()).map(|at| format!("{{rl}}:g:{month}-{at:02}"));
                let keys: Vec<String> = std::iter::once(format!("{{rl}}:g:{month}"))
                    .chain(days)
                    .collect();
                let words: Vec<&str> = std::iter::once("MGET")
                    .chain(keys.iter().map(String::as_str))
                    .collect();
                let counted: Vec<i64> = self
                    .behind
                    .redis_says(&words)
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
                assert!(GREATEST_HOLD > room, "refused with room for {room}");
            }
            other => panic!("{other:?}"),
        }
    }

    async fn spent(&self, from: &str) -> i64 {
        self.behind
            .value(&format!("select coalesce(sum(spent_microusd), 0) {from}"))
            .await
            .parse()
            .unwrap()
    }

    /// A reply that is under way while other things happen.
    async fn begin(&mut self) {
        let (user, discussion) = self.any();
        if self.open.len() >= 3
            || self
                .open
                .iter()
                .any(|(_, running, _)| *running == discussion)
        {
            return;
        }
        let usage = self.usage();
        self.app.claude.clear();
        self.app.claude.next(
            Script::from(Behaviour::Hold { after: 1 })
                .saying("So it is, and more.")
                .costing(usage),
        );
        match self.users[user].actor.try_stream(&discussion, "Why?").await {
            Ok(mut events) => {
                while events.next().await.unwrap().name != "delta" {}
                self.admitted(user);
                self.open.push((user, discussion, events));
            }
            Err(answer) => {
                let (status, code) = answer.problem();
                self.refused(user, status, code).await;
            }
        }
        self.app.claude.clear();
    }

    /// Ends the replies that are under way.
    async fn finish(&mut self) {
        for _ in &self.open {
            self.app.claude.release();
        }
        for (_, _, events) in std::mem::take(&mut self.open) {
            assert_eq!(events.rest().await.last().unwrap().name, "done");
        }
    }

    /// A message whose process dies at some step.
    async fn die(&mut self) {
        self.finish().await;
        let (user, discussion) = self.any();
        let (step, has_row) = *DEATHS.choose(&mut self.random).unwrap();
        let usage = self.usage();
        self.app.claude.clear();
        self.app
            .claude
            .next(Script::say("So it is.").costing(usage));
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
                self.told[4] += 1;
                // Nobody knows yet whether a message that was admitted counts; its reply may run for ever.
                self.users[user].lost += 1;
                if has_row {
                    self.end_leases().await;
                }
            }
        }
    }

    /// Lets leases run out and has the cron end their replies; the ledger says which messages count.
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
            user.messages = self.behind.value(&counted).await.parse().unwrap();
        }
    }

    /// Lets time pass for both instances. A new day has nothing on it.
    fn advance(&mut self, by: time::Duration) {
        let before = self.app.app.now().date();
        self.app.advance(by);
        self.behind.advance(by);
        if self.app.app.now().date() != before {
            let now = self.app.app.now();
            for user in &mut self.users {
                (user.messages, user.lost) = (0, 0);
                // Before the old token has run out.
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
        self.behind
            .sql(&format!(
                "update users set plan = '{plan}' where id = '{}'",
                user.id
            ))
            .await;
    }

    /// With nothing under way and Redis there, one run of the cron makes all that counts agree.
    async fn settle_everything(&mut self) {
        self.finish().await;
        self.redis.mode(proxy::Mode::Pass);
        self.advance(time::Duration::minutes(3));
        // The app may still leave Redis alone; the other instance has never met it in a bad hour.
        self.behind.cron("/api/cron/reconcile").await;
        self.behind.assert_counters_equal_the_ledger().await;
        // Conversations stay so short that nobody sums them up, which is a call of its own.
        self.behind.sql("delete from messages").await;
        for user in &mut self.users {
            user.lost = 0;
        }
        self.read_messages().await;
    }
}

/// A number that Redis has, or has not.
fn number(counted: &Value) -> i64 {
    counted
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}
