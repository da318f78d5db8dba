//! What operators do with stored keys. Every instance follows within a minute; nothing here shows a secret.

use time::OffsetDateTime;
use upstash_redis_rs::Command;
use uuid::Uuid;

use super::{COOLING, Seal, cooling_command, deadlines};
use claude::{self, ApiKey, Claude, Deadline, Pool, Prompt};
use pooled_postgres::{row, sql_positional};

use secrecy::{ExposeSecret, SecretString};

use crate::{
    app::App,
    clock::epoch_ms,
    database::OnConstraint,
    http::{
        error::{Error, Result},
        request_log,
    },
};

/// A key to be stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What logs and the ledger will call it.
    pub label: String,
    /// Whose limits it shares, if any other key does.
    pub organisation: Option<String>,
    /// Its share of the conversations.
    pub weight: u32,
    /// What the provider knows it by.
    pub secret: SecretString,
}

/// A stored key as operators see it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What logs and the ledger call it.
    pub label: String,
    /// Whose limits it shares, if any other key does.
    pub organisation: Option<String>,
    /// Its share of the conversations.
    pub weight: i32,
    /// `active`, `draining` or `revoked`.
    pub state: String,
    /// The end of the secret.
    pub hint: String,
    /// Whether a key of `CREDENTIALS_KEY` opens it.
    pub opens: bool,
    /// When it, or its organisation, may be asked again; none where that is now, or Redis does not answer.
    pub cooling_until: Option<OffsetDateTime>,
    /// When it last began a reply, to the minute.
    pub last_ok_at: Option<OffsetDateTime>,
    /// What it last failed with.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<OffsetDateTime>,
    /// When it was stored.
    pub created_at: OffsetDateTime,
}

row! {
    struct StoredRow {
        id: Uuid,
        label: String,
        organisation: Option<String>,
        weight: i32,
        state: String,
        hint: String,
        last_ok_at: Option<OffsetDateTime>,
        last_error: Option<String>,
        last_error_at: Option<OffsetDateTime>,
        created_at: OffsetDateTime,
        sealed: Option<Vec<u8>>,
    }
}

/// Stores a key: it gets calls within a minute.
pub async fn add(app: &App, new: &NewKey) -> Result<()> {
    let (id, label, secret) = (
        app.new_id(),
        new.label.trim(),
        new.secret.expose_secret().trim(),
    );
    if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(
            "key",
            "must be what the provider's console shows: visible characters on one line",
        ));
    }
    if app
        .config()
        .claude
        .as_ref()
        .is_ok_and(|claude| claude.keys.iter().any(|key| key.label == label))
    {
        tracing::warn!(
            key = label,
            "the stored key takes the place of the one in ANTHROPIC_API_KEYS"
        );
    }
    let sealed = Seal::new(app.config())?.seal(id, label, secret)?;
    let (hint, weight) = (hint(secret), i32::try_from(new.weight).unwrap_or(i32::MAX));
    let shape = "must be up to 40 letters, digits, dots, dashes or underscores, and begin with a letter or a digit";
    let values: [&(dyn pooled_postgres::ToSql + Sync); 7] = [
        &id,
        &label,
        &new.organisation,
        &weight,
        &sealed,
        &hint,
        &app.now(),
    ];
    let added = app.db()?.old_execute(&ADD, &values).await;
    added
        .on_constraint("claude_keys_label_key", TAKEN)
        .or_else(|error| on(error, "claude_keys_label_shape", "label", shape))
        .or_else(|error| {
            on(
                error,
                "claude_keys_organisation_shape",
                "organisation",
                shape,
            )
        })
        .or_else(|error| {
            on(
                error,
                "claude_keys_weight_range",
                "weight",
                "must be 1 to 100",
            )
        })?;
    Ok(())
}

const TAKEN: Error = Error::Conflict {
    code: "label_taken",
    detail: "There is a key with this label: give another one, or revoke that key first.",
};

/// Of the characters of a secret only the last four are ever shown, and of a short one none.
fn hint(secret: &str) -> String {
    match secret.len() {
        ..16 => String::new(),
        length => secret[length - 4..].to_owned(),
    }
}

fn on(error: Error, constraint: &str, field: &str, message: &str) -> Result<u64> {
    match &error {
        Error::Internal(cause) => match cause.downcast_ref::<pooled_postgres::Error>() {
            Some(refused) if refused.constraint() == Some(constraint) => {
                Err(Error::invalid(field, message))
            }
            _ => Err(error),
        },
        _ => Err(error),
    }
}

/// All keys, those that were revoked last.
pub async fn list(app: &App) -> Result<Vec<Listed>> {
    let (rows, cooling) = tokio::join!(
        async { Ok::<_, Error>(app.db()?.old_all(&ALL, &[]).await?) },
        cooling(app)
    );
    let listed = |row: StoredRow| {
        let opened = open(app, &row);
        let scopes = opened.as_ref().map(Pool::scopes).unwrap_or_default();
        let ends = cooling
            .iter()
            .filter(|(scope, _)| scopes.contains(scope))
            .map(|(_, until_ms)| *until_ms);
        let cooling_until = ends
            .max()
            .and_then(|ms| OffsetDateTime::from_unix_timestamp(ms / 1000).ok());
        let StoredRow {
            label,
            organisation,
            weight,
            state,
            hint,
            ..
        } = row;
        let StoredRow {
            last_ok_at,
            last_error,
            last_error_at,
            created_at,
            ..
        } = row;
        let opens = opened.is_some();
        Listed {
            label,
            organisation,
            weight,
            state,
            hint,
            opens,
            cooling_until,
            last_ok_at,
            last_error,
            last_error_at,
            created_at,
        }
    };
    Ok(rows?.into_iter().map(listed).collect())
}

async fn cooling(app: &App) -> Vec<Deadline> {
    let known = async {
        let words: serde_json::Value = app
            .redis()?
            .exec(&cooling_command(epoch_ms(app.now())))
            .await?;
        deadlines(words)
    };
    known.await.unwrap_or_default()
}

fn open(app: &App, row: &StoredRow) -> Option<ApiKey> {
    let opened = Seal::new(app.config())
        .ok()?
        .open(row.id, &row.label, row.sealed.as_ref()?)?;
    Some(ApiKey::new(row.label.as_str(), opened.secret).within(row.organisation.clone()))
}

/// Gives a key no new calls; those under way end by themselves.
pub async fn drain(app: &App, label: &str) -> Result<()> {
    found(app.db()?.old_execute(&DRAIN, &[&label, &app.now()]).await?)
}

/// Gives a drained key calls again.
pub async fn resume(app: &App, label: &str) -> Result<()> {
    found(
        app.db()?
            .old_execute(&RESUME, &[&label, &app.now()])
            .await?,
    )
}

/// Erases a key. Calls under way end by themselves; the provider's console is where the key itself is disabled.
pub async fn revoke(app: &App, label: &str) -> Result<()> {
    found(
        app.db()?
            .old_execute(&REVOKE, &[&label, &app.now()])
            .await?,
    )
}

fn found(touched: u64) -> Result<()> {
    if touched == 0 {
        Err(Error::NotFound)
    } else {
        Ok(())
    }
}

/// Asks for one token with a key. Where that is answered, whatever it and its organisation were left alone for is over.
pub async fn test(app: &App, label: &str) -> Result<std::result::Result<(), claude::Error>> {
    let rows = app.db()?.old_all(&ALL, &[]).await?;
    let stored = rows
        .iter()
        .find(|row| row.label == label && row.state != "revoked");
    let key = match stored {
        Some(row) => open(app, row)
            .ok_or_else(|| Error::Internal("no key of CREDENTIALS_KEY opens it".into()))?,
        None => {
            let keys = app.config().claude.clone()?.keys;
            keys.into_iter()
                .find(|key| key.label == label)
                .ok_or(Error::NotFound)?
        }
    };
    let scopes = Pool::scopes(&key);
    let asked = ask(app, key).await?;
    let now = app.now();
    let (ok_at, error) = match &asked {
        Ok(()) => (Some(now), None),
        Err(error) => (None, Some(request_log::error_chain(error))),
    };
    let error_at = error.as_ref().map(|_| now);
    app.db()?
        .old_execute(
            &super::NOTE,
            &[
                &[label].as_slice(),
                &vec![ok_at],
                &vec![error],
                &vec![error_at],
            ],
        )
        .await?;
    if asked.is_ok() {
        let lift = scopes
            .iter()
            .fold(Command::new("ZREM").arg(COOLING), Command::arg);
        app.redis()?.exec::<i64>(&lift.idempotent()).await?;
    }
    Ok(asked)
}

async fn ask(app: &App, key: ApiKey) -> Result<std::result::Result<(), claude::Error>> {
    let config = app.config().claude.clone()?;
    let claude =
        Claude::new(app.http()?.clone(), config.base_url, key).with_deadlines(config.deadlines);
    let model = app.config().models.clone()?.small;
    let prompt = Prompt::of_one_turn(&model, 1, "Hello".to_owned(), "operator");
    let heard = async {
        let mut reply = claude.stream(&prompt).await?;
        while reply.next().await?.is_some() {}
        Ok(())
    };
    Ok(heard.await)
}

/// What became of sealing anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Keys that were sealed with the former key and now are with the first.
    pub changed: usize,
    /// Keys that were sealed with the first key already.
    pub current: usize,
    /// Keys that neither opens.
    pub unreadable: Vec<String>,
}

/// Seals every key with the first key of `CREDENTIALS_KEY`, so that the second can go.
pub async fn reseal(app: &App) -> Result<Resealed> {
    let seal = Seal::new(app.config())?;
    let mut done = Resealed::default();
    for row in app.db()?.old_all(&ALL, &[]).await? {
        let Some(sealed) = row.sealed else { continue };
        match seal.open(row.id, &row.label, &sealed) {
            Some(opened) if opened.is_current => done.current += 1,
            Some(opened) => {
                let again = seal.seal(row.id, &row.label, &opened.secret)?;
                // Nothing where it was revoked or sealed anew meanwhile.
                app.db()?
                    .old_execute(&RESEAL, &[&row.id, &sealed, &again])
                    .await?;
                done.changed += 1;
            }
            None => done.unreadable.push(row.label),
        }
    }
    Ok(done)
}

sql_positional! {
    write ADD(UUID, TEXT, TEXT, INT4, BYTEA, TEXT, TIMESTAMPTZ) -> () = "
        insert into claude_keys (id, label, organisation, weight, state, sealed, hint, created_at, updated_at)
        values ($1, $2, $3, $4, 'active', $5, $6, $7, $7)";

    read ALL() -> StoredRow = "
        select id, label, organisation, weight, state, hint, last_ok_at, last_error, last_error_at, created_at, sealed
        from claude_keys order by state = 'revoked', label, id";

    write DRAIN(TEXT, TIMESTAMPTZ) -> () = "
        update claude_keys set state = 'draining', updated_at = $2 where label = $1 and state in ('active', 'draining')";

    write RESUME(TEXT, TIMESTAMPTZ) -> () = "
        update claude_keys set state = 'active', updated_at = $2 where label = $1 and state in ('active', 'draining')";

    write REVOKE(TEXT, TIMESTAMPTZ) -> () = "
        update claude_keys set state = 'revoked', sealed = null, updated_at = $2
        where label = $1 and state <> 'revoked'";

    write RESEAL(UUID, BYTEA, BYTEA) -> () = "update claude_keys set sealed = $3 where id = $1 and sealed = $2";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_the_end_of_a_long_secret_and_nothing_of_a_short_one() {
        assert_eq!(hint("sk-ant-api03-abcdWXYZ"), "WXYZ");
        assert_eq!(hint("short"), "");
    }
}
