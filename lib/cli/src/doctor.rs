//! `iconoclash doctor`: checks both database URLs and the schema, and says how to repair each fault.

use sqlx::{Connection, Executor, PgConnection, Row, migrate::Migrate};

use crate::{
    direct::{self, Direct, OLDEST_SERVER},
    migrate::{MIGRATIONS, pending},
    pooled,
};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Correct.
    Fine,
    /// Works, but the operator should know of it.
    Notice,
    /// Iconoclash does not work with it.
    Failure,
}

/// The result of one check.
#[derive(Debug)]
pub struct Finding {
    /// How severe it is.
    pub severity: Severity,
    /// The fact, and what to do about it.
    pub text: String,
}

impl Finding {
    fn fine(text: impl Into<String>) -> Self {
        Self::new(Severity::Fine, text)
    }

    fn notice(text: impl Into<String>) -> Self {
        Self::new(Severity::Notice, text)
    }

    fn failure(text: impl Into<String>) -> Self {
        Self::new(Severity::Failure, text)
    }

    fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self {
            severity,
            text: text.into(),
        }
    }
}

/// Checks both URLs. Changes nothing.
pub async fn doctor(pooled_url: Option<&str>, direct_url: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pooled = match pooled_url {
        Some(url) => check_pooled(url, &mut findings).await,
        None => {
            findings.push(Finding::failure(
                "DATABASE_URL is not set: set it to the pooled URL that the functions use",
            ));
            None
        }
    };
    let direct = match direct_url {
        Some(url) => check_direct(url, &mut findings).await,
        None => {
            findings.push(Finding::failure(
                "DATABASE_URL_UNPOOLED is not set: set it to the direct URL of Postgres, which \
                 migrations need",
            ));
            None
        }
    };

    if let (Some(pooled), Some(direct)) = (pooled, direct) {
        findings.push(match pooled == direct {
            true => Finding::fine("both URLs lead to the same database"),
            false => Finding::failure(
                "the URLs lead to different databases, so migrations do not reach the one that the \
                 functions use: set both to the same database",
            ),
        });
    }
    findings
}

/// Identifies a database behind any address: its name, and the start time of its server.
type Identity = (String, String);

async fn check_pooled(url: &str, findings: &mut Vec<Finding>) -> Option<Identity> {
    let server = match pooled::describe_server(url).await {
        Ok(server) => server,
        Err(cause) => {
            findings.push(Finding::failure(format!(
                "DATABASE_URL: {cause}. Check host, port, password and sslmode"
            )));
            return None;
        }
    };

    let version = server.version;
    findings.push(match version >= OLDEST_SERVER {
        true => Finding::fine(format!("DATABASE_URL: answers, Postgres {version}")),
        false => Finding::failure(format!(
            "DATABASE_URL: Postgres {version} is too old: upgrade it to {OLDEST_SERVER} or later"
        )),
    });

    if server.statement_timeout == "0" {
        findings.push(Finding::notice(format!(
            "DATABASE_URL: the role {} has no statement_timeout: run `iconoclash migrate`, which \
             sets it for new server connections of the pooler",
            server.role
        )));
    }

    let pooler = identify_pooler(url).await.unwrap_or_else(|cause| {
        Finding::notice(format!(
            "DATABASE_URL: the kind of its pooler is unknown: {cause}"
        ))
    });
    findings.push(pooler);
    Some((server.database, server.started_at))
}

/// Finds out whether there is a pooler and whether it tracks named statements.
///
/// A pooler that tracks statements renames them. An unchanged name comes from Postgres itself or from a pooler that
/// loses statements. Only Postgres itself accepts the startup options of [`Direct`].
async fn identify_pooler(url: &str) -> Result<Finding, direct::Error> {
    if Direct::connect(url).await.is_ok() {
        return Ok(Finding::notice(
            "DATABASE_URL: no pooler. That is good for development. In production every instance \
             of a function would hold server connections of its own: set it to the pooled URL",
        ));
    }

    let mut connection = PgConnection::connect_with(&direct::options(url)?).await?;
    // Within a transaction, even a pooler that loses statements keeps the same server connection.
    let mut transaction = connection.begin().await?;
    let prepared = transaction
        .prepare(sqlx::SqlSafeStr::into_sql_str("select 1"))
        .await;
    let names = sqlx::raw_sql("select name from pg_prepared_statements")
        .fetch_all(&mut *transaction)
        .await;
    drop(transaction);
    prepared?;

    let tracks_statements = names?.iter().any(|row| {
        let name = row.try_get::<String, _>("name");
        name.is_ok_and(|name| name.starts_with("PGBOUNCER_"))
    });
    Ok(Finding::fine(match tracks_statements {
        true => "DATABASE_URL: a pooler that tracks named statements",
        false => {
            "DATABASE_URL: a pooler that does not track named statements. Iconoclash uses none, \
             but other programs may"
        }
    }))
}

async fn check_direct(url: &str, findings: &mut Vec<Finding>) -> Option<Identity> {
    let mut direct = match Direct::connect(url).await {
        Ok(direct) => direct,
        Err(cause) => {
            findings.push(Finding::failure(cause.to_string()));
            return None;
        }
    };
    let version = direct.version;
    findings.push(Finding::fine(format!(
        "DATABASE_URL_UNPOOLED: direct, Postgres {version}"
    )));

    let schema = check_schema(&mut direct.connection).await;
    findings.push(schema.unwrap_or_else(|cause| Finding::failure(cause.to_string())));

    match identity(&mut direct.connection).await {
        Ok(identity) => Some(identity),
        Err(cause) => {
            let text = format!("DATABASE_URL_UNPOOLED: {cause}");
            findings.push(Finding::failure(text));
            None
        }
    }
}

async fn check_schema(connection: &mut PgConnection) -> Result<Finding, direct::Error> {
    let table = &MIGRATIONS.table_name;
    let is_migrated: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(&**table)
        .fetch_one(&mut *connection)
        .await?;

    let missing: Vec<_> = if is_migrated {
        if let Some(version) = connection.dirty_version(table).await? {
            return Err(direct::Error::History(format!(
                "migration {version} stopped half-way: repair what it left behind, then delete its \
                 row in {table}"
            )));
        }
        pending(connection).await?
    } else {
        MIGRATIONS.iter().collect()
    };

    if missing.is_empty() {
        return Ok(Finding::fine("schema: up to date"));
    }
    let versions: Vec<_> = missing
        .iter()
        .map(|migration| migration.version.to_string())
        .collect();
    Ok(Finding::failure(format!(
        "schema: lacks {}: run `iconoclash migrate`",
        versions.join(", ")
    )))
}

async fn identity(connection: &mut PgConnection) -> Result<Identity, sqlx::Error> {
    sqlx::query_as("select current_database()::text, pg_postmaster_start_time()::text")
        .fetch_one(connection)
        .await
}
