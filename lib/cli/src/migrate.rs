//! `iconoclash migrate`: applies migrations, writes icons and sets the timeouts of the functions' role, under one lock.

use std::{collections::HashMap, fmt::Display, future::Future, pin::pin, time::Duration};

use sqlx::{
    AssertSqlSafe, Executor, PgConnection,
    migrate::{Migrate, Migration, Migrator},
};
use tokio::time::{Instant, interval_at};

use crate::{
    direct::{Direct, Error},
    icons, pooled,
};

pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Set for the role, because behind a transaction-mode pooler a session's settings are lost or reach other clients.
const TIMEOUTS: [(&str, &str); 3] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "3s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// Receives progress, line by line.
pub(crate) type Say<'a> = dyn FnMut(String) + Send + 'a;

/// Brings the database at the direct URL up to this release. Safe to run twice and several times at once.
///
/// The functions use `pooled_url`; its role gets the timeouts.
pub async fn migrate(
    direct_url: &str,
    pooled_url: Option<&str>,
    say: &mut Say<'_>,
) -> Result<(), Error> {
    let Direct {
        mut connection,
        address,
        version,
    } = Direct::connect(direct_url).await?;
    say(format!("connected to {address}, Postgres {version}"));

    with_progress(say, "waiting for another migration", connection.lock()).await?;
    apply(&mut connection, say).await?;

    let icons = icons::seed(&mut connection).await?;
    say(format!(
        "icons: {} added, {} changed, {} retired",
        icons.added, icons.changed, icons.retired
    ));

    match pooled_url {
        Some(url) => set_timeouts(&mut connection, url, say).await?,
        None => say("timeouts: skipped, DATABASE_URL is not set".to_owned()),
    }

    connection.unlock().await?;
    Ok(())
}

async fn apply(connection: &mut PgConnection, say: &mut Say<'_>) -> Result<(), Error> {
    connection
        .ensure_migrations_table(&MIGRATIONS.table_name)
        .await?;

    let pending = pending(connection).await?;
    if pending.is_empty() {
        say("schema: up to date".to_owned());
    }

    for migration in pending {
        let Migration {
            version,
            description,
            ..
        } = migration;
        say(format!("applying {version} {description}"));

        let applying = connection.apply(&MIGRATIONS.table_name, migration);
        let took = with_progress(say, "applying", applying)
            .await
            .map_err(|cause| Error::Migration {
                version: *version,
                cause,
            })?;
        say(format!("applied {version} in {:.2} s", took.as_secs_f64()));
    }
    Ok(())
}

/// The migrations that the database lacks, in order. Fails if it has a migration that this release does not have.
pub(crate) async fn pending(
    connection: &mut PgConnection,
) -> Result<Vec<&'static Migration>, Error> {
    let applied: HashMap<_, _> = connection
        .list_applied_migrations(&MIGRATIONS.table_name)
        .await?
        .into_iter()
        .map(|applied| (applied.version, applied.checksum))
        .collect();

    let mut versions = applied.keys();
    if let Some(unknown) = versions.find(|version| !MIGRATIONS.version_exists(**version)) {
        return Err(Error::History(format!(
            "the database has migration {unknown}, which this release does not know: use the later \
             release that added it"
        )));
    }

    let mut pending = Vec::new();
    for migration in MIGRATIONS.iter() {
        match applied.get(&migration.version) {
            None => pending.push(migration),
            Some(checksum) if *checksum == migration.checksum => {}
            Some(_) => {
                return Err(Error::History(format!(
                    "migration {} was edited after it was applied: restore its file, and put the \
                     change in a new one",
                    migration.version
                )));
            }
        }
    }
    Ok(pending)
}

async fn set_timeouts(
    connection: &mut PgConnection,
    pooled_url: &str,
    say: &mut Say<'_>,
) -> Result<(), Error> {
    // The user of a pooler's URL is not always the role at the server, so ask the server.
    let server = match pooled::describe_server(pooled_url).await {
        Ok(server) => server,
        Err(cause) => {
            say(format!(
                "timeouts: skipped, DATABASE_URL does not answer: {cause}. Check it and run \
                 `iconoclash migrate` again"
            ));
            return Ok(());
        }
    };

    let role = quoted(&server.role);
    let database = quoted(&server.database);
    for (name, value) in TIMEOUTS {
        // Only for this database, because the role may also use other databases.
        let statement = format!("alter role {role} in database {database} set {name} = '{value}'");
        match connection.execute(AssertSqlSafe(statement.clone())).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some("42501") => {
                say(format!(
                    "timeouts: skipped, {refusal}. Ask an administrator of the database to run: \
                     {statement}"
                ));
                return Ok(());
            }
            Err(cause) => return Err(cause.into()),
        }
    }

    let timeouts = TIMEOUTS.map(|(name, value)| format!("{name} {value}"));
    say(format!(
        "timeouts of {role} for new server connections: {}",
        timeouts.join(", ")
    ));
    Ok(())
}

fn quoted(identifier: &str) -> impl Display {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Runs `work` and reports every few seconds that it still runs.
async fn with_progress<T>(say: &mut Say<'_>, what: &str, work: impl Future<Output = T>) -> T {
    let started_at = Instant::now();
    let mut ticks = interval_at(started_at + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    let mut work = pin!(work);

    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = ticks.tick() => {
                let seconds = started_at.elapsed().as_secs();
                say(format!("still {what} after {seconds} s"));
            }
        }
    }
}
