//! The operators' tool.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use iconoclash::app::App;
use iconoclash_cli::{
    billing,
    budgets::{self, Dollars},
    doctor::{Severity, doctor},
    keys,
};

/// Operates a deployment of Iconoclash
///
/// Each command names the environment variables that it needs; they are the same as those of the functions.
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
    /// Run it before you deploy the functions of the same release. It is safe to run it twice and several times at once.
    ///
    /// Needs DATABASE_URL_UNPOOLED, the direct URL of Postgres: a migration's lock belongs to a session, which a
    /// transaction-mode pooler does not have. With DATABASE_URL, the role of the functions gets its timeouts.
    Migrate {
        #[command(flatten)]
        database: Database,
    },
    /// Check the database URLs and the schema, and say how to repair each fault
    ///
    /// Changes nothing. Needs DATABASE_URL and DATABASE_URL_UNPOOLED. Exits with 1 if Iconoclash does not work with these
    /// settings.
    Doctor {
        #[command(flatten)]
        database: Database,
    },
    /// Show the spending limits and the spending so far, or set a limit
    ///
    /// Needs DATABASE_URL. With UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN a new limit applies to the next
    /// message, otherwise within a minute. Days and months are UTC.
    Budgets {
        #[command(subcommand)]
        action: Option<Budgets>,
    },
    /// Repair subscriptions
    #[command(subcommand)]
    Billing(Billing),
    /// Add, test, rotate and revoke the Claude API keys in the database
    ///
    /// Needs DATABASE_URL and CREDENTIALS_KEY, for `list` and `test` also UPSTASH_REDIS_REST_URL and
    /// UPSTASH_REDIS_REST_TOKEN. Every instance uses a change within a minute, without a deployment.
    ///
    /// To rotate a key:
    ///   1. create the new key in the provider's console
    ///   2. `keys add` it under a new label, and `keys test` it
    ///   3. `keys drain` the old key, and wait five minutes for its last replies to end
    ///   4. `keys revoke` the old key, and disable it in the console
    #[command(verbatim_doc_comment)]
    Keys {
        #[command(subcommand)]
        task: keys::Task,
    },
}

#[derive(Subcommand)]
enum Budgets {
    /// Set a limit, for every instance
    Set {
        /// guest, free or pro: a day for one user (guests: for one network); day or month: for all users together
        #[arg(value_parser = iconoclash::spending::budgets::SCOPES)]
        scope: String,
        /// The limit in dollars, such as 0.05 or 1500; 0 stops all spending of the scope
        dollars: Dollars,
    },
}

#[derive(Subcommand)]
enum Billing {
    /// Copy one customer's subscriptions from Stripe
    ///
    /// For a user whose plan differs from Stripe. Fetches all subscriptions of the customer, stores them with the plan
    /// that they grant, and prints the changes. It is safe to run it at any time and twice. The cron does the same every
    /// day for customers without news from Stripe.
    ///
    /// Needs DATABASE_URL and STRIPE_SECRET_KEY. With UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN the change
    /// applies at once, because cached sessions are dropped.
    #[command(arg_required_else_help = true)]
    Sync {
        /// The customer's id at Stripe, stored in users.stripe_customer_id
        #[arg(long, value_name = "cus_…")]
        customer: String,
    },
}

#[derive(Args)]
struct Database {
    /// The pooled URL of the database, which the functions use
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// The direct URL of the database, which migrations use
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
            "DATABASE_URL_UNPOOLED is not set: set it to the direct URL of Postgres. DATABASE_URL \
             does not serve, because a pooler keeps a migration's lock on a server connection, and \
             every later migration waits for it."
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
        let mark = match finding.severity {
            Severity::Fine => "ok    ",
            Severity::Notice => "notice",
            Severity::Failure => "FAIL  ",
        };
        say(&format!("{mark} {}", finding.text));
    }

    let severities = findings.iter().map(|finding| finding.severity);
    match severities.max() {
        Some(Severity::Failure) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

async fn budgets(action: Option<Budgets>) -> ExitCode {
    let app = App::from_env();
    let outcome = match action {
        None => budgets::show(&app).await,
        Some(Budgets::Set { scope, dollars }) => budgets::set(&app, &scope, dollars)
            .await
            .map(|line| vec![line]),
    };

    match outcome {
        Ok(lines) => {
            lines.iter().for_each(|line| say(line));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
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

/// An empty variable counts as unset.
fn set(variable: &Option<String>) -> Option<&str> {
    variable.as_deref().filter(|value| !value.is_empty())
}

#[expect(clippy::print_stdout, reason = "a command prints its result")]
fn say(line: &str) {
    println!("{line}");
}
