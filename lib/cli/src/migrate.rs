//! `iconoclash migrate`: the schema, the icons, and the timeouts of the functions' role, under one lock.

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

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Set for the role, because a transaction-mode pooler forgets or spreads what a session sets.
const TIMEOUTS: [(&str, &str); 3] = [
    ("statement_timeout", "5s"),
    ("lock_timeout", "3s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// Where progress goes, line by line.
pub(crate) type Say<'a> = dyn FnMut(String) + Send + 'a;

/// Brings the database at the direct URL up to this release; safe to run twice and by several at once.
///
/// `pooled_url` is what the functions use: its role gets the timeouts.
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
    let seeded = icons::seed(&mut connection).await?;
    say(format!(
        "icons: {} added, {} changed, {} retired",
        seeded.added, seeded.changed, seeded.retired
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

/// The migrations that the database lacks, in order; an error if it has others than this release.
pub(crate) async fn pending(
    connection: &mut PgConnection,
) -> Result<Vec<&'static Migration>, Error> {
    let applied: HashMap<_, _> = connection
        .list_applied_migrations(&MIGRATIONS.table_name)
        .await?
        .into_iter()
        .map(|applied| (applied.version, applied.checksum))
        .collect();
    if let Some(unknown) = applied
        .keys()
        .find(|version| !MIGRATIONS.version_exists(**version))
    {
        return Err(Error::History(format!(
            "the database has migration {unknown}, which this release does not know: use the later release that \
             brought it"
        )));
    }
    let mut pending = Vec::new();
    for migration in MIGRATIONS.iter() {
        match applied.get(&migration.version) {
            None => pending.push(migration),
            Some(checksum) if *checksum == migration.checksum => {}
            Some(_) => {
                return Err(Error::History(format!(
                    "migration {} was edited after it was applied: restore the file and write a new one",
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
    // A pooler's user is not always the role behind it, so the server is asked.
    let server = match pooled::server(pooled_url).await {
        Ok(server) => server,
        Err(cause) => {
            say(format!(
                "timeouts: skipped, DATABASE_URL does not answer: {cause}"
            ));
            return Ok(());
        }
    };
    let (role, database) = (quoted(&server.role), quoted(&server.database));
    for (name, value) in TIMEOUTS {
        // For this database only: the role may well serve others.
        let statement = format!("alter role {role} in database {database} set {name} = '{value}'");
        match connection.execute(AssertSqlSafe(statement.clone())).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(refusal)) if refusal.code().as_deref() == Some("42501") => {
                say(format!(
                    "timeouts: skipped, {refusal}; have somebody who may run: {statement}"
                ));
                return Ok(());
            }
            Err(cause) => return Err(cause.into()),
        }
    }
    let set: Vec<_> = TIMEOUTS
        .map(|(name, value)| format!("{name} {value}"))
        .into();
    say(format!(
        "timeouts of {role} for new server connections: {}",
        set.join(", ")
    ));
    Ok(())
}

fn quoted(identifier: &str) -> impl Display {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Says every few seconds that the work is still going on.
async fn with_progress<T>(say: &mut Say<'_>, what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let mut ticks = interval_at(begun + PROGRESS_EVERY, PROGRESS_EVERY);
    let mut work = pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = ticks.tick() => say(format!("still {what} after {} s", begun.elapsed().as_secs())),
        }
    }
}
