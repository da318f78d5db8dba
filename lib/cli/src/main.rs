//! The operators' tool.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use iconoclash::app::App;
use iconoclash_cli::{
    billing,
    budgets::{self, Dollars},
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
    /// Show the spending limits and what is spent of them, or set one
    ///
    /// Needs DATABASE_URL. With UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN a new limit holds at once, else
    /// within a minute. Days and months are UTC.
    Budgets {
        #[command(subcommand)]
        action: Option<Budgets>,
    },
    /// Look after subscriptions
    #[command(subcommand)]
    Billing(Billing),
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

#[derive(Subcommand)]
enum Budgets {
    /// Set one limit; every instance follows with its next message
    Set {
        /// guest, free or pro: of one user a day; day or month: of everybody together
        #[arg(value_parser = iconoclash::spending::budgets::SCOPES)]
        scope: String,
        /// In dollars, such as 0.05 or 1500; 0 stops all spending of the scope
        dollars: Dollars,
    },
}

#[derive(Subcommand)]
enum Billing {
    /// Ask Stripe about one customer and write what it answers
    ///
    /// For a user whose plan is not what Stripe says: fetches all of the customer's subscriptions, writes them and the
    /// plan that follows, and prints what changed. Needs DATABASE_URL and STRIPE_SECRET_KEY, and
    /// UPSTASH_REDIS_REST_URL with its token to drop what is cached. Safe to run at any time and twice. The cron does
    /// the same by itself for customers of whom nothing was heard for a day.
    #[command(arg_required_else_help = true)]
    Sync {
        /// The customer's id at Stripe, as in users.stripe_customer_id
        #[arg(long, value_name = "cus_…")]
        customer: String,
    },
}

#[derive(Args)]
struct Database {
    /// The pooled URL, which the functions use
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// The direct URL, which migrations use
    #[arg(
        long,
        env = "DATABASE_URL_UNPOOLED",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url_unpooled: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Migrate { database } => migrate(database).await,
        Command::Doctor { database } => diagnose(database).await,
        Command::Budgets { action } => budgets(action).await,
        Command::Billing(Billing::Sync { customer }) => sync(&customer).await,
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
    match findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Failure)
    {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

async fn budgets(action: Option<Budgets>) -> ExitCode {
    let app = App::from_env();
    let told = match action {
        None => budgets::show(&app).await,
        Some(Budgets::Set { scope, dollars }) => budgets::set(&app, &scope, dollars)
            .await
            .map(|line| vec![line]),
    };
    match told {
        Ok(lines) => {
            lines.iter().for_each(|line| say(line));
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn sync(customer: &str) -> ExitCode {
    match billing::sync(&App::from_env(), customer, &mut |line| say(&line)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
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
