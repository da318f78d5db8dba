//! What relaying a reply costs: the function that is deployed, with real stores and a stand-in for Claude, is asked for
//! many replies at once, and the system tells what it used.

use std::{
    env, fs,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::{StreamExt, stream};
use rand::random;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{self, TcpListener},
    runtime::{Builder, Handle},
    time::sleep,
};

use iconoclash_fakes::claude::{self, FakeClaude};
use iconoclash_local::{
    ports, process::Stop, profile::Profile, progress::long_step, services::wait_until, stack::Stack,
};

const MOST_MICROSECONDS: f64 = 25.0;
const MOST_MEGABYTES: f64 = 80.0;
/// The function that sends.
const FUNCTION: &str = "discussions-id-messages";
/// Processor time as /proc counts it, whatever the kernel's own clock.
const TICKS_A_SECOND: f64 = 100.0;
/// Parts of the window. The one in which events cost the least is the one that the machine's other work disturbed least.
const PARTS: u32 = 5;
/// Streams that are opened at once, so that opening them is no test of the pool.
const OPENING: usize = 20;

/// How much is asked for.
#[derive(Debug, Args)]
pub(crate) struct Relay {
    /// Streams of 40 events a second, for processor time
    #[arg(long, default_value_t = 250)]
    busy: usize,
    /// Streams that are open at once, for memory
    #[arg(long, default_value_t = 1_000)]
    streams: usize,
    /// Seconds that processor time is counted for
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Measures, prints, and says whether the bars are met.
pub(crate) fn run(runtime: &Handle, profile: &Profile, relay: &Relay) -> Result<bool> {
    ensure!(
        !cfg!(debug_assertions),
        "only a release build says something: cargo run --release -p iconoclash-local -- bench relay"
    );
    ensure!(
        fs::exists("/proc/self/stat")?,
        "this system does not tell what a process uses in /proc"
    );
    let function = build(profile)?;
    let stack = Stack::start(runtime, profile, 3000)?;
    let (user, token) = sign_up(runtime, profile, &stack)?;
    let bench = Bench {
        runtime,
        profile,
        stack: &stack,
        function,
        user,
        token,
    };
    let window = Duration::from_secs(relay.seconds);
    // As fast as Claude speaks, on as many streams as leave the machine room for those who ask and answer.
    let pace = Duration::from_millis(25);
    let busy = bench.measure(relay.busy, pace, window)?;
    let copied = bench.measure_copy(relay.busy, pace, window)?;
    let many = bench.measure(relay.streams, Duration::from_millis(400), window)?;
    let each = &busy.cpu;
    println(&format!(
        "{} streams of 40 events a second, {} events: {:.1} µs of processor time each (bar {MOST_MICROSECONDS}), {:.1} of them the system's",
        relay.busy,
        busy.events,
        each.total(),
        each.kernel,
    ));
    let copy = copied.cpu.total();
    println(&format!(
        "the same bytes copied from socket to socket: {copy:.1} µs; ratio {:.2}",
        each.total() / copy
    ));
    println(&format!(
        "{} open streams: {:.1} MB at the most, {:.1} MB before (bar {MOST_MEGABYTES})",
        relay.streams, many.most_megabytes, many.idle_megabytes
    ));
    Ok(each.total() <= MOST_MICROSECONDS && many.most_megabytes <= MOST_MEGABYTES)
}

fn println(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// What a function used while so many streams were open.
struct Used {
    /// All that came.
    events: usize,
    /// Of each event.
    cpu: Cpu,
    idle_megabytes: f64,
    most_megabytes: f64,
}

/// The function as the platform gets it.
fn build(profile: &Profile) -> Result<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "iconoclash-functions",
        "--bin",
        FUNCTION,
    ]);
    command.current_dir(&profile.places.root);
    long_step("the function: building as for a deployment", || {
        let status = profile
            .spawn("cargo", &mut command, Stop::Terminate)?
            .wait()?;
        ensure!(
            status.success(),
            "the function {FUNCTION} does not build ({status})"
        );
        Ok(())
    })?;
    Ok(env::current_exe()?.with_file_name(FUNCTION))
}

/// A new user's id and token, from a development server that lives as long as this takes.
fn sign_up(runtime: &Handle, profile: &Profile, stack: &Stack) -> Result<(String, String)> {
    let mut command = Command::new(env::current_exe()?);
    let port = ports::from(3100)?;
    command
        .args(["serve", "--port", &port.to_string()])
        .envs(&stack.environment);
    let mut server = start(profile, port, &mut command)?;
    let user = json!({"email": format!("{}@example.org", random::<u64>()), "password": "correct horse", "name": "Ada"});
    let signed = runtime.block_on(async {
        let url = format!("http://127.0.0.1:{port}/api/auth/signup");
        Client::new()
            .post(url)
            .json(&user)
            .send()
            .await?
            .error_for_status()?
            .json::<Value>()
            .await
    });
    profile.end(&mut server, Stop::Kill);
    let signed = signed?;
    let of = |field: &Value| field.as_str().map(str::to_owned).context("not an account");
    Ok((of(&signed["user"]["id"])?, of(&signed["token"])?))
}

fn start(profile: &Profile, port: u16, command: &mut Command) -> Result<Child> {
    // A line for each request, which nobody reads here.
    command
        .current_dir(&profile.places.root)
        .stdout(Stdio::null());
    let mut child = profile.spawn("relay", command, Stop::Terminate)?;
    let address = ports::loopback(port);
    wait_until(&mut child, || {
        TcpStream::connect(address).map(drop).map_err(Into::into)
    })?;
    Ok(child)
}

struct Bench<'a> {
    runtime: &'a Handle,
    profile: &'a Profile,
    stack: &'a Stack,
    function: PathBuf,
    user: String,
    token: String,
}

impl Bench<'_> {
    /// What the function uses.
    fn measure(&self, streams: usize, pace: Duration, window: Duration) -> Result<Used> {
        let stand_in = self.stand_in(pace)?;
        let port = ports::from(3100)?;
        let mut command = Command::new(&self.function);
        command
            .envs(&self.stack.environment)
            .env("VERCEL_DEV_PORT", port.to_string());
        command
            .env("ANTHROPIC_API_KEYS", "local=sk-ant-local")
            .env("ANTHROPIC_BASE_URL", stand_in.url());
        command
            .env("QUOTA_FREE", "100000")
            .env("BURST_PER_MINUTE", "6000");
        let mut child = start(self.profile, port, &mut command)?;
        let asks = |http: &Client, id: String| {
            let ask = http.post(format!(
                "http://127.0.0.1:{port}/api/discussions/{id}/messages"
            ));
            let ask = ask
                .bearer_auth(&self.token)
                .header("accept", "text/event-stream");
            ask.json(&json!({"content": "Why?"}))
        };
        let used = self.runtime.block_on(async {
            let discussions = discussions(&self.stack.database_url(), &self.user, streams).await?;
            let process = format!("/proc/{}", child.id());
            listen(discussions.into_iter(), asks, &process, window).await
        });
        self.profile.end(&mut child, Stop::Kill);
        used
    }

    /// What a thread uses that copies Claude's bytes and knows nothing of them: the least that relaying can cost here.
    fn measure_copy(&self, streams: usize, pace: Duration, window: Duration) -> Result<Used> {
        let stand_in = self.stand_in(pace)?;
        let claude = stand_in.url().trim_start_matches("http://").to_owned();
        let (tell, told) = mpsc::channel();
        let copying = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let thread = fs::read_link("/proc/thread-self")?;
            let _gone = tell.send((listener.local_addr()?, thread));
            while let Ok((mut asking, _)) = listener.accept().await {
                let claude = claude.clone();
                tokio::spawn(async move {
                    if let Ok(mut answering) = net::TcpStream::connect(claude).await {
                        let _ended = copy_bidirectional(&mut asking, &mut answering).await;
                    }
                });
            }
            anyhow::Ok(())
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // It ends with this process.
        thread::spawn(move || runtime.block_on(copying));
        let (address, thread) = told.recv().context("nothing copies")?;
        let asks = |http: &Client, _: String| {
            let ask = http
                .post(format!("http://{address}/v1/messages"))
                .header("x-api-key", "sk-ant-local");
            ask.header("anthropic-version", ::claude::API_VERSION).json(&json!({
                "model": "claude-haiku-5-5", "max_tokens": 1000, "stream": true, "thinking": {"type": "disabled"},
                "messages": [{"role": "user", "content": "Why?"}],
            }))
        };
        let process = format!("/proc/{}", thread.display());
        let each = (0..streams).map(|at| at.to_string());
        self.runtime.block_on(listen(each, asks, &process, window))
    }

    fn stand_in(&self, pace: Duration) -> Result<FakeClaude> {
        let config = claude::Config {
            pace,
            ..claude::Config::default()
        };
        let stand_in = self.runtime.block_on(FakeClaude::start(config))?;
        // As many words, of one token each, as a free plan may have: all streams outlast the whole window.
        stand_in.always(claude::Script::say("why ".repeat(790)));
        Ok(stand_in)
    }
}

/// Opens a stream for each, listens to all of them, and reads meanwhile what the process uses.
async fn listen(
    streams: impl Iterator<Item = String>,
    asks: impl Fn(&Client, String) -> RequestBuilder,
    process: &str,
    window: Duration,
) -> Result<Used> {
    let http = Client::new();
    let idle_megabytes = megabytes(process, "VmRSS:")?;
    let events = Arc::new(AtomicUsize::new(0));
    let opened = stream::iter(streams.map(|id| {
        let (ask, events) = (asks(&http, id), Arc::clone(&events));
        async move {
            let answer = ask.send().await?.error_for_status()?;
            tokio::spawn(count(answer, events));
            Ok::<_, reqwest::Error>(())
        }
    }));
    let opened: Vec<_> = opened.buffer_unordered(OPENING).collect().await;
    opened
        .into_iter()
        .collect::<Result<Vec<()>, _>>()
        .context("a stream was not opened")?;

    let mut parts = Vec::new();
    for _ in 0..PARTS {
        let (before, cpu) = (events.load(Ordering::Relaxed), Cpu::of(process)?);
        sleep(window / PARTS).await;
        let counted = events.load(Ordering::Relaxed) - before;
        ensure!(counted > 0, "no event came while it was counted");
        parts.push(Cpu::of(process)?.since(&cpu).micros(counted));
    }
    let cpu = parts
        .into_iter()
        .min_by(|one, other| one.total().total_cmp(&other.total()))
        .context("no part")?;
    Ok(Used {
        events: events.load(Ordering::Relaxed),
        cpu,
        idle_megabytes,
        most_megabytes: megabytes(process, "VmHWM:")?,
    })
}

async fn count(answer: reqwest::Response, events: Arc<AtomicUsize>) {
    let mut body = answer.bytes_stream();
    while let Some(Ok(bytes)) = body.next().await {
        // An event is one frame, as its name is sent with it.
        let named = bytes
            .windows(6)
            .filter(|window| window == b"event:")
            .count();
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

/// Processor time of a process, its own and the kernel's for it: in seconds, or in microseconds of each event.
struct Cpu {
    own: f64,
    kernel: f64,
}

impl Cpu {
    fn of(process: &str) -> Result<Self> {
        let stat = fs::read_to_string(format!("{process}/stat"))?;
        // The name, in parentheses, may hold spaces.
        let (_, fields) = stat.rsplit_once(')').context("an odd stat")?;
        let mut seconds = fields
            .split_whitespace()
            .skip(11)
            .map_while(|ticks| ticks.parse::<f64>().ok());
        let mut next = || {
            seconds
                .next()
                .map(|ticks| ticks / TICKS_A_SECOND)
                .context("an odd stat")
        };
        Ok(Self {
            own: next()?,
            kernel: next()?,
        })
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            own: self.own - earlier.own,
            kernel: self.kernel - earlier.kernel,
        }
    }

    /// Microseconds of each event.
    fn micros(&self, events: usize) -> Self {
        let each = |seconds: f64| seconds * 1e6 / events as f64;
        Self {
            own: each(self.own),
            kernel: each(self.kernel),
        }
    }

    fn total(&self) -> f64 {
        self.own + self.kernel
    }
}

fn megabytes(process: &str, of: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(of))
        .context("an odd status")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1_000.0)
}
