//! `iconoclash keys`: the Claude API keys in the database. A secret is read from standard input; only its end is ever
//! shown.

use std::io::{self, BufRead, IsTerminal};

use clap::{Args, Subcommand};
use secrecy::SecretString;

use iconoclash::{
    api_keys::store::{self, KeyState, KeyTest, NewKey, StoredKey},
    app::App,
    http::{error::Error as Library, request_log},
};
use time::{OffsetDateTime, macros::format_description};

/// A task for the stored keys.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Store a key; the secret is read from standard input or a prompt
    ///
    /// It gets calls within a minute. A stored key replaces the one with the same label in ANTHROPIC_API_KEYS.
    Add(Add),
    /// Show every key: state, end of the secret, health, last error
    ///
    /// A key that `cools` gets no calls until then, because of an error of its own or of its organisation. `keys test` ends
    /// the cooldown early if the provider answers.
    List,
    /// Take a key out of rotation; running calls end by themselves
    Drain(Label),
    /// Put a drained key back into rotation
    Resume(Label),
    /// Erase a key; running calls end by themselves
    ///
    /// This cannot be undone. It does not disable the key at the provider; do that in the provider's console.
    Revoke(Label),
    /// Ask Claude for one token with a key; costs a few micro-dollars, which the ledger records
    ///
    /// If the provider answers, every instance uses the key and its organisation again. Also accepts keys of
    /// ANTHROPIC_API_KEYS. Exits with 1 if the key does not work.
    Test(Label),
    /// Seal every key with the first key of CREDENTIALS_KEY, so that the second can be removed
    ///
    /// To rotate CREDENTIALS_KEY: set it to `new,old` and deploy, run this, set it to `new` and deploy.
    Reseal,
}

/// A key to store.
#[derive(Debug, Args)]
pub struct Add {
    /// Its name in logs and in the ledger, such as main-2026-11
    label: String,
    /// The organisation whose limits it shares with other keys; without it, its limits are its own
    #[arg(long, value_name = "NAME")]
    organisation: Option<String>,
    /// Its share of the conversations, relative to the other keys, 1 to 100
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    weight: u32,
}

/// The label of a key.
#[derive(Debug, Args)]
pub struct Label {
    /// As `keys list` shows it
    label: String,
}

/// Why a task failed. The text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library's error.
    #[error("{0}")]
    Failed(String),
    /// No stored key has this label.
    #[error("no stored key has the label {0}; `iconoclash keys list` shows all labels")]
    Unknown(String),
    /// The provider did not answer.
    #[error("{0} does not work: {1}")]
    Bad(String, String),
    /// No secret was given.
    #[error("no secret was read: {0}")]
    Secret(#[from] io::Error),
    /// Some keys cannot be opened.
    #[error(
        "no key of CREDENTIALS_KEY opens {0}: restore the one that sealed them, \
         or revoke them and add them again"
    )]
    Unreadable(String),
}

impl Error {
    fn for_label(label: &str, error: Library) -> Self {
        match error {
            Library::NotFound => Self::Unknown(label.to_owned()),
            Library::Invalid { field, message } => Self::Failed(format!("the {field} {message}")),
            other => Self::from(other),
        }
    }
}

impl From<Library> for Error {
    fn from(error: Library) -> Self {
        Self::Failed(error.cause())
    }
}

/// Runs a task and reports line by line. `secret` reads the secret of a new key.
pub async fn run(
    app: &App,
    task: Task,
    secret: &dyn Fn() -> io::Result<SecretString>,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Error> {
    match task {
        Task::Add(new) => say(add(app, new, secret).await?),
        Task::List => table(&store::list(app).await?).into_iter().for_each(say),
        Task::Drain(Label { label }) => say(drain(app, &label).await?),
        Task::Resume(Label { label }) => say(resume(app, &label).await?),
        Task::Revoke(Label { label }) => say(revoke(app, &label).await?),
        Task::Test(Label { label }) => say(test(app, &label).await?),
        Task::Reseal => reseal(app, say).await?,
    }
    Ok(())
}

async fn add(
    app: &App,
    new: Add,
    secret: &dyn Fn() -> io::Result<SecretString>,
) -> Result<String, Error> {
    let new = NewKey {
        label: new.label,
        organisation: new.organisation,
        weight: new.weight,
        secret: secret()?,
    };
    let label = &new.label;

    store::add(app, &new)
        .await
        .map_err(|error| Error::for_label(label, error))?;
    Ok(format!(
        "{label} is stored and gets calls within a minute; \
         `iconoclash keys test {label}` tries it now"
    ))
}

async fn drain(app: &App, label: &str) -> Result<String, Error> {
    store::drain(app, label)
        .await
        .map_err(|error| Error::for_label(label, error))?;

    Ok(format!(
        "{label} gets no new calls within a minute; its last replies end within five"
    ))
}

async fn resume(app: &App, label: &str) -> Result<String, Error> {
    store::resume(app, label)
        .await
        .map_err(|error| Error::for_label(label, error))?;

    Ok(format!("{label} gets calls again within a minute"))
}

async fn revoke(app: &App, label: &str) -> Result<String, Error> {
    store::revoke(app, label)
        .await
        .map_err(|error| Error::for_label(label, error))?;

    Ok(format!(
        "{label} is erased and gets no new calls within a minute; \
         disable it in the provider's console, too"
    ))
}

async fn test(app: &App, label: &str) -> Result<String, Error> {
    let result = store::test(app, label)
        .await
        .map_err(|error| Error::for_label(label, error))?;

    match result {
        KeyTest::Works => Ok(format!("{label} works")),
        KeyTest::Fails(error) => Err(Error::Bad(
            label.to_owned(),
            request_log::error_chain(&error),
        )),
    }
}

async fn reseal(app: &App, say: &mut (dyn FnMut(String) + Send)) -> Result<(), Error> {
    let result = store::reseal(app).await?;
    say(format!(
        "{} resealed, {} already current",
        result.changed, result.current
    ));

    match result.unreadable.is_empty() {
        true => Ok(()),
        false => Err(Error::Unreadable(result.unreadable.join(", "))),
    }
}

/// Reads a secret from a hidden prompt, or from the first line of a pipe.
pub fn from_terminal() -> io::Result<SecretString> {
    let stdin = io::stdin();

    let line = if stdin.is_terminal() {
        rpassword::prompt_password("Secret (is not shown): ")?
    } else {
        let mut line = String::new();
        stdin.lock().read_line(&mut line)?;
        line
    };
    match line.trim() {
        "" => Err(io::Error::other(
            "give it on standard input, as in `iconoclash keys add main < file`",
        )),
        secret => Ok(SecretString::from(secret)),
    }
}

/// Lines with aligned columns.
fn table(keys: &[StoredKey]) -> Vec<String> {
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

    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();

    let line = |row: &[String; 8]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(key: &StoredKey) -> [String; 8] {
    let organisation = key.organisation.as_deref().unwrap_or("(its own)");
    let hint = match key.hint.as_str() {
        "" => "-".to_owned(),
        hint => format!("…{hint}"),
    };
    let health = match key.cooling_until {
        _ if key.state == KeyState::Revoked => "-".to_owned(),
        _ if !key.opens => "CANNOT BE OPENED".to_owned(),
        Some(until) => format!("cools until {}", minute(until)),
        None => "ok".to_owned(),
    };
    let error = match (&key.last_error, key.last_error_at) {
        (Some(error), Some(at)) => format!("{} {error}", minute(at)),
        _ => "-".to_owned(),
    };

    [
        key.label.clone(),
        organisation.to_owned(),
        key.weight.to_string(),
        key.state.to_string(),
        hint,
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
        let main = StoredKey {
            label: "main".to_owned(),
            organisation: Some("acme".to_owned()),
            weight: 2,
            state: KeyState::Active,
            hint: "WXYZ".to_owned(),
            opens: true,
            cooling_until: Some(now + time::Duration::MINUTE),
            last_ok_at: Some(now),
            last_error: Some("rate limited".to_owned()),
            last_error_at: Some(now),
            created_at: now,
        };
        let old = StoredKey {
            label: "old".to_owned(),
            organisation: None,
            state: KeyState::Revoked,
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
