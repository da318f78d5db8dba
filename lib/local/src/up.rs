//! `cargo local`: the stack and, as a child, the development server, built again when its source changes.

use std::{
    convert::Infallible,
    env,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::runtime::Handle;

use crate::{
    ports,
    process::Stop,
    profile::Profile,
    progress::{note, step},
    services::wait_until,
    stack::{self, Stack},
    watch::Watch,
};

/// Runs until a signal ends the process, or a service ends by itself.
pub fn run(runtime: &Handle, profile: &Profile, wanted: u16) -> Result<Infallible> {
    let begun = Instant::now();
    let port = ports::from(wanted)?;
    if port != wanted {
        note(&format!(
            "port {wanted} is taken, so the server listens on {port}"
        ));
    }
    // Asked for before the first build replaces the file that this process was started from.
    let program = env::current_exe()?;
    let root = &profile.places.root;
    let sources =
        ["lib", "api", "migrations", "Cargo.toml", "Cargo.lock"].map(|name| root.join(name));
    let mut watch = Watch::new(sources.to_vec());

    let mut stack = Stack::start(runtime, profile, port)?;
    stack.pages_at(&format!("http://localhost:{port}"));
    let server = Server { program, port };
    let mut child = Some(step("development server: starting", || {
        server.start(profile, &stack, false)
    })?);
    eprintln!("\n{}", summary(&stack, port, begun));

    loop {
        thread::sleep(Duration::from_millis(250));
        stack.services.check(profile)?;
        if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            note(&format!(
                "the development server ended ({status}); it starts again at the next change"
            ));
            child = None;
        }
        if let Some(path) = watch.changed() {
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .display()
                .to_string();
            // Editors and branch switches write many files in a moment.
            while watch.changed().is_some() {
                thread::sleep(Duration::from_millis(50));
            }
            if !build(profile, &name)? {
                note("the build failed; the old server goes on");
                continue;
            }
            if let Some(mut old) = child.take() {
                profile.end(&mut old, Stop::Terminate);
            }
            let started = step("development server: starting again", || {
                server.start(profile, &stack, true)
            });
            match started {
                Ok(new) => child = Some(new),
                Err(error) => note(&format!("{error:#}; it starts again at the next change")),
            }
        }
    }
}

struct Server {
    program: PathBuf,
    port: u16,
}

impl Server {
    fn start(&self, profile: &Profile, stack: &Stack, migrate: bool) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(["serve", "--port", &self.port.to_string()])
            .current_dir(&profile.places.root);
        command.envs(&stack.environment);
        if migrate {
            command.env("ICONOCLASH_LOCAL_MIGRATE", stack.database_url());
        }
        let mut child = profile.spawn("server", &mut command, Stop::Terminate)?;
        let address = ports::loopback(self.port);
        let up = wait_until(&mut child, || {
            TcpStream::connect(address).map(drop).map_err(Into::into)
        });
        up.context("the development server did not start")?;
        Ok(child)
    }
}

fn build(profile: &Profile, why: &str) -> Result<bool> {
    let begun = Instant::now();
    eprintln!("  … {why} changed: building");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--package", "iconoclash-local"])
        .current_dir(&profile.places.root);
    let status = profile
        .spawn("cargo", &mut command, Stop::Terminate)?
        .wait()?;
    let mark = if status.success() { "✓" } else { "✗" };
    eprintln!("  {mark} build ({:.1} s)", begun.elapsed().as_secs_f32());
    Ok(status.success())
}

fn summary(stack: &Stack, port: u16, begun: Instant) -> String {
    let url = format!("http://localhost:{port}");
    let setting = |name: &str| stack.environment.get(name).map_or("-", String::as_str);
    let page = |variable: &str, name: &str| match stack.environment.contains_key(variable) {
        true => format!("{url}/local/{name}"),
        false => "the real one".to_owned(),
    };
    format!(
        "Iconoclash is at {url} after {:.1} s: every route, and public/.

  Postgres   {}
  Redis      redis://{}, as Upstash at {}
  Claude     {}
  Stripe     {}
  mail       {}

  try it     curl {url}/api/health
  settings   cargo local env          (eval \"$(cargo local env --export)\")
  Vercel     cargo local vercel       the real `vercel dev` on this stack

A change below lib/, api/ or migrations/ is built and served by itself; public/ is served as it is.
Ctrl-C ends all of it.\n",
        begun.elapsed().as_secs_f32(),
        setting("DATABASE_URL_UNPOOLED"),
        stack.services.redis.address,
        setting("UPSTASH_REDIS_REST_URL"),
        stack
            .environment
            .get("ANTHROPIC_BASE_URL")
            .map_or("the real one", String::as_str),
        page(stack::STRIPE_PAGES, "stripe"),
        page(stack::MAIL_PAGES, "mail"),
    )
}
