//! The operators' tool.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use iconoclash_cli::{
    doctor::{Verdict, doctor},
    keys,
};

/// Looks after an Iconoclash deployment.
#[derive(Parser)]
#[command(name = "iconoclash", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the database up to this release: schema, icons, timeouts of the role
    ///
    /// Needs DATABASE_URL_UNPOOLED, the direct URL of Postgres: a migration's lock belongs to a session, which a
    /// transaction-mode pooler does not give. Safe to run twice and by several at once; run it before the functions
    /// of the same release are deployed. The role of DATABASE_URL, if that is set, gets its timeouts.
    Migrate {
        #[command(flatten)]
        database: Database,
    },
    /// Check the settings of the database and say what to do about each fault
    ///
    /// Changes nothing. Exits with 1 if Iconoclash would not work with what it found.
    Doctor {
        #[command(flatten)]
        database: Database,
    },
    /// Add, rotate and look after the Claude API keys that are kept in the database
    ///
    /// Needs the settings of the functions: DATABASE_URL and CREDENTIALS_KEY, for `list` and `test` also
    /// UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN. Every instance follows within a minute, with no deployment.
    ///
    /// To rotate a key: make the new one in the provider's console, `keys add` it under a new label, `keys test` it,
    /// `keys drain` the old one, and once its last replies have ended, after five minutes at the most, `keys revoke` it
    /// and disable it in the console.
    #[command(verbatim_doc_comment)]
    Keys {
        #[command(subcommand)]
        task: keys::Task,
    },
}

#[derive(Args)]
struct Database {
    /// The pooled URL, which the functions use
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// The direct URL, which migrations use
    #[arg(long, env = "DATABASE_URL_UNPOOLED", hide_env_values = true, value_name = "URL")]
    database_url_unpooled: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Migrate { database } => migrate(database).await,
        Command::Doctor { database } => diagnose(database).await,
        Command::Keys { task } => look_after_keys(task).await,
    }
}

async fn migrate(database: Database) -> ExitCode {
    let Some(direct) = set(&database.database_url_unpooled) else {
        eprintln!(
            "DATABASE_URL_UNPOOLED is not set: give the direct URL of Postgres. DATABASE_URL will not do, because a \
             pooler leaves a migration's lock behind on a server connection, where the next migration waits for ever."
        );
        return ExitCode::FAILURE;
    };
    let pooled = set(&database.database_url);
    match iconoclash_cli::migrate(direct, pooled, &mut |line| say(&line)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn look_after_keys(task: keys::Task) -> ExitCode {
    let app = iconoclash::app::App::from_env();
    match keys::run(&app, task, &keys::from_terminal, &mut |line| say(&line)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn diagnose(database: Database) -> ExitCode {
    let pooled = set(&database.database_url);
    let findings = doctor(pooled, set(&database.database_url_unpooled)).await;
    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Fine => "ok    ",
            Verdict::Notice => "notice",
            Verdict::Failure => "FAIL  ",
        };
        say(&format!("{mark} {}", finding.text));
    }
    match findings.iter().any(|finding| finding.verdict == Verdict::Failure) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// A variable that is set to nothing is not set.
fn set(variable: &Option<String>) -> Option<&str> {
    variable.as_deref().filter(|value| !value.is_empty())
}

#[expect(clippy::print_stdout, reason = "what a command says is its result")]
fn say(line: &str) {
    println!("{line}");
}
