//! Errors of statements, by what a caller can do about them.

use std::{error::Error as StdError, io};

use tokio_postgres::error::{Severity, SqlState};

type Cause = Box<dyn StdError + Send + Sync>;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection was available, the one in use died, or the server accepts no work: try again later.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Cause),
    /// The statement exceeded its deadline or the role's timeout, and was cancelled.
    #[error("the statement was cancelled at its deadline")]
    Deadline,
    /// A named constraint or unique index refused the write.
    #[error("refused by the constraint {name}")]
    Constraint {
        /// The constraint's name in the schema.
        name: String,
        /// The server's error, with the table and the offending values.
        source: tokio_postgres::Error,
    },
    /// A defect of the caller: SQL that the server rejects, a value that does not decode, a wrong number of rows.
    #[error(transparent)]
    Other(Cause),
}

impl Error {
    /// The name of the constraint or unique index that refused the write.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Constraint { name, .. } => Some(name),
            _ => None,
        }
    }

    pub(super) fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable(cause.into())
    }

    pub(super) fn other(cause: impl Into<Cause>) -> Self {
        Self::Other(cause.into())
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if connection_lost(&error) {
            return Self::unavailable(error);
        }
        let Some(answer) = error.as_db_error() else {
            return Self::other(error);
        };

        match (refusal(answer.code().code()), answer.constraint()) {
            (Refusal::Unavailable, _) => Self::unavailable(error),
            (Refusal::Deadline, _) => Self::Deadline,
            (Refusal::Constraint, Some(name)) => Self::Constraint {
                name: name.to_owned(),
                source: error,
            },
            _ => Self::other(error),
        }
    }
}

/// Whether the statement's connection died, so that another one may answer.
pub(super) fn connection_lost(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        // Poolers omit the untranslated severity. The translated one is English in their case.
        Some(answer) => match answer.parsed_severity() {
            Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
            None => matches!(answer.severity(), "FATAL" | "PANIC"),
        },
        None => error.is_closed() || error.source().is_some_and(|cause| cause.is::<io::Error>()),
    }
}

/// Whether the server ended the transaction in favour of another one, and nothing was written.
pub(super) fn rolled_back(error: &tokio_postgres::Error) -> bool {
    // serialization_failure and deadlock_detected. 40003, statement_completion_unknown, is not one of them.
    let code = error.code().map(SqlState::code);
    matches!(code, Some("40001" | "40P01"))
}

/// The kinds of SQLSTATE that callers handle differently.
#[derive(Debug, PartialEq)]
enum Refusal {
    Unavailable,
    Deadline,
    Constraint,
    Other,
}

fn refusal(sqlstate: &str) -> Refusal {
    match sqlstate {
        // A protocol violation is a defect of the caller; the rest of class 08 is a failure of the connection.
        "08P01" => Refusal::Other,
        // query_canceled, also by statement_timeout, and lock_not_available by lock_timeout.
        "57014" | "55P03" => Refusal::Deadline,
        // read_only_sql_transaction: the primary became a replica, and the new primary will accept writes.
        "25006" => Refusal::Unavailable,
        _ if sqlstate.starts_with("57P") => Refusal::Unavailable,
        _ => match sqlstate.get(..2) {
            Some("08" | "53" | "58") => Refusal::Unavailable,
            Some("23") => Refusal::Constraint,
            _ => Refusal::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Refusal, refusal};

    #[test]
    fn sqlstates_are_grouped_by_what_to_do_about_them() {
        for (sqlstate, expected) in [
            ("57P01", Refusal::Unavailable),
            ("57P03", Refusal::Unavailable),
            ("53300", Refusal::Unavailable),
            ("08006", Refusal::Unavailable),
            ("25006", Refusal::Unavailable),
            ("57014", Refusal::Deadline),
            ("55P03", Refusal::Deadline),
            ("23505", Refusal::Constraint),
            ("23503", Refusal::Constraint),
            ("08P01", Refusal::Other),
            ("42601", Refusal::Other),
            ("", Refusal::Other),
        ] {
            assert_eq!(refusal(sqlstate), expected, "{sqlstate}");
        }
    }
}
