//! The cost of relaying replies: processor time and memory of the deployed function.
//!
//! The function runs on real stores and a fake Claude, with many open streams; /proc has the
//! figures.

mod function;
mod proc;

use std::{
    fs,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use iconoclash_fakes::claude::{self, FakeClaude};
use iconoclash_local::{bench::Relay, instance::Instance, ports, process::Stop, stack::Stack};
use reqwest::{Client, RequestBuilder};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{self, TcpListener},
    runtime::{Builder, Handle},
    time::sleep,
};

use self::{
    function::Function,
    proc::{Cpu, megabytes},
};

const MAX_MICROSECONDS: f64 = 25.0;
const MAX_MEGABYTES: f64 = 80.0;
/// The pause between two events of a stream: as fast as Claude, on few enough streams that client
/// and fake Claude have processor time left.
const BUSY_PACE: Duration = Duration::from_millis(25);
/// The pause in the measurement of memory.
const SLOW_PACE: Duration = Duration::from_millis(400);
/// Parts of the measurement. The cheapest is reported: other work on the machine disturbed it
/// least.
const PARTS: u32 = 5;
/// Streams that are opened at a time, so that opening them does not test the connection pool.
const OPENED_AT_A_TIME: usize = 20;

/// Measures and prints; true if the bars are kept.
pub(crate) fn run(runtime: &Handle, instance: &Instance, options: &Relay) -> Result<bool> {
    ensure!(
        !cfg!(debug_assertions),
        "a debug build measures nothing useful: run `cargo local bench relay`"
    );
    ensure!(
        fs::exists("/proc/self/stat")?,
        "this system has no /proc: run the benchmark on Linux"
    );

    let program = function::build(instance)?;
    let stack = Stack::start(runtime, instance, 3000)?;
    let user = function::sign_up(runtime, instance, &stack)?;
    let bench = Bench {
        runtime,
        instance,
        window: Duration::from_secs(options.seconds),
        function: Function {
            instance,
            stack: &stack,
            program,
            user,
        },
    };

    let busy = bench.measure_function(options.busy, BUSY_PACE)?;
    let copied = bench.measure_copy(options.busy, BUSY_PACE)?;
    let many = bench.measure_function(options.streams, SLOW_PACE)?;
    print(options, &busy, &copied, &many)?;

    Ok(busy.cpu.total() <= MAX_MICROSECONDS && many.max_megabytes <= MAX_MEGABYTES)
}

fn print(options: &Relay, busy: &Usage, copied: &Usage, many: &Usage) -> Result<()> {
    let mut out = std::io::stdout();

    writeln!(
        out,
        "{} streams of 40 events per second, {} events: {:.1} µs of processor time each \
         (bar {MAX_MICROSECONDS}), {:.1} of them the system's",
        options.busy,
        busy.events,
        busy.cpu.total(),
        busy.cpu.system,
    )?;
    writeln!(
        out,
        "the same bytes copied from socket to socket: {:.1} µs; ratio {:.2}",
        copied.cpu.total(),
        busy.cpu.total() / copied.cpu.total()
    )?;
    writeln!(
        out,
        "{} open streams: at most {:.1} MB, {:.1} MB before (bar {MAX_MEGABYTES})",
        options.streams, many.max_megabytes, many.idle_megabytes
    )?;

    Ok(())
}

/// Usage of a process that relays streams.
struct Usage {
    /// All events.
    events: usize,
    /// Microseconds per event.
    cpu: Cpu,
    idle_megabytes: f64,
    max_megabytes: f64,
}

struct Bench<'a> {
    runtime: &'a Handle,
    instance: &'a Instance,
    /// The duration of a measurement of processor time.
    window: Duration,
    function: Function<'a>,
}

impl Bench<'_> {
    /// The usage of the function.
    fn measure_function(&self, streams: usize, pace: Duration) -> Result<Usage> {
        let fake_claude = self.fake_claude(pace)?;
        let port = ports::next_free_port(3100)?;
        let mut child = self.function.start(port, &fake_claude.url())?;

        let usage = self.runtime.block_on(async {
            let discussions = self.function.create_discussions(streams).await?;
            let request = |http: &Client, id: String| self.function.send_message(http, port, &id);
            let process = format!("/proc/{}", child.id());
            measure(discussions.into_iter(), request, &process, self.window).await
        });
        self.instance.stop(&mut child, Stop::Kill);

        usage
    }

    /// The usage of a thread that copies Claude's bytes unread: the lower bound of relaying.
    fn measure_copy(&self, streams: usize, pace: Duration) -> Result<Usage> {
        let fake_claude = self.fake_claude(pace)?;
        let claude = fake_claude.url().trim_start_matches("http://").to_owned();
        let (tx, rx) = mpsc::channel();
        let copy = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let thread = fs::read_link("/proc/thread-self")?;
            let _ = tx.send((listener.local_addr()?, thread));
            copy_connections(listener, claude).await
        };

        let runtime = Builder::new_current_thread().enable_all().build()?;
        // The thread ends with this process.
        thread::spawn(move || runtime.block_on(copy));
        let (address, thread) = rx.recv().context("the copying thread ended")?;
        let process = format!("/proc/{}", thread.display());
        let url = format!("http://{address}/v1/messages");
        let request = |http: &Client, _: String| ask_claude(http, &url);
        let ids = (0..streams).map(|index| index.to_string());

        self.runtime
            .block_on(measure(ids, request, &process, self.window))
    }

    /// A fake Claude whose replies have as many one-token words as a free plan allows: all streams
    /// outlast the measurement.
    fn fake_claude(&self, pace: Duration) -> Result<FakeClaude> {
        let config = claude::Config {
            pace,
            ..claude::Config::default()
        };
        let fake = self.runtime.block_on(FakeClaude::start(config))?;
        fake.always(claude::Script::say("why ".repeat(790)));

        Ok(fake)
    }
}

async fn copy_connections(listener: TcpListener, claude: String) -> Result<()> {
    while let Ok((mut client, _)) = listener.accept().await {
        let claude = claude.clone();
        tokio::spawn(async move {
            if let Ok(mut server) = net::TcpStream::connect(claude).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }

    Ok(())
}

fn ask_claude(http: &Client, url: &str) -> RequestBuilder {
    let body = json!({
        "model": "claude-haiku-5-5",
        "max_tokens": 1000,
        "stream": true,
        "thinking": {"type": "disabled"},
        "messages": [{"role": "user", "content": "Why?"}],
    });

    http.post(url)
        .header("x-api-key", "sk-ant-local")
        .header("anthropic-version", ::claude::API_VERSION)
        .json(&body)
}

/// Opens a stream for each id and reads the usage of `process` while they run.
async fn measure(
    ids: impl Iterator<Item = String>,
    request: impl Fn(&Client, String) -> RequestBuilder,
    process: &str,
    window: Duration,
) -> Result<Usage> {
    let http = Client::new();
    let idle_megabytes = megabytes(process, "VmRSS:")?;
    let events = Arc::new(AtomicUsize::new(0));
    let opening = stream::iter(ids.map(|id| {
        let request = request(&http, id);
        let events = Arc::clone(&events);
        async move {
            let answer = request.send().await?.error_for_status()?;
            tokio::spawn(count_events(answer, events));
            Ok::<_, reqwest::Error>(())
        }
    }));
    let opened: Vec<_> = opening.buffer_unordered(OPENED_AT_A_TIME).collect().await;
    opened
        .into_iter()
        .collect::<Result<Vec<()>, _>>()
        .context("a stream was not opened")?;

    let cpu = cheapest_part(&events, process, window).await?;

    Ok(Usage {
        events: events.load(Ordering::Relaxed),
        cpu,
        idle_megabytes,
        max_megabytes: megabytes(process, "VmHWM:")?,
    })
}

async fn cheapest_part(events: &AtomicUsize, process: &str, window: Duration) -> Result<Cpu> {
    let mut parts = Vec::new();
    for _ in 0..PARTS {
        let events_before = events.load(Ordering::Relaxed);
        let cpu_before = Cpu::read(process)?;
        sleep(window / PARTS).await;
        let counted = events.load(Ordering::Relaxed) - events_before;
        ensure!(counted > 0, "no event arrived during the measurement");

        let used = Cpu::read(process)?.since(&cpu_before);
        parts.push(used.micros_per_event(counted));
    }

    parts
        .into_iter()
        .min_by(|one, other| one.total().total_cmp(&other.total()))
        .context("no part")
}

async fn count_events(answer: reqwest::Response, events: Arc<AtomicUsize>) {
    let mut body = answer.bytes_stream();
    while let Some(Ok(bytes)) = body.next().await {
        // Every event arrives in one frame, with its name.
        let windows = bytes.windows(6);
        let named = windows.filter(|window| window == b"event:").count();
        events.fetch_add(named, Ordering::Relaxed);
    }
}
