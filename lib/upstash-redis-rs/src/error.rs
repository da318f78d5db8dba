//! How a call fails. The variants are the cases that a caller branches on, not a list of causes.

use std::sync::Arc;

/// Why a command has no result.
///
/// Cloning is cheap, so one failed call can answer every caller that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server does not have the script. Commands of a [`Script`](crate::Script) recover by
    /// themselves, so only an EVALSHA written by hand returns this.
    #[error("the server does not have this script")]
    Noscript,
    /// The key holds a value of a type that the command does not support.
    #[error("the key holds a value of another type")]
    WrongType,
    /// The token is unknown, or may not run this command.
    #[error("the token was refused")]
    Auth,
    /// A limit of the plan is reached: requests, connections or storage.
    #[error("the plan's quota is used up")]
    Quota,
    /// Any other error of the server, with its message.
    #[error("the server refused the command: {0}")]
    Redis(String),
    /// The connection could not be made, or it broke before an answer. In the second case the command
    /// may have run.
    #[error("the store could not be reached")]
    Transport(#[source] Arc<reqwest::Error>),
    /// The deadline passed. The command may have run, or may still run.
    #[error("the store did not answer in time")]
    Timeout,
    /// The answer does not follow the protocol: HTML from a proxy, truncated JSON, a body over the
    /// limit, a server error, or a result of another type than the caller requested.
    #[error("not an answer of a Redis (HTTP status {status}): {detail}")]
    BadBody {
        /// The HTTP status of the answer.
        status: u16,
        /// The problem. Never quotes the body, which may hold stored values.
        detail: String,
    },
}

impl Error {
    /// Whether the store is unreachable, as opposed to rejecting this command.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Auth
            | Self::Quota
            | Self::Transport(_)
            | Self::Timeout
            | Self::BadBody { .. } => true,
            Self::Noscript | Self::WrongType | Self::Redis(_) => false,
        }
    }

    /// Classifies a message of the server by its prefix: Redis, Valkey and Upstash agree on the first
    /// word and on little after it.
    pub(crate) fn from_server(text: String) -> Self {
        const QUOTA: [&str; 6] = [
            "ERR max requests limit exceeded",
            "ERR max daily request limit exceeded",
            "ERR max commands per second",
            "ERR max concurrent connections exceeded",
            "ERR DB capacity quota exceeded",
            "OOM ",
        ];
        const AUTH: [&str; 3] = ["WRONGPASS", "NOAUTH", "NOPERM"];

        let starts_with = |prefix: &&str| text.starts_with(*prefix);
        if text.starts_with("NOSCRIPT") {
            Self::Noscript
        } else if text.starts_with("WRONGTYPE") {
            Self::WrongType
        } else if AUTH.iter().any(starts_with) {
            Self::Auth
        } else if QUOTA.iter().any(starts_with) {
            Self::Quota
        } else {
            Self::Redis(text)
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The client's connect timeout stays a transport error: nothing was sent, so it may be retried.
        if error.is_timeout() && !error.is_connect() {
            Self::Timeout
        } else {
            Self::Transport(Arc::new(error))
        }
    }
}

/// Why [`Redis::new`](crate::Redis::new) failed. No message repeats the URL or the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SetupError {
    /// The URL is not that of a REST endpoint.
    #[error("the REST URL must be http(s)://host, without credentials, query or fragment")]
    Url,
    /// The token is empty or cannot be sent in a header, for example because of a line break.
    #[error("the REST token is empty or has invalid characters")]
    Token,
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[track_caller]
    fn check(text: &str, expected: &str, unavailable: bool) {
        let error = Error::from_server(text.to_owned());
        assert_eq!(format!("{error:?}"), expected);
        assert_eq!(error.is_unavailable(), unavailable, "{text}");
    }

    #[test]
    fn messages_of_the_server_are_classified_by_their_prefix() {
        check(
            "NOSCRIPT No matching script. Please use EVAL.",
            "Noscript",
            false,
        );
        check("NOSCRIPT No matching script.", "Noscript", false);
        check(
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "WrongType",
            false,
        );
        check("WRONGPASS invalid or missing auth token", "Auth", true);
        check(
            "NOPERM this user has no permissions to run the 'set' command",
            "Auth",
            true,
        );
        check(
            "ERR max requests limit exceeded. Limit: 500000, Usage: 500001",
            "Quota",
            true,
        );
        check("ERR max daily request limit exceeded", "Quota", true);
        check("ERR DB capacity quota exceeded", "Quota", true);
        check(
            "ERR max request size exceeded",
            r#"Redis("ERR max request size exceeded")"#,
            false,
        );
        check(
            "ERR value NOSCRIPT is odd",
            r#"Redis("ERR value NOSCRIPT is odd")"#,
            false,
        );
    }
}
