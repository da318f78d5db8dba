//! What can go wrong, by what a caller would do about it.

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server does not know a script by its digest.
    #[error("the server does not know this script")]
    Noscript,
    /// A key holds another type.
    #[error("a key holds another type: {0}")]
    WrongType(String),
    /// The token is not accepted.
    #[error("the token is not accepted: {0}")]
    Auth(String),
    /// The database's commands of the day or month are used up.
    #[error("the database's quota is used up: {0}")]
    Quota(String),
    /// Any other refusal, in Redis' words.
    #[error("{0}")]
    Redis(String),
    /// No connection, or one that died.
    #[error("the connection failed")]
    Transport(#[source] reqwest::Error),
    /// No answer within the deadline.
    #[error("no answer within the deadline")]
    Timeout,
    /// An answer that is not one of Upstash's: HTML of a proxy, half a document, too much, or not the type asked for.
    #[error("the answer (status {status}) makes no sense: {problem}")]
    BadBody {
        /// HTTP status.
        status: u16,
        /// What is wrong with it; never its content.
        problem: String,
    },
}

impl Error {
    /// Whether the store could not be asked, as opposed to having refused.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Auth(_) | Self::Quota(_) | Self::Transport(_) | Self::Timeout | Self::BadBody { .. } => true,
            Self::Noscript | Self::WrongType(_) | Self::Redis(_) => false,
        }
    }

    /// Classes a refusal by its first word, which is all that Redis, Valkey and Upstash agree on.
    pub(crate) fn refused(message: String) -> Self {
        let of = |word: &str| message.starts_with(word);
        if of("NOSCRIPT") {
            Self::Noscript
        } else if of("WRONGTYPE") {
            Self::WrongType(message)
        } else if of("WRONGPASS") || of("NOAUTH") || of("NOPERM") || message.contains("Unauthorized") {
            Self::Auth(message)
        } else if of("ERR max ") && message.contains("limit exceeded") {
            Self::Quota(message)
        } else {
            Self::Redis(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart_by_their_first_word() {
        let check = |message: &str, expected: &str, unavailable: bool| {
            let error = Error::refused(message.to_owned());
            assert!(format!("{error:?}").starts_with(expected), "{error:?}");
            assert_eq!(error.is_unavailable(), unavailable, "{message}");
        };
        check("NOSCRIPT No matching script.", "Noscript", false);
        check("NOSCRIPT No matching script. Please use EVAL.", "Noscript", false);
        check("WRONGTYPE Operation against a key", "WrongType", false);
        check("WRONGPASS invalid or missing auth token", "Auth", true);
        check("ERR max daily request limit exceeded. Limit: 10000", "Quota", true);
        check("ERR max requests limit exceeded. Limit: 500000", "Quota", true);
        check("ERR syntax error", "Redis", false);
    }
}
