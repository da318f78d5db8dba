//! What a call can end in. The variants are the cases a caller branches on, not a list of causes.

use std::sync::Arc;

/// Why a command has no result.
///
/// Cloning is cheap, so that one failed call can answer everybody who waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server does not hold the script. Commands made by [`Script`](crate::Script) recover by
    /// themselves, so this is seen only for an EVALSHA written by hand.
    #[error("the server does not hold this script")]
    Noscript,
    /// The key holds another type than the command works on.
    #[error("the key holds a value of another type")]
    WrongType,
    /// The token is unknown, or may not run this command.
    #[error("the token was refused")]
    Auth,
    /// The plan is used up: requests, connections or storage.
    #[error("the plan's quota is used up")]
    Quota,
    /// Any other error from the server, in its own words.
    #[error("the server refused the command: {0}")]
    Redis(String),
    /// No answer came: the connection could not be made, or it broke on the way. In the second case
    /// the command may have run.
    #[error("the store could not be reached")]
    Transport(#[source] Arc<reqwest::Error>),
    /// The deadline passed. The command may have run, or may still run.
    #[error("the store did not answer in time")]
    Timeout,
    /// What came back is not an answer of this protocol: HTML from a proxy, truncated JSON, a body
    /// over the cap, a server error, a result of another shape than the caller asked for.
    #[error("not an answer of a Redis (HTTP status {status}): {detail}")]
    BadBody {
        /// The HTTP status that came with it.
        status: u16,
        /// What was wrong. Never holds a part of the body, because stored values are in there.
        detail: String,
    },
}

impl Error {
    /// Whether the store cannot be asked at all, as opposed to having said no to this command.
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

    /// Sorts the server's words. Only prefixes are compared: Redis, Valkey and Upstash agree on the
    /// first word and on little after it.
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

/// Why [`Redis::new`](crate::Redis::new) refused. Neither message repeats what it was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SetupError {
    /// The URL is not one that a REST endpoint has.
    #[error("the REST URL must be http(s)://host, without credentials, query or fragment")]
    Url,
    /// The token is empty or cannot be sent in a header, for example because of a line break.
    #[error("the REST token is empty or has characters that no token has")]
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
    fn the_servers_words_are_sorted_by_their_beginning() {
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
