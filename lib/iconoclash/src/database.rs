//! Turns an error of Postgres into the outcome of a request.

use crate::http::error::{Error, Result};

impl From<pooled_postgres::Error> for Error {
    fn from(error: pooled_postgres::Error) -> Self {
        match error {
            pooled_postgres::Error::Unavailable(_) | pooled_postgres::Error::Deadline => {
                Self::unavailable(error)
            }
            _ => Self::internal(error),
        }
    }
}

/// Maps the refusal of a named constraint to an outcome.
pub(crate) trait OnConstraint<T> {
    /// Returns `error` where the constraint `name` refused the statement.
    fn on_constraint(self, name: &str, error: Error) -> Result<T>;
}

impl<T> OnConstraint<T> for std::result::Result<T, pooled_postgres::Error> {
    fn on_constraint(self, name: &str, error: Error) -> Result<T> {
        self.map_err(|refused| match refused.constraint() == Some(name) {
            true => error,
            false => refused.into(),
        })
    }
}
