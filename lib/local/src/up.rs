//! `cargo local`: the stack, and the development server as a child, rebuilt when its source
//! changes.

use std::{
    convert::Infallible,
    env,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::runtime::Handle;

use crate::{
    instance::Instance,
    ports,
    process::{Stop, wait_until},
    progress::{note, step},
    serve,
    stack::{self, Stack},
    watch::Watch,
};

/// The paths whose changes cause a build.
const SOURCES: [&str; 5] = ["lib", "api", "migrations", "Cargo.toml", "Cargo.lock"];

/// Runs until a signal ends the process or a service ends.
pub fn run(runtime: &Handle, instance: &Instance, wanted_port: u16) -> Result<Infallible> {
    let started_at = Instant::now();
    let port = ports::next_free_port(wanted_port)?;
    if port != wanted_port {
        note(&format!(
            "port {wanted_port} is taken, so the server listens on {port}"
        ));
    }
    // Read before the first build replaces the file of this process.
    let program = env::current_exe()?;
    let sources = SOURCES.map(|name| instance.paths.root.join(name));
    let watch = Watch::new(sources.to_vec());

    let stack = Stack::start(runtime, instance, port)?;
    stack.show_pages_at(&format!("http://localhost:{port}"));
    let mut server = Server {
        instance,
        program,
        port,
        child: None,
    };
    step("development server: starting", || {
        server.start(&stack, false)
    })?;
    eprintln!("\n{}", summary(&stack, port, started_at));

    supervise(instance, stack, server, watch)
}

/// Restarts the server after changes; fails when a service ends.
fn supervise(
    instance: &Instance,
    mut stack: Stack,
    mut server: Server<'_>,
    mut watch: Watch,
) -> Result<Infallible> {
    loop {
        thread::sleep(Duration::from_millis(250));
        stack.services.check(instance)?;
        server.check()?;

        let Some(path) = watch.changed() else {
            continue;
        };
        // Editors and branch switches write many files in a moment.
        while watch.changed().is_some() {
            thread::sleep(Duration::from_millis(50));
        }

        if !build(instance, &path)? {
            note("the build failed: the old server continues");
            continue;
        }
        server.stop();
        let started = step("development server: restarting", || {
            server.start(&stack, true)
        });
        if let Err(error) = started {
            note(&format!("{error:#}; it restarts after the next change"));
        }
    }
}

/// The development server's process.
struct Server<'a> {
    instance: &'a Instance,
    program: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server<'_> {
    fn start(&mut self, stack: &Stack, migrate: bool) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args([serve::COMMAND, "--port", &self.port.to_string()])
            .current_dir(&self.instance.paths.root)
            .envs(&stack.environment);
        if migrate {
            // The new build may contain new migrations.
            command.env(serve::MIGRATE, stack.database_url());
        }

        let mut child = self
            .instance
            .spawn("server", &mut command, Stop::Terminate)?;
        let address = ports::loopback(self.port);
        let started = wait_until(&mut child, || Ok(TcpStream::connect(address).map(drop)?));
        if started.is_err() {
            self.instance.stop(&mut child, Stop::Terminate);
        } else {
            self.child = Some(child);
        }

        started.context("the development server did not start")
    }

    /// Says so if the server has ended.
    fn check(&mut self) -> Result<()> {
        let status = self.child.as_mut().map(Child::try_wait).transpose()?;
        if let Some(status) = status.flatten() {
            // A signal stops the server as well.
            self.instance.check_open()?;
            note(&format!(
                "the development server ended ({status}); it restarts after the next change"
            ));
            self.child = None;
        }

        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.instance.stop(&mut child, Stop::Terminate);
        }
    }
}

fn build(instance: &Instance, changed: &Path) -> Result<bool> {
    let started_at = Instant::now();
    let name = changed.strip_prefix(&instance.paths.root);
    eprintln!(
        "  … {} changed: building",
        name.unwrap_or(changed).display()
    );

    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--package", "iconoclash-local"])
        .current_dir(&instance.paths.root);
    let status = instance
        .spawn("cargo", &mut command, Stop::Terminate)?
        .wait()?;

    let mark = if status.success() { "✓" } else { "✗" };
    let seconds = started_at.elapsed().as_secs_f32();
    eprintln!("  {mark} build ({seconds:.1} s)");

    Ok(status.success())
}

fn summary(stack: &Stack, port: u16, started_at: Instant) -> String {
    let url = format!("http://localhost:{port}");
    let seconds = started_at.elapsed().as_secs_f32();
    let setting = |name: &str| stack.environment.get(name).map_or("-", String::as_str);
    let page = |variable: &str, name: &str| match stack.environment.contains_key(variable) {
        true => format!("fake, {url}/local/{name}"),
        false => "real".to_owned(),
    };
    let claude = match stack.environment.get(stack::FAKE_CLAUDE) {
        Some(url) => format!("fake, {url}"),
        None => "real".to_owned(),
    };
    let services = &stack.services;

    format!(
        "Iconoclash is at {url} after {seconds:.1} s: every route, and public/.

  {:<14} {}
  {:<14} redis://{}, as Upstash at {}
  Claude         {claude}
  Stripe         {}
  mail           {}

  try it         curl {url}/api/health
  settings       cargo local env        (eval \"$(cargo local env --export)\")
  Vercel         cargo local vercel     the real `vercel dev` on this stack

A change in lib/, api/ or migrations/ is built and served by itself; public/ is served as it is.
Ctrl-C stops all of it.\n",
        services.postgres.label,
        setting("DATABASE_URL_UNPOOLED"),
        services.redis.label,
        services.redis.address,
        setting("UPSTASH_REDIS_REST_URL"),
        page(stack::STRIPE_PAGES, "stripe"),
        page(stack::MAIL_PAGES, "mail"),
    )
}
