//! What relaying a reply costs: a server of its own, with real stores and a stand-in for Claude, is asked for many replies
//! at once, and the system tells what it used.

use std::{
    env, fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, stream};
use rand::random;
use serde_json::{Value, json};
use tokio::{runtime::Handle, time::sleep};

use crate::{
    claude::{self, StandIn},
    ports,
    process::Stop,
    profile::Profile,
    services::wait_until,
    stack::Stack,
};

const MOST_MICROSECONDS: f64 = 25.0;
const MOST_MEGABYTES: f64 = 80.0;
/// Processor time as /proc counts it, whatever the kernel's own clock.
const TICKS_A_SECOND: f64 = 100.0;
/// Streams that are opened at once, so that opening them is no test of the pool.
const OPENING: usize = 20;

/// How much is asked for.
#[derive(Debug, Args)]
pub struct Relay {
    /// Streams that are open at once, for memory
    #[arg(long, default_value_t = 1_000)]
    streams: usize,
    /// Seconds that processor time is counted for
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Measures, prints, and says whether the bars are met.
pub fn run(runtime: &Handle, profile: &Profile, relay: &Relay) -> Result<bool> {
    ensure!(
        !cfg!(debug_assertions),
        "only a release build says something: cargo run --release -p iconoclash-local -- bench relay"
    );
    ensure!(fs::exists("/proc/self/stat")?, "this system does not tell what a process uses in /proc");
    let stack = Stack::start(runtime, profile, 3000)?;
    let window = Duration::from_secs(relay.seconds);
    // As fast as Claude speaks, on as many streams as leave the machine room for those who ask and answer.
    let busy = measure(runtime, profile, &stack, 100, Duration::from_millis(25), window)?;
    let many = measure(runtime, profile, &stack, relay.streams, Duration::from_millis(400), window)?;
    let each = busy.cpu_seconds * 1e6 / busy.events as f64;
    println(&format!(
        "100 streams of 40 events a second: {} events, {:.2} s of processor time, {each:.1} µs an event (bar {MOST_MICROSECONDS})",
        busy.events, busy.cpu_seconds
    ));
    println(&format!(
        "{} open streams: {:.1} MB at the most, {:.1} MB before (bar {MOST_MEGABYTES})",
        relay.streams, many.most_megabytes, many.idle_megabytes
    ));
    Ok(each <= MOST_MICROSECONDS && many.most_megabytes <= MOST_MEGABYTES)
}

fn println(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What a server used while so many streams were open.
struct Used {
    events: usize,
    cpu_seconds: f64,
    idle_megabytes: f64,
    most_megabytes: f64,
}

fn measure(
    runtime: &Handle,
    profile: &Profile,
    stack: &Stack,
    streams: usize,
    pace: Duration,
    window: Duration,
) -> Result<Used> {
    let config = claude::Config { pace, ..claude::Config::default() };
    let stand_in = runtime.block_on(StandIn::start(config))?;
    // Long enough for all to be open together for the whole window, and within what a free plan may have.
    stand_in.always(claude::Script::say("argue ".repeat(390)));
    let port = ports::from(3100)?;
    let mut child = serve(profile, stack, &stand_in, port)?;
    let used = runtime.block_on(ask(stack, child.id(), port, streams, window));
    profile.end(&mut child, Stop::Kill);
    used
}

fn serve(profile: &Profile, stack: &Stack, stand_in: &StandIn, port: u16) -> Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["serve", "--port", &port.to_string()]).current_dir(&profile.places.root).envs(&stack.environment);
    command.env("ANTHROPIC_API_KEYS", "local=sk-ant-local").env("ANTHROPIC_BASE_URL", stand_in.url());
    command.env("QUOTA_FREE", "100000").env("BURST_PER_MINUTE", "6000");
    // A line for each request, which nobody reads here.
    command.stdout(Stdio::null());
    let mut child = profile.spawn("relay", &mut command, Stop::Terminate)?;
    let address = ports::loopback(port);
    wait_until(&mut child, || TcpStream::connect(address).map(drop).map_err(Into::into))?;
    Ok(child)
}

async fn ask(stack: &Stack, pid: u32, port: u16, streams: usize, window: Duration) -> Result<Used> {
    let api = format!("http://127.0.0.1:{port}/api");
    let http = reqwest::Client::new();
    let signup =
        json!({"email": format!("{}@example.org", random::<u64>()), "password": "correct horse", "name": "Ada"});
    let signed: Value = http.post(format!("{api}/auth/signup")).json(&signup).send().await?.json().await?;
    let token = signed["token"].as_str().context("no token")?.to_owned();
    let user = signed["user"]["id"].as_str().context("no user")?;
    let discussions = discussions(&stack.database_url(), user, streams).await?;
    let idle_megabytes = megabytes(pid, "VmRSS:")?;

    let events = Arc::new(AtomicUsize::new(0));
    let opened = stream::iter(discussions.into_iter().map(|id| {
        let ask = http.post(format!("{api}/discussions/{id}/messages")).bearer_auth(&token);
        let ask = ask.header("accept", "text/event-stream").json(&json!({"content": "Why?"}));
        let events = Arc::clone(&events);
        async move {
            let answer = ask.send().await?.error_for_status()?;
            tokio::spawn(count(answer, events));
            Ok::<_, reqwest::Error>(())
        }
    }));
    let opened: Vec<_> = opened.buffer_unordered(OPENING).collect().await;
    opened.into_iter().collect::<Result<Vec<()>, _>>().context("a stream was not opened")?;

    let (before, cpu) = (events.load(Ordering::Relaxed), cpu_seconds(pid)?);
    sleep(window).await;
    let cpu_seconds = cpu_seconds(pid)? - cpu;
    let events = events.load(Ordering::Relaxed) - before;
    if events == 0 {
        bail!("no event came while it was counted");
    }
    Ok(Used { events, cpu_seconds, idle_megabytes, most_megabytes: megabytes(pid, "VmHWM:")? })
}

async fn count(answer: reqwest::Response, events: Arc<AtomicUsize>) {
    let mut body = answer.bytes_stream();
    while let Some(Ok(bytes)) = body.next().await {
        // An event is one frame, as its name is sent with it.
        let named = bytes.windows(6).filter(|window| window == b"event:").count();
        events.fetch_add(named, Ordering::Relaxed);
    }
}

/// Discussions of one user, and no limit on what they may cost; written past the limits that a person has.
async fn discussions(url: &str, user: &str, count: usize) -> Result<Vec<String>> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let made = client
        .simple_query(&format!(
            "update budgets set limit_microusd = 1000000000000;
             insert into discussions (id, user_id, title, icons, created_at, updated_at)
             select gen_random_uuid(), '{user}', 'Relay', '{{socrates}}', now(), now() from generate_series(1, {count})
             returning id"
        ))
        .await?;
    let ids = made.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(ids.collect())
}

/// Processor time of a process, its own and the kernel's for it.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces.
    let (_, fields) = stat.rsplit_once(')').context("an odd stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS_A_SECOND)
}

fn megabytes(pid: u32, of: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(of)).context("an odd status")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1_000.0)
}
