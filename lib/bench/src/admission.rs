//! The cost of admitting a message: time, and commands that Redis bills.

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
use iconoclash_fakes::upstash;
use iconoclash_local::{
    install::Need,
    instance::Instance,
    redis::{self, Redis},
    secrets,
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use upstash_redis_rs::Command;

const USERS: usize = 1_000;
const CONCURRENCY: usize = 64;
const MESSAGES: usize = 20_000;
const UNLIMITED: i64 = 1_000_000_000_000;
/// Commands of the REST proxy itself: it checks that scripts declare their keys, as Upstash does.
const COMMANDS_OF_THE_PROXY: [&str; 4] = [
    "cmdstat_command",
    "cmdstat_select",
    "cmdstat_info",
    "cmdstat_config",
];

/// Starts Redis and the Upstash REST proxy, and measures.
pub(crate) fn run(runtime: &Handle, instance: &Instance) -> Result<()> {
    let program = redis::pinned(&instance.paths, Need::Wanted)?;
    let redis = Redis::start(instance, &program)?;
    let token = secrets::load_or_create(&instance.data)?.redis_token;
    let config = upstash::RestProxyConfig {
        redis: redis.address,
        database: 0,
        token: token.clone(),
        listen: "127.0.0.1:0".parse()?,
    };
    let proxy = runtime.block_on(upstash::RestProxy::start(config))?;

    runtime.block_on(measure(proxy.url(), &token))
}

async fn measure(url: &str, token: &str) -> Result<()> {
    let app = app(url, token);
    let sessions = (0..USERS)
        .map(|_| session(&app))
        .collect::<Result<Vec<_>>>()?;
    let session = |index: usize| &sessions[index % USERS];
    // Creates the day's keys of each user and loads the scripts.
    for session in &sessions {
        message(&app, session, true).await?;
    }

    let increment = Command::new("INCRBY").arg("bench").arg(1);
    let redis = app.redis().map_err(into_anyhow)?;
    let bare = timed(&app, async |_| {
        redis
            .exec::<i64>(&increment)
            .await
            .map(drop)
            .map_err(Into::into)
    })
    .await?;
    let admitted = timed(&app, async |index| {
        message(&app, session(index), false).await
    })
    .await?;
    let settled = timed(&app, async |index| {
        message(&app, session(index), true).await
    })
    .await?;

    print(&bare, &admitted, &settled)
}

fn app(url: &str, token: &str) -> App {
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

    App::new(config, Arc::new(OffsetDateTime::now_utc))
}

fn print(bare: &Cost, admitted: &Cost, settled: &Cost) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(
        out,
        "{MESSAGES} messages of {USERS} users, {CONCURRENCY} at a time; \
         client, REST proxy and Redis share these cores"
    )?;

    for (name, cost) in [
        ("a bare INCRBY", bare),
        ("an admission", admitted),
        ("an admission, settled", settled),
    ] {
        writeln!(
            out,
            "{name:<24} {:>7.0} per second, {:>6.1} µs of Redis' core ({:.0} per second and core), \
             {:>6.1} µs of this process",
            cost.per_second,
            cost.redis_micros,
            1e6 / cost.redis_micros,
            cost.own_micros
        )?;
    }

    writeln!(
        out,
        "Redis' core includes the proxy's check of declared keys: two thirds of an admission's time"
    )?;
    writeln!(
        out,
        "an admission takes as long as {:.2} bare commands",
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

/// Admits a message as far as Redis is involved, and settles it if asked to.
async fn message(app: &App, session: &Session, settles: bool) -> Result<()> {
    let budgets = Budgets {
        guest: UNLIMITED,
        free: UNLIMITED,
        pro: UNLIMITED,
        day: UNLIMITED,
        month: UNLIMITED,
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

    let subject = Subject::from_session(session, app).map_err(into_anyhow)?;
    let admission =
        Admission::new(app, &subject, session, app.new_id(), app.now()).map_err(into_anyhow)?;
    let answer = admission.reserve(ledger.prompt_bytes).await;
    admission
        .decide(answer, &ledger)
        .await
        .map_err(into_anyhow)?;
    if settles {
        admission.settle(100).await;
    }

    Ok(())
}

fn session(app: &App) -> Result<Session> {
    let tokens = app.tokens().map_err(into_anyhow)?;
    let (token, _) = tokens
        .sign(app.new_id(), app.new_id(), 1, false, app.now())
        .map_err(into_anyhow)?;
    let claims = tokens
        .verify(&token, app.now())
        .context("a token that was just signed is not valid")?;

    Ok(Session {
        claims,
        network: Network::from(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    })
}

/// Figures per message.
struct Cost {
    per_second: f64,
    redis_micros: f64,
    own_micros: f64,
    commands: f64,
}

async fn timed(app: &App, work: impl AsyncFn(usize) -> Result<()>) -> Result<Cost> {
    let redis_before = RedisUsage::read(app).await?;
    let own_before = own_micros()?;
    let started_at = Instant::now();

    let work = &work;
    try_join_all((0..CONCURRENCY).map(|lane| async move {
        for index in (lane..MESSAGES).step_by(CONCURRENCY) {
            work(index).await?;
        }
        Ok::<_, anyhow::Error>(())
    }))
    .await?;

    let elapsed = started_at.elapsed();
    let own = own_micros()? - own_before;
    let redis = RedisUsage::read(app).await?;
    let per_message = |total: f64| total / MESSAGES as f64;

    Ok(Cost {
        per_second: MESSAGES as f64 / elapsed.as_secs_f64(),
        redis_micros: per_message(redis.micros - redis_before.micros),
        own_micros: per_message(own),
        commands: per_message(redis.commands - redis_before.commands),
    })
}

/// Processor time of this process.
fn own_micros() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();

    Ok(time.num_microseconds() as f64)
}

/// Processor time and commands of Redis since its start.
struct RedisUsage {
    micros: f64,
    commands: f64,
}

impl RedisUsage {
    async fn read(app: &App) -> Result<Self> {
        let info = Command::new("INFO").arg("everything");
        let text: String = app.redis().map_err(into_anyhow)?.exec(&info).await?;

        Ok(Self {
            micros: cpu_seconds(&text) * 1e6,
            commands: commands(&text),
        })
    }
}

fn cpu_seconds(info: &str) -> f64 {
    info.lines()
        .filter_map(|line| {
            line.strip_prefix("used_cpu_sys:")
                .or_else(|| line.strip_prefix("used_cpu_user:"))
        })
        .filter_map(|seconds| seconds.trim().parse::<f64>().ok())
        .sum()
}

/// The sum of all `cmdstat_name:calls=42,…` but those of the proxy.
fn commands(info: &str) -> f64 {
    info.lines()
        .filter(|line| line.starts_with("cmdstat_"))
        .filter(|line| {
            !COMMANDS_OF_THE_PROXY
                .iter()
                .any(|own| line.starts_with(own))
        })
        .filter_map(|line| {
            let (_, calls) = line.split_once("calls=")?;
            calls.split(',').next()?.parse::<f64>().ok()
        })
        .sum()
}

fn into_anyhow(error: Error) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_redis_info() {
        let info = "# CPU\r\n\
                    used_cpu_sys:1.5\r\n\
                    used_cpu_user:0.25\r\n\
                    used_cpu_sys_children:9.0\r\n\
                    # Commandstats\r\n\
                    cmdstat_evalsha:calls=3,usec=10\r\n\
                    cmdstat_info:calls=7,usec=1\r\n\
                    cmdstat_incrby:calls=2,usec=1\r\n";

        assert_eq!(cpu_seconds(info).to_bits(), 1.75_f64.to_bits());
        assert_eq!(commands(info).to_bits(), 5.0_f64.to_bits());
    }
}
