//! What admitting a message costs: time, and commands that Redis bills.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use iconoclash::{
    app::App,
    config::Config,
    http::{error::Error, network::Network},
    identity::auth::Session,
    spending::{
        admission::{Admission, LedgerSnapshot},
        budgets::Budgets,
        plan::Plan,
        subject::Subject,
    },
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use upstash_redis_rs::Command;

use iconoclash_fakes::upstash;
use iconoclash_local::{profile::Profile, redis, redis::Redis, secrets};

const SUBJECTS: usize = 1_000;
const AT_ONCE: usize = 64;
const MESSAGES: usize = 20_000;
const LIMIT: i64 = 1_000_000_000_000;
const OF_THE_FRONT: [&str; 4] = [
    "cmdstat_command",
    "cmdstat_select",
    "cmdstat_info",
    "cmdstat_config",
];

/// Starts a Redis behind the Upstash front and measures on it.
pub(crate) fn run(runtime: &Handle, profile: &Profile) -> Result<()> {
    let program = redis::program(&profile.places)?;
    let redis = Redis::start(profile, &program)?;
    let token = secrets::kept(&profile.data)?.redis_token;
    let listen = "127.0.0.1:0".parse()?;
    let config = upstash::FrontConfig {
        redis: redis.address,
        database: 0,
        token: token.clone(),
        listen,
    };
    let front = runtime.block_on(upstash::Front::start(config))?;
    runtime.block_on(measure(front.url(), &token))
}

async fn measure(url: &str, token: &str) -> Result<()> {
    let settings = BTreeMap::from([
        ("UPSTASH_REDIS_REST_URL", url),
        ("UPSTASH_REDIS_REST_TOKEN", token),
        (
            "JWT_KEYS",
            "bench:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        ),
        (
            "CREDENTIALS_KEY",
            "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        ),
        ("QUOTA_FREE", "1000000"),
        ("BURST_PER_MINUTE", "6000"),
    ]);
    let config = Config::from_lookup(|name| settings.get(name).map(|value| (*value).to_owned()));
    let app = App::new(config, Arc::new(OffsetDateTime::now_utc));
    let sessions = (0..SUBJECTS)
        .map(|_| session(&app))
        .collect::<Result<Vec<_>>>()?;
    // The day begins, each subject's too, and the scripts are known afterwards.
    for session in &sessions {
        message(&app, session, true).await?;
    }

    let mut out = stdout().lock();
    writeln!(
        out,
        "{MESSAGES} messages of {SUBJECTS} users, {AT_ONCE} at once; client, REST front and Redis share these cores"
    )?;
    if cfg!(debug_assertions) {
        writeln!(
            out,
            "this is a debug build: for numbers to compare, `cargo run --release -p iconoclash-local -- bench admission`"
        )?;
    }
    let ping = Command::new("INCRBY").arg("bench").arg(1);
    let redis = app.redis().map_err(plain)?;
    let bare = timed(&app, async |_| {
        redis.exec::<i64>(&ping).await.map(drop).map_err(Into::into)
    })
    .await?;
    let admitted = timed(&app, async |at| {
        message(&app, &sessions[at % SUBJECTS], false).await
    })
    .await?;
    let settled = timed(&app, async |at| {
        message(&app, &sessions[at % SUBJECTS], true).await
    })
    .await?;
    for (what, cost) in [
        ("a bare INCRBY", &bare),
        ("an admission", &admitted),
        ("an admission, settled", &settled),
    ] {
        writeln!(
            out,
            "{what:<24} {:>7.0} a second, {:>6.1} µs of Redis' core ({:.0} a second a core), {:>6.1} µs of ours",
            cost.per_second,
            cost.redis_micros,
            1e6 / cost.redis_micros,
            cost.own_micros
        )?;
    }
    writeln!(
        out,
        "Redis' core includes the local front's check of declared keys, two thirds of an admission's time there"
    )?;
    writeln!(
        out,
        "an admission is {:.2} bare commands long",
        bare.per_second / admitted.per_second
    )?;
    writeln!(
        out,
        "commands billed per admission   {:.2}, at most 6",
        admitted.commands
    )?;
    writeln!(
        out,
        "commands billed per settlement  {:.2}, at most 4",
        settled.commands - admitted.commands
    )?;
    Ok(())
}

/// A message as far as Redis is concerned.
async fn message(app: &App, session: &Session, settles: bool) -> Result<()> {
    let budgets = Budgets {
        guest: LIMIT,
        free: LIMIT,
        pro: LIMIT,
        day: LIMIT,
        month: LIMIT,
    };
    let ledger = LedgerSnapshot {
        plan: Plan::Free,
        prompt_bytes: 2_000,
        messages: 0,
        spent: 0,
        burst_ms: 0,
        today: 0,
        month: 0,
        running: Vec::new(),
        budgets,
    };
    let subject = Subject::from_session(session, app).map_err(plain)?;
    let admission =
        Admission::new(app, &subject, session, app.new_id(), app.now()).map_err(plain)?;
    let said = admission.reserve(ledger.prompt_bytes).await;
    admission.decide(said, &ledger).await.map_err(plain)?;
    if settles {
        admission.settle(100).await;
    }
    Ok(())
}

fn session(app: &App) -> Result<Session> {
    let tokens = app.tokens().map_err(plain)?;
    let (token, _) = tokens
        .sign(app.new_id(), app.new_id(), 1, false, app.now())
        .map_err(plain)?;
    let claims = tokens
        .verify(&token, app.now())
        .context("our own token is valid")?;
    Ok(Session {
        claims,
        network: Network::from(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    })
}

struct Cost {
    per_second: f64,
    redis_micros: f64,
    own_micros: f64,
    commands: f64,
}

async fn timed(app: &App, work: impl AsyncFn(usize) -> Result<()>) -> Result<Cost> {
    let (redis_before, own_before, begun) =
        (RedisUse::of(app).await?, own_micros()?, Instant::now());
    let work = &work;
    try_join_all((0..AT_ONCE).map(|lane| async move {
        for at in (lane..MESSAGES).step_by(AT_ONCE) {
            work(at).await?;
        }
        Ok::<_, anyhow::Error>(())
    }))
    .await?;
    let (elapsed, own, redis) = (
        begun.elapsed(),
        own_micros()? - own_before,
        RedisUse::of(app).await?,
    );
    let each = |total: f64| total / MESSAGES as f64;
    Ok(Cost {
        per_second: MESSAGES as f64 / elapsed.as_secs_f64(),
        redis_micros: each(redis.micros - redis_before.micros),
        own_micros: each(own),
        commands: each(redis.commands - redis_before.commands),
    })
}

fn own_micros() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((used.user_time() + used.system_time()).num_microseconds() as f64)
}

/// What Redis says that it has done so far.
struct RedisUse {
    micros: f64,
    commands: f64,
}

impl RedisUse {
    async fn of(app: &App) -> Result<Self> {
        let info = Command::new("INFO").arg("everything");
        let text: String = app.redis().map_err(plain)?.exec(&info).await?;
        let number = |line: &str| {
            line.split(['=', ':', ','])
                .nth(1)
                .and_then(|number| number.parse::<f64>().ok())
        };
        let sum = |prefixes: &[&str]| -> f64 {
            let lines = text
                .lines()
                .filter(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)));
            lines.filter_map(number).sum()
        };
        let calls = text.lines().filter(|line| line.starts_with("cmdstat_"));
        // The front's own: it checks that scripts declare their keys, as Upstash does.
        let calls = calls.filter(|line| !OF_THE_FRONT.iter().any(|own| line.starts_with(own)));
        let calls = calls.filter_map(|line| {
            line.split_once("calls=")?
                .1
                .split(',')
                .next()?
                .parse::<f64>()
                .ok()
        });
        let cpu = sum(&["used_cpu_sys:", "used_cpu_user:"]);
        Ok(Self {
            micros: cpu * 1e6,
            commands: calls.sum(),
        })
    }
}

fn plain(error: Error) -> anyhow::Error {
    anyhow!("{error}")
}
