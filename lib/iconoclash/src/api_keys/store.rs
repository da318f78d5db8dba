//! The table of stored keys, and the operators' tasks. Every instance follows a change within a minute. No function
//! here returns a secret.

use claude::{ApiKey, Claude, Cooldown, Pool, Prompt};
use pooled_postgres::{row, sql, text_enum};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{cooldowns, seal::Seal};
use crate::{
    app::App,
    conversation::prompt,
    http::{
        error::{Error, Result},
        request_log,
    },
    spending::{
        admission::background::max_cost,
        ledger::{self, CallResult, Kind, Limits, NewCall, Outcome, Settlement},
        plan::Plan,
        usage::UsageReport,
    },
};

text_enum! {
    /// The state of a stored key.
    pub enum KeyState {
        /// It gets calls.
        Active = "active",
        /// It gets no new calls, and neither does the environment's key with the same label.
        Draining = "draining",
        /// Its secret is erased.
        Revoked = "revoked",
    }
}

/// A key to be stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its name in logs and in the ledger.
    pub label: String,
    /// The organisation whose limits it shares with other keys.
    pub organisation: Option<String>,
    /// Its share of the conversations, relative to the weights of the other keys.
    pub weight: u32,
    /// The key itself.
    pub secret: SecretString,
}

/// A stored key as operators see it.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// Its name in logs and in the ledger.
    pub label: String,
    /// The organisation whose limits it shares with other keys.
    pub organisation: Option<String>,
    /// Its share of the conversations, relative to the weights of the other keys.
    pub weight: i32,
    /// Whether it gets calls.
    pub state: KeyState,
    /// The end of the secret.
    pub hint: String,
    /// Whether a key of `CREDENTIALS_KEY` opens it.
    pub opens: bool,
    /// The end of its own or its organisation's cooldown. Also `None` if Redis does not answer.
    pub cooling_until: Option<OffsetDateTime>,
    /// When a reply last started, to the minute.
    pub last_ok_at: Option<OffsetDateTime>,
    /// The last error.
    pub last_error: Option<String>,
    /// The time of the last error.
    pub last_error_at: Option<OffsetDateTime>,
    /// When it was stored.
    pub created_at: OffsetDateTime,
}

/// The result of trying a key.
#[derive(Debug)]
pub enum KeyTest {
    /// The provider answered.
    Works,
    /// The provider did not answer.
    Fails(claude::Error),
}

/// The result of resealing all keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Keys that were sealed with the former key and now are with the current one.
    pub changed: usize,
    /// Keys that were already sealed with the current key.
    pub current: usize,
    /// Labels of keys that neither key opens.
    pub unreadable: Vec<String>,
}

row! {
    pub(super) struct StoredKeyRow {
        id: Uuid,
        label: String,
        organisation: Option<String>,
        weight: i32,
        state: KeyState,
        hint: String,
        last_ok_at: Option<OffsetDateTime>,
        last_error: Option<String>,
        last_error_at: Option<OffsetDateTime>,
        created_at: OffsetDateTime,
        sealed: Option<Vec<u8>>,
    }
}

impl StoredKeyRow {
    /// The key with its decrypted secret; `None` if it was revoked or no key opens it.
    pub(super) fn open(&self, seal: &Seal) -> Option<ApiKey> {
        let sealed = self.sealed.as_ref()?;
        let opened = seal.open(self.id, &self.label, sealed)?;
        let key = ApiKey::new(self.label.as_str(), opened.secret);

        Some(
            key.with_organisation(self.organisation.clone())
                .with_weight(u32::try_from(self.weight).unwrap_or(1)),
        )
    }

    fn into_stored_key(self, seal: Option<&Seal>, cooldowns: &[Cooldown]) -> StoredKey {
        let key = seal.and_then(|seal| self.open(seal));
        let cooling_until = key.as_ref().and_then(|key| cooldown_end(key, cooldowns));

        StoredKey {
            opens: key.is_some(),
            cooling_until,
            label: self.label,
            organisation: self.organisation,
            weight: self.weight,
            state: self.state,
            hint: self.hint,
            last_ok_at: self.last_ok_at,
            last_error: self.last_error,
            last_error_at: self.last_error_at,
            created_at: self.created_at,
        }
    }
}

fn cooldown_end(key: &ApiKey, cooldowns: &[Cooldown]) -> Option<OffsetDateTime> {
    let names = Pool::cooldown_keys(key);
    let until_ms = cooldowns
        .iter()
        .filter(|cooldown| names.contains(&cooldown.key))
        .map(|cooldown| cooldown.until_ms)
        .max()?;

    OffsetDateTime::from_unix_timestamp(until_ms / 1000).ok()
}

/// Stores a key. It gets calls within a minute.
pub async fn add(app: &App, new: &NewKey) -> Result<()> {
    let id = app.new_id();
    let label = new.label.trim();
    let secret = new.secret.expose_secret().trim();

    if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(
            "key",
            "must be as the provider's console shows it: visible characters on one line",
        ));
    }
    if is_in_environment(app, label) {
        tracing::warn!(
            key = label,
            "the stored key replaces the one in ANTHROPIC_API_KEYS"
        );
    }

    let add = AddKey {
        id,
        label,
        organisation: new.organisation.as_deref(),
        weight: i32::try_from(new.weight).unwrap_or(i32::MAX),
        sealed: Seal::new(app.config())?.seal(id, label, secret)?,
        hint: hint(secret),
        now: app.now(),
    };
    match app.db()?.execute(add).await {
        Ok(_) => Ok(()),
        Err(error) => Err(rejection(&error).unwrap_or_else(|| error.into())),
    }
}

fn is_in_environment(app: &App, label: &str) -> bool {
    let claude = app.config().claude.as_ref();
    claude.is_ok_and(|claude| claude.keys.iter().any(|key| key.label == label))
}

/// The outcome of a refusal by one of the table's constraints.
fn rejection(error: &pooled_postgres::Error) -> Option<Error> {
    const NAME_SHAPE: &str = "must be up to 40 letters, digits, dots, dashes or underscores, \
                              and start with a letter or a digit";

    Some(match error.constraint()? {
        "claude_keys_label_key" => LABEL_TAKEN,
        "claude_keys_label_shape" => Error::invalid("label", NAME_SHAPE),
        "claude_keys_organisation_shape" => Error::invalid("organisation", NAME_SHAPE),
        "claude_keys_weight_range" => Error::invalid("weight", "must be 1 to 100"),
        _ => return None,
    })
}

const LABEL_TAKEN: Error = Error::Conflict {
    code: "label_taken",
    detail: "A key with this label exists. Choose another label, or revoke that key first.",
};

/// The last four characters of a secret; none of a short one.
fn hint(secret: &str) -> &str {
    match secret.len() {
        ..16 => "",
        length => &secret[length - 4..],
    }
}

/// All keys, the revoked ones last.
pub async fn list(app: &App) -> Result<Vec<StoredKey>> {
    let rows = async { Ok::<_, Error>(app.db()?.all(AllKeys).await?) };
    let (rows, cooldowns) = tokio::join!(rows, cooldowns::fetch(app));

    let cooldowns = cooldowns.unwrap_or_default();
    let seal = Seal::new(app.config()).ok();
    let stored_key = |row: StoredKeyRow| row.into_stored_key(seal.as_ref(), &cooldowns);
    Ok(rows?.into_iter().map(stored_key).collect())
}

/// Takes a key out of rotation. Running calls end by themselves.
pub async fn drain(app: &App, label: &str) -> Result<()> {
    set_state(app, label, KeyState::Draining).await
}

/// Puts a draining key back into rotation.
pub async fn resume(app: &App, label: &str) -> Result<()> {
    set_state(app, label, KeyState::Active).await
}

async fn set_state(app: &App, label: &str, state: KeyState) -> Result<()> {
    let now = app.now();
    let changed = app.db()?.execute(SetState { label, state, now }).await?;
    found(changed)
}

/// Erases a key's secret. Running calls end by themselves. The provider still accepts the key until an operator
/// disables it in the provider's console.
pub async fn revoke(app: &App, label: &str) -> Result<()> {
    let now = app.now();
    let changed = app.db()?.execute(RevokeKey { label, now }).await?;
    found(changed)
}

fn found(changed: u64) -> Result<()> {
    match changed {
        0 => Err(Error::NotFound),
        _ => Ok(()),
    }
}

/// Asks the provider for one token with a key. An answer ends the cooldowns of the key and its organisation.
///
/// The call is in the ledger, as the operators' own.
pub async fn test(app: &App, label: &str) -> Result<KeyTest> {
    let key = find(app, label).await?;
    let cooldown_keys = Pool::cooldown_keys(&key);

    let result = ask_for_one_token(app, label, key).await?;
    record_test(app, label, &result).await?;

    if matches!(result, KeyTest::Works) {
        cooldowns::lift(app, &cooldown_keys).await?;
    }
    Ok(result)
}

/// The stored key with this label, else the one of the environment.
async fn find(app: &App, label: &str) -> Result<ApiKey> {
    let rows = app.db()?.all(UsableKeys).await?;

    if let Some(row) = rows.iter().find(|row| row.label == label) {
        let seal = Seal::new(app.config())?;
        return row
            .open(&seal)
            .ok_or_else(|| Error::internal("no key of CREDENTIALS_KEY opens it"));
    }
    let keys = app.config().claude()?.keys.clone();
    keys.into_iter()
        .find(|key| key.label == label)
        .ok_or(Error::NotFound)
}

async fn ask_for_one_token(app: &App, label: &str, key: ApiKey) -> Result<KeyTest> {
    let config = app.config().claude()?;
    let model = app.config().models()?.small.clone();
    let prompt = Prompt::of_one_turn(&model, 1, "Hello".to_owned(), "operator");
    let prompt_bytes = prompt::bytes(&prompt.system, &prompt.summary_block, &prompt.turns);

    let request = app.new_id();
    let began_at = app.now();
    let call = NewCall {
        request,
        kind: Kind::KeyTest,
        user: None,
        reply: request,
        subject: "operator",
        plan: Plan::Pro,
        model: &model,
        key_label: label,
        max_cost: max_cost(&model, prompt_bytes, prompt.max_tokens, began_at),
        counted: false,
        now: began_at,
    };
    ledger::begin(app.db()?, &call, &Limits::default(), None).await?;

    let http = app.http()?.clone();
    let claude = Claude::new(http, config.base_url.clone(), key).with_deadlines(config.deadlines);
    let (result, usage) = match claude.stream(&prompt).await {
        Ok(mut reply) => {
            let result = read_to_end(&mut reply).await;
            (
                result,
                UsageReport::of_stream(&reply, "", prompt.max_tokens),
            )
        }
        Err(error) => {
            let usage = UsageReport::of_failure(&error, prompt_bytes);
            (Err(error), usage)
        }
    };

    let settlement = Settlement {
        request,
        outcome: match result {
            Ok(()) => Outcome::Complete,
            Err(_) => Outcome::Failed,
        },
        counted: false,
        burst_ms: 0,
        usage: &usage,
        model: &model,
        key_label: Some(label),
        began_at,
        now: app.now(),
        result: CallResult::Nothing,
    };
    ledger::settle(app.db()?, &settlement).await?;
    Ok(match result {
        Ok(()) => KeyTest::Works,
        Err(error) => KeyTest::Fails(error),
    })
}

async fn read_to_end(reply: &mut claude::Reply) -> Result<(), claude::Error> {
    while reply.next().await?.is_some() {}
    Ok(())
}

async fn record_test(app: &App, label: &str, result: &KeyTest) -> Result<()> {
    let now = app.now();
    let (ok_at, error) = match result {
        KeyTest::Works => (Some(now), None),
        KeyTest::Fails(error) => (None, Some(request_log::error_chain(error))),
    };

    let record = RecordOutcomes {
        labels: &[label.to_owned()],
        ok_at: &[ok_at],
        error_at: &[error.as_ref().map(|_| now)],
        errors: &[error],
    };
    app.db()?.execute(record).await?;
    Ok(())
}

/// Seals every key with the first key of `CREDENTIALS_KEY`, so that the second can be removed.
pub async fn reseal(app: &App) -> Result<Resealed> {
    let seal = Seal::new(app.config())?;
    let mut result = Resealed::default();

    for row in app.db()?.all(AllKeys).await? {
        let Some(sealed) = row.sealed else { continue };
        match seal.open(row.id, &row.label, &sealed) {
            None => result.unreadable.push(row.label),
            Some(opened) if opened.is_current => result.current += 1,
            Some(opened) => {
                let secret = opened.secret.expose_secret();
                let resealed = seal.seal(row.id, &row.label, secret)?;
                let replace = ReplaceSealed {
                    id: row.id,
                    sealed,
                    resealed,
                };
                app.db()?.execute(replace).await?;
                result.changed += 1;
            }
        }
    }
    Ok(result)
}

sql! {
    write AddKey {
        id: Uuid,
        label: &str,
        organisation: Option<&str>,
        weight: i32,
        sealed: Vec<u8>,
        hint: &str,
        now: OffsetDateTime,
    } -> () = "
        insert into claude_keys
          (id, label, organisation, weight, state, sealed, hint, created_at, updated_at)
        values
          (:id, :label, :organisation, :weight, 'active', :sealed, :hint, :now, :now)";

    read AllKeys -> StoredKeyRow = "
        select id, label, organisation, weight, state, hint,
          last_ok_at, last_error, last_error_at, created_at, sealed
        from claude_keys
        order by state = 'revoked', label, id";

    /// Includes draining keys, because they also take the environment's key of the same label out of rotation.
    pub(super) read UsableKeys -> StoredKeyRow = "
        select id, label, organisation, weight, state, hint,
          last_ok_at, last_error, last_error_at, created_at, sealed
        from claude_keys
        where state <> 'revoked'
        order by label";

    write SetState { label: &str, state: KeyState, now: OffsetDateTime } -> () = "
        update claude_keys set state = :state, updated_at = :now
        where label = :label and state <> 'revoked'";

    write RevokeKey { label: &str, now: OffsetDateTime } -> () = "
        update claude_keys set state = 'revoked', sealed = null, updated_at = :now
        where label = :label and state <> 'revoked'";

    /// Changes nothing if the key was revoked or resealed since it was read.
    write ReplaceSealed { id: Uuid, sealed: Vec<u8>, resealed: Vec<u8> } -> () = "
        update claude_keys set sealed = :resealed where id = :id and sealed = :sealed";

    /// Locks rows in the order of their ids, because many instances update the same keys.
    pub(super) write RecordOutcomes {
        labels: &[String],
        ok_at: &[Option<OffsetDateTime>],
        errors: &[Option<String>],
        error_at: &[Option<OffsetDateTime>],
    } -> () = "
        with outcome as (
          select k.id, o.ok_at, o.error, o.error_at
          from unnest(
            :labels::text[], :ok_at::timestamptz[], :errors::text[], :error_at::timestamptz[]
          ) as o (label, ok_at, error, error_at)
          join claude_keys k on k.label = o.label and k.state <> 'revoked'
          order by k.id
          for update of k
        )
        update claude_keys k
        set last_ok_at = greatest(k.last_ok_at, outcome.ok_at),
          last_error = case
            when outcome.error_at > coalesce(k.last_error_at, '-infinity') then outcome.error
            else k.last_error
          end,
          last_error_at = greatest(k.last_error_at, outcome.error_at)
        from outcome
        where k.id = outcome.id";
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
