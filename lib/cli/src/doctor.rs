//! `iconoclash doctor`: what is wrong with the settings of the database, and what to do about it.

use sqlx::{Connection, Executor, PgConnection, Row, migrate::Migrate};

use crate::{
    direct::{self, Direct, OLDEST_SERVER},
    migrate::{MIGRATIONS, pending},
    pooled,
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Works, and should be known.
    Notice,
    /// Iconoclash does not work like this.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, and what to do next.
    pub text: String,
}

/// Looks at both URLs; nothing is changed.
pub async fn doctor(pooled_url: Option<&str>, direct_url: Option<&str>) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    let pooled = match pooled_url {
        Some(url) => look_at_pooled(url, &mut findings).await,
        None => {
            findings.failure("DATABASE_URL is not set: give the pooled URL that the functions use");
            None
        }
    };
    let direct = match direct_url {
        Some(url) => look_at_direct(url, &mut findings).await,
        None => {
            findings
                .failure("DATABASE_URL_UNPOOLED is not set: give the direct URL of Postgres, which migrations need");
            None
        }
    };
    if let (Some(pooled), Some(direct)) = (pooled, direct) {
        if pooled == direct {
            findings.fine("both URLs lead to the same database");
        } else {
            findings.failure(
                "the URLs lead to different databases: migrations would not reach the one that the functions use",
            );
        }
    }
    findings.0
}

/// Tells databases apart whatever their addresses: the name, and the moment the server started.
type Identity = (String, String);

async fn look_at_pooled(url: &str, findings: &mut Findings) -> Option<Identity> {
    let server = match pooled::server(url).await {
        Ok(server) => server,
        Err(cause) => {
            findings.failure(format!(
                "DATABASE_URL: {cause}. Check host, port, password and sslmode"
            ));
            return None;
        }
    };
    let version = server.version;
    if version < OLDEST_SERVER {
        findings.failure(format!(
            "DATABASE_URL: Postgres {version}; Iconoclash needs {OLDEST_SERVER} or later"
        ));
    } else {
        findings.fine(format!("DATABASE_URL: answers, Postgres {version}"));
    }
    if server.statement_timeout == "0" {
        findings.notice(format!(
            "DATABASE_URL: the role {} has no statement_timeout; `iconoclash migrate` sets it, and connections that \
             the pooler holds keep the old one until it reconnects",
            server.role
        ));
    }
    match kind(url).await {
        Ok(kind) => findings.found(kind),
        Err(cause) => findings.notice(format!(
            "DATABASE_URL: its pooler is of no known kind: {cause}"
        )),
    }
    Some((server.database, server.started_at))
}

/// What stands at the other end. A tracked statement has a name of the pooler's making; an unchanged name is Postgres'
/// or that of a pooler which loses statements, and those differ in whether startup options arrive.
async fn kind(url: &str) -> Result<Finding, direct::Error> {
    if Direct::connect(url).await.is_ok() {
        return Ok(Finding {
            verdict: Verdict::Notice,
            text: "DATABASE_URL: no pooler. Good for development; in production every instance of a function would \
                   hold server connections of its own, so give the pooled URL"
                .to_owned(),
        });
    }
    let mut connection = PgConnection::connect_with(&direct::options(url)?).await?;
    let mut transaction = connection.begin().await?;
    // In a transaction even a pooler that loses statements keeps them long enough to be asked.
    let prepared = transaction
        .prepare(sqlx::SqlSafeStr::into_sql_str("select 1"))
        .await;
    let names = sqlx::raw_sql("select name from pg_prepared_statements")
        .fetch_all(&mut *transaction)
        .await;
    drop(transaction);
    prepared?;
    let tracked = names?.iter().any(|row| {
        row.try_get::<String, _>("name")
            .is_ok_and(|name| name.starts_with("PGBOUNCER_"))
    });
    let text = if tracked {
        "DATABASE_URL: a pooler that tracks named statements"
    } else {
        "DATABASE_URL: a pooler that does not track named statements; Iconoclash uses none, other programs may"
    };
    Ok(Finding {
        verdict: Verdict::Fine,
        text: text.to_owned(),
    })
}

async fn look_at_direct(url: &str, findings: &mut Findings) -> Option<Identity> {
    let mut direct = match Direct::connect(url).await {
        Ok(direct) => direct,
        Err(cause) => {
            findings.failure(cause.to_string());
            return None;
        }
    };
    findings.fine(format!(
        "DATABASE_URL_UNPOOLED: direct, Postgres {}",
        direct.version
    ));
    match look_at_schema(&mut direct.connection).await {
        Ok(finding) => findings.found(finding),
        Err(cause) => findings.failure(cause.to_string()),
    }
    identity(&mut direct.connection)
        .await
        .inspect_err(|cause| findings.failure(format!("DATABASE_URL_UNPOOLED: {cause}")))
        .ok()
}

async fn look_at_schema(connection: &mut PgConnection) -> Result<Finding, direct::Error> {
    let migrated: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(&*MIGRATIONS.table_name)
        .fetch_one(&mut *connection)
        .await?;
    let missing: Vec<_> = if migrated {
        if let Some(version) = connection.dirty_version(&MIGRATIONS.table_name).await? {
            return Err(direct::Error::History(format!(
                "migration {version} stopped half-way: repair what it left, then delete its row in {}",
                MIGRATIONS.table_name
            )));
        }
        pending(connection).await?
    } else {
        MIGRATIONS.iter().collect()
    };
    Ok(if missing.is_empty() {
        Finding {
            verdict: Verdict::Fine,
            text: "schema: up to date".to_owned(),
        }
    } else {
        let versions: Vec<_> = missing
            .iter()
            .map(|migration| migration.version.to_string())
            .collect();
        Finding {
            verdict: Verdict::Failure,
            text: format!(
                "schema: lacks {}; run `iconoclash migrate`",
                versions.join(", ")
            ),
        }
    })
}

async fn identity(connection: &mut PgConnection) -> Result<Identity, sqlx::Error> {
    sqlx::query_as("select current_database()::text, pg_postmaster_start_time()::text")
        .fetch_one(connection)
        .await
}

struct Findings(Vec<Finding>);

impl Findings {
    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    fn fine(&mut self, text: impl Into<String>) {
        self.add(Verdict::Fine, text);
    }

    fn notice(&mut self, text: impl Into<String>) {
        self.add(Verdict::Notice, text);
    }

    fn failure(&mut self, text: impl Into<String>) {
        self.add(Verdict::Failure, text);
    }

    fn add(&mut self, verdict: Verdict, text: impl Into<String>) {
        let text = text.into();
        self.found(Finding { verdict, text });
    }
}
