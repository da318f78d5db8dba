//! Whether a message may be answered: what Postgres knows and what admission decides, asked in one round trip.
//!
//! Whatever is refused here leaves the quota as it was.

use claude::Prompt;
use pooled_postgres::{row, sql};
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{message::REPLY_IN_PROGRESS, request::SendRequest};
use crate::{
    clock::{month_start, utc_day},
    conversation::{
        history::HistoryMessage,
        prompt::{self, Persona},
        speakers::Speaker,
        summary,
    },
    http::{
        error::{Error, Result},
        idempotency,
    },
    identity::auth,
    redis,
    spending::{
        admission::{Admission, Decision, LedgerSnapshot, Permit},
        budgets::Budgets,
        plan::Plan,
        quota::Quota,
        reconcile,
    },
};

/// How a request goes on.
pub(super) enum Preflight {
    /// Claude may be called.
    Proceed(Box<ApprovedRequest>),
    /// The idempotency key's first request was answered by this reply.
    Replay(Box<Replay>),
    /// The idempotency key's first request is being answered by this reply.
    Follow(Box<Replay>),
}

/// A request that may be answered, and what it takes.
pub(super) struct ApprovedRequest {
    pub(super) permit: Permit,
    pub(super) prompt: Prompt,
    /// The prompt's length.
    pub(super) prompt_bytes: usize,
    pub(super) speakers: Vec<Speaker>,
    pub(super) state: ConversationState,
}

/// The discussion before the message.
pub(super) struct ConversationState {
    pub(super) topic: Option<String>,
    /// Whether the title was generated, so that a better one may replace it.
    pub(super) title_made: bool,
    pub(super) summary: Option<String>,
    /// The messages since the summary.
    pub(super) history: Vec<HistoryMessage>,
}

/// An answer that is given again.
pub(super) struct Replay {
    pub(super) reply: Uuid,
    pub(super) plan: Plan,
    pub(super) quota: Quota,
    pub(super) speakers: Vec<Speaker>,
}

/// Asks Redis and Postgres in parallel, and releases the hold if the request is refused.
pub(super) async fn run(request: &SendRequest, admission: &Admission<'_>) -> Result<Preflight> {
    let claims = &request.session.claims;
    let day = utc_day(request.now);
    let statement = LoadForSending {
        user: claims.sub,
        token_version: claims.ver,
        session: claims.sid,
        discussion: request.discussion,
        key: request.key.as_deref(),
        subject: request.subject.as_str(),
        day,
        month: month_start(day),
    };
    let max_prompt_bytes = prompt::estimate_bytes(request.discussion, &request.content);

    let db = request.app.db()?;
    let reserve = admission.reserve(max_prompt_bytes);
    let (decision, row) = tokio::join!(reserve, db.optional(statement));
    request.app.crash_point("admitted").await;

    let result = evaluate(request, admission, decision, row).await;
    if !matches!(result, Ok(Preflight::Proceed(_))) {
        admission.release().await;
    }
    result
}

async fn evaluate(
    request: &SendRequest,
    admission: &Admission<'_>,
    decision: Result<Decision, redis::Error>,
    row: Result<Option<SendingRow>, pooled_postgres::Error>,
) -> Result<Preflight> {
    let mut row = row?.ok_or(auth::INVALID_TOKEN)?;
    let personas = row.personas.take().ok_or(Error::NotFound)?;
    let speakers: Vec<Speaker> = parse(personas.clone())?;

    if let Some(hash) = row.key_hash.take() {
        let (reply, is_running) = answered_before(request, &row, &hash).await?;
        let replay = Box::new(Replay {
            reply,
            plan: row.plan,
            quota: admission.quota(row.plan, row.messages),
            speakers,
        });
        return Ok(match is_running {
            true => Preflight::Follow(replay),
            false => Preflight::Replay(replay),
        });
    }
    if let Some(lease) = row.streaming_until {
        if lease > request.now {
            return Err(REPLY_IN_PROGRESS);
        }
        reconcile::end_expired(&request.app, Some(request.discussion)).await?;
    }

    let personas: Vec<Persona> = parse(personas)?;
    let state = ConversationState {
        topic: row.topic.take(),
        title_made: row.title_made,
        summary: row.summary.take(),
        history: row.history.take().map_or(Ok(Vec::new()), parse)?,
    };
    let prompt = build_prompt(request, row.plan, &personas, &state)?;
    let prompt_bytes = prompt::bytes(&prompt.system, &prompt.summary_block, &prompt.turns);

    let ledger = snapshot(row, prompt_bytes)?;
    let permit = admission.decide(decision, &ledger).await?;
    Ok(Preflight::Proceed(Box::new(ApprovedRequest {
        permit,
        prompt,
        prompt_bytes,
        speakers,
        state,
    })))
}

/// The reply to the idempotency key's first request, and whether it is still running.
///
/// A running reply can be followed as a stream only.
async fn answered_before(
    request: &SendRequest,
    row: &SendingRow,
    hash: &[u8],
) -> Result<(Uuid, bool)> {
    if hash != request.fingerprint() {
        return Err(Error::IdempotencyKeyReused);
    }
    match (row.key_reply, row.key_reply_lease) {
        (Some(reply), None) => Ok((reply, false)),
        (Some(reply), Some(lease)) if lease > request.now && request.streams => Ok((reply, true)),
        (_, Some(lease)) if lease <= request.now => {
            // Its process died. A retry finds what it left, or begins anew.
            reconcile::end_expired(&request.app, Some(request.discussion)).await?;
            Err(idempotency::IN_PROGRESS)
        }
        _ => Err(idempotency::IN_PROGRESS),
    }
}

fn build_prompt(
    request: &SendRequest,
    plan: Plan,
    personas: &[Persona],
    state: &ConversationState,
) -> Result<Prompt> {
    let models = request.app.config().models()?;
    let system = prompt::system(personas, state.topic.as_deref());
    let summary = state.summary.as_deref();
    let summary_block = summary.map(summary::summary_block).unwrap_or_default();
    let bytes_before = system.len() + summary_block.len();

    Ok(Prompt {
        model: plan.model(models).to_owned(),
        max_tokens: plan.max_output_tokens(),
        system,
        summary_block,
        turns: prompt::turns(&state.history, &request.content, bytes_before),
        user_id: request.session.claims.sub.to_string(),
    })
}

fn snapshot(row: SendingRow, prompt_bytes: usize) -> Result<LedgerSnapshot> {
    Ok(LedgerSnapshot {
        plan: row.plan,
        prompt_bytes,
        messages: row.messages,
        spent: row.spent,
        burst_ms: row.burst_ms,
        today: row.today,
        month: row.month,
        running: row.running.map_or(Ok(Vec::new()), parse)?,
        budgets: Budgets::from_json(row.budgets)?,
    })
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(Error::internal)
}

sql! {
    /// Everything that answering needs: no row where the session is not live, no personas where the discussion does not
    /// exist; the running reply, the idempotency key, the end of the conversation, and the ledger's sums.
    read LoadForSending {
        user: Uuid, token_version: i32, session: Uuid, discussion: Uuid, key: Option<&str>, subject: &str, day: Date,
        month: Date,
    } -> SendingRow = "
        select u.plan, d.topic, coalesce(d.title_made, false) as title_made, d.summary,
          (select jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name, 'system_prompt', i.system_prompt)
              order by chosen.position)
            from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
          ) as personas,
          (select jsonb_agg(
              jsonb_build_object('id', m.id, 'role', m.role, 'status', m.status, 'content', m.content) order by m.id)
            from (
              select id, role, status, content from messages
              where discussion_id = d.id and id > coalesce(d.summary_until, '00000000-0000-0000-0000-000000000000')
              order by id desc limit 60
            ) m
          ) as history,
          (select lease_expires_at from messages where discussion_id = d.id and status = 'streaming') as streaming_until,
          k.request_hash as key_hash, k.reply_id as key_reply,
          (select lease_expires_at from messages where id = k.reply_id) as key_reply_lease,
          coalesce(s.messages, 0) as messages, coalesce(s.spent_microusd, 0) as spent,
          coalesce(
            s.burst_ms, (select y.burst_ms from subject_days y where y.subject = :subject and y.day = :day::date - 1), 0
          ) as burst_ms,
          coalesce((select spent_microusd from budget_days where day = :day), 0) as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between :month and :day) as month,
          (select jsonb_agg(jsonb_build_array(e.request_id, e.cost_microusd)) from usage_events e
            where e.subject = :subject and e.outcome = 'running' and e.kind = 'reply'
              and e.created_at >= :day::timestamp at time zone 'UTC'
          ) as running,
          (select jsonb_object_agg(scope, limit_microusd) from budgets) as budgets
        from users u
        left join discussions d on d.id = :discussion and d.user_id = u.id
        left join idempotency_keys k on k.user_id = u.id and k.key = :key
        left join subject_days s on s.subject = :subject and s.day = :day
        where u.id = :user and u.token_version = :token_version and u.suspended_at is null
          and not exists (select from revoked_sessions r where r.sid = :session)";
}

row! {
    struct SendingRow {
        plan: Plan,
        topic: Option<String>,
        title_made: bool,
        summary: Option<String>,
        personas: Option<Value>,
        history: Option<Value>,
        streaming_until: Option<OffsetDateTime>,
        key_hash: Option<Vec<u8>>,
        key_reply: Option<Uuid>,
        key_reply_lease: Option<OffsetDateTime>,
        messages: i64,
        spent: i64,
        burst_ms: i64,
        today: i64,
        month: i64,
        running: Option<Value>,
        budgets: Value,
    }
}
