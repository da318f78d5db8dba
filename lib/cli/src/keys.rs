//! `iconoclash keys`: the Claude API keys that are kept in the database. A secret comes from standard input and never
//! leaves again: lists show its end.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use secrecy::SecretString;

use iconoclash::{
    api_keys::store::{self, Listed, NewKey},
    app::App,
    http::{error::Error as Library, request_log},
};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use time::{OffsetDateTime, macros::format_description};

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Store a key; the secret is read from standard input, or asked for
    ///
    /// It gets calls within a minute. A stored key takes the place of the one with the same label in ANTHROPIC_API_KEYS.
    Add(Add),
    /// Show every key: state, end of the secret, health, last error
    ///
    /// A key that `cools` is left alone until then, for its own sake or its organisation's; `keys test` ends that early
    /// where the provider answers.
    List,
    /// Give a key no new calls; those under way end by themselves
    Drain(Label),
    /// Give a drained key calls again
    Resume(Label),
    /// Erase a key; calls under way end by themselves
    ///
    /// This cannot be undone. It does not disable the key at the provider: do that in its console.
    Revoke(Label),
    /// Ask Claude for one token with a key, which costs a few micro-dollars and is not in the ledger
    ///
    /// Where that is answered, every instance uses the key, and its organisation, again. Works for keys of
    /// ANTHROPIC_API_KEYS, too. Exits with 1 if the key does not work.
    Test(Label),
    /// Seal every key with the first key of CREDENTIALS_KEY, so that the second can be removed
    ///
    /// To rotate CREDENTIALS_KEY: set it to `new,old` and deploy, run this, set it to `new` and deploy.
    Reseal,
}

/// A key to store.
#[derive(Debug, Args)]
pub struct Add {
    /// What logs and the ledger will call it, such as main-2026-11
    label: String,
    /// Whose limits it shares with other keys; without one they are its own
    #[arg(long, value_name = "NAME")]
    organisation: Option<String>,
    /// Its share of the conversations against other keys, 1 to 100
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    weight: u32,
}

/// Which key.
#[derive(Debug, Args)]
pub struct Label {
    /// As `keys list` shows it
    label: String,
}

/// Why it was not done; the text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the library says.
    #[error("{0}")]
    Failed(String),
    /// There is no such key.
    #[error(
        "there is no stored key with the label {0}; `iconoclash keys list` shows those that there are"
    )]
    Unknown(String),
    /// The provider does not answer to this key.
    #[error("{0} does not work: {1}")]
    Bad(String, String),
    /// No secret was given.
    #[error("no secret was read: {0}")]
    Secret(#[from] io::Error),
    /// Some keys cannot be read any more.
    #[error(
        "no key of CREDENTIALS_KEY opens {0}: put the one that sealed them back, or revoke them and add them anew"
    )]
    Unreadable(String),
}

impl Error {
    fn of(label: &str, error: iconoclash::http::error::Error) -> Self {
        match error {
            Library::NotFound => Self::Unknown(label.to_owned()),
            Library::Invalid { field, message } => Self::Failed(format!("the {field} {message}")),
            other => Self::Failed(other.cause()),
        }
    }
}

/// Does it, and tells of it line by line.
pub async fn run(
    app: &App,
    task: Task,
    secret: &dyn Fn() -> io::Result<SecretString>,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Error> {
    match task {
        Task::Add(Add {
            label,
            organisation,
            weight,
        }) => {
            let new = NewKey {
                label: label.clone(),
                organisation,
                weight,
                secret: secret()?,
            };
            store::add(app, &new)
                .await
                .map_err(|error| Error::of(&label, error))?;
            say(format!(
                "{label} is stored and gets calls within a minute; `iconoclash keys test {label}` tries it now"
            ));
        }
        Task::List => {
            let keys = store::list(app)
                .await
                .map_err(|error| Error::of("", error))?;
            table(&keys).into_iter().for_each(say);
        }
        Task::Drain(Label { label }) => {
            store::drain(app, &label)
                .await
                .map_err(|error| Error::of(&label, error))?;
            say(format!(
                "{label} gets no new calls within a minute; its last replies end within five"
            ));
        }
        Task::Resume(Label { label }) => {
            store::resume(app, &label)
                .await
                .map_err(|error| Error::of(&label, error))?;
            say(format!("{label} gets calls again within a minute"));
        }
        Task::Revoke(Label { label }) => {
            store::revoke(app, &label)
                .await
                .map_err(|error| Error::of(&label, error))?;
            say(format!(
                "{label} is erased and gets no new calls within a minute; disable it in the console, too"
            ));
        }
        Task::Test(Label { label }) => {
            match store::test(app, &label)
                .await
                .map_err(|error| Error::of(&label, error))?
            {
                Ok(()) => say(format!("{label} works")),
                Err(error) => return Err(Error::Bad(label, request_log::error_chain(&error))),
            }
        }
        Task::Reseal => {
            let done = store::reseal(app)
                .await
                .map_err(|error| Error::of("", error))?;
            say(format!(
                "{} sealed anew, {} already were",
                done.changed, done.current
            ));
            if !done.unreadable.is_empty() {
                return Err(Error::Unreadable(done.unreadable.join(", ")));
            }
        }
    }
    Ok(())
}

/// Reads a secret: a line of a pipe, or one that is typed and not shown.
pub fn from_terminal() -> io::Result<SecretString> {
    let stdin = io::stdin();
    let mut line = String::new();
    if stdin.is_terminal() {
        let shown = tcgetattr(&stdin)?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        eprint!("Secret (is not shown): ");
        io::stderr().flush()?;
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
        let read = stdin.lock().read_line(&mut line);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown)?;
        eprintln!();
        read?;
    } else {
        stdin.lock().read_line(&mut line)?;
    }
    match line.trim() {
        "" => Err(io::Error::other(
            "give it on standard input, as in `iconoclash keys add main < file`",
        )),
        secret => Ok(SecretString::from(secret)),
    }
}

/// Columns as wide as what they hold.
fn table(keys: &[Listed]) -> Vec<String> {
    let head = [
        "LABEL",
        "ORGANISATION",
        "WEIGHT",
        "STATE",
        "ENDS IN",
        "HEALTH",
        "LAST REPLY",
        "LAST ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(keys.iter().map(row));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |row: &[String; 8]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(key: &Listed) -> [String; 8] {
    let health = match (key.state.as_str(), key.cooling_until) {
        ("revoked", _) => "-".to_owned(),
        _ if !key.opens => "CANNOT BE OPENED".to_owned(),
        (_, Some(until)) => format!("cools until {}", minute(until)),
        _ => "ok".to_owned(),
    };
    let error = match (&key.last_error, key.last_error_at) {
        (Some(error), Some(at)) => format!("{} {error}", minute(at)),
        _ => "-".to_owned(),
    };
    [
        key.label.clone(),
        key.organisation
            .clone()
            .unwrap_or_else(|| "(its own)".to_owned()),
        key.weight.to_string(),
        key.state.clone(),
        if key.hint.is_empty() {
            "-".to_owned()
        } else {
            format!("…{}", key.hint)
        },
        health,
        key.last_ok_at.map_or_else(|| "-".to_owned(), minute),
        error,
    ]
}

fn minute(at: OffsetDateTime) -> String {
    at.format(format_description!("[year]-[month]-[day] [hour]:[minute]Z"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_list_shows_health_and_the_last_error() {
        let now = datetime!(2026-11-24 12:00:30 UTC);
        let main = Listed {
            label: "main".to_owned(),
            organisation: Some("acme".to_owned()),
            weight: 2,
            state: "active".to_owned(),
            hint: "WXYZ".to_owned(),
            opens: true,
            cooling_until: Some(now + time::Duration::MINUTE),
            last_ok_at: Some(now),
            last_error: Some("rate limited".to_owned()),
            last_error_at: Some(now),
            created_at: now,
        };
        let old = Listed {
            label: "old".to_owned(),
            organisation: None,
            state: "revoked".to_owned(),
            ..main.clone()
        };
        let lines = table(&[main, old]);
        assert!(
            lines[0].starts_with("LABEL  ORGANISATION  WEIGHT  STATE    ENDS IN  HEALTH"),
            "{}",
            lines[0]
        );
        let expected = "main   acme          2       active   …WXYZ    cools until 2026-11-24 12:01Z  2026-11-24 12:00Z  \
                        2026-11-24 12:00Z rate limited";
        assert_eq!(lines[1], expected);
        assert!(
            lines[2].starts_with("old    (its own)     2       revoked  …WXYZ    -  "),
            "{}",
            lines[2]
        );
    }
}
