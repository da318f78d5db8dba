//! Whether the answer may begin: what Postgres knows and what admission says, asked at the same time.

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{afterwards::Memory, producer::Asked};
use crate::conversation::{
    prompt::{self, Past, Persona},
    summary,
};
use claude::Turn;
use pooled_postgres::{ToSql, row, sql_positional};

use crate::conversation::speakers::Voice;
use crate::{
    clock::{month_start, utc_day},
    http::{
        error::{Error, Result},
        idempotency,
    },
    identity::auth,
    redis,
    spending::{
        admission::{Admission, Gate, Ledger, Verdict},
        budgets::Budgets,
        plan::Plan,
        quota::Quota,
        reconcile,
    },
};

/// How a request that may go on goes on.
pub(super) enum Opening {
    /// Claude may be asked.
    Ask(Granted),
    /// The same request was answered before, by this reply.
    Replay {
        reply: Uuid,
        plan: Plan,
        quota: Quota,
        voices: Vec<Voice>,
    },
}

/// What a message that may be answered is answered with.
pub(super) struct Granted {
    pub(super) gate: Gate,
    pub(super) system: String,
    pub(super) recap: String,
    pub(super) turns: Vec<Turn>,
    pub(super) voices: Vec<Voice>,
    pub(super) memory: Memory,
}

impl Asked {
    /// One round trip: Redis and Postgres are asked together. Whatever is refused here leaves the quota as it was.
    pub(super) async fn open(&self, admission: &Admission<'_>) -> Result<Opening> {
        let claims = &self.session.claims;
        let db = self.app.db()?;
        let today = utc_day(self.now);
        let (month, subject) = (month_start(today), self.subject.as_str());
        let who: [&(dyn ToSql + Sync); 8] = [
            &claims.sub,
            &claims.ver,
            &claims.sid,
            &self.discussion,
            &self.key,
            &subject,
            &today,
            &month,
        ];
        let most = prompt::bound(self.discussion, &self.content);
        let (said, known) = tokio::join!(admission.ask(most), db.old_optional(&OPENING, &who));
        self.app.crash_point("admitted").await;
        let opened = self.judge(admission, said, known).await;
        if opened.is_err() {
            admission.give_back().await;
        }
        opened
    }

    async fn judge(
        &self,
        admission: &Admission<'_>,
        said: Result<Verdict, redis::Error>,
        known: Result<Option<OpeningRow>, pooled_postgres::Error>,
    ) -> Result<Opening> {
        let mut known = known?.ok_or(auth::INVALID_TOKEN)?;
        let plan = Plan::parse(&known.plan)
            .ok_or_else(|| Error::Internal("users.plan is not a plan".into()))?;
        let Some(personas) = known.personas.take() else {
            return Err(Error::NotFound);
        };
        let voices: Vec<Voice> = parse(personas.clone())?;
        if let Some(hash) = known.key_hash {
            return match known.key_reply {
                _ if hash != self.fingerprint() => Err(Error::IdempotencyKeyReused),
                Some(reply) if known.key_reply_lease.is_none() => {
                    admission.give_back().await;
                    Ok(Opening::Replay {
                        reply,
                        plan,
                        quota: admission.quota(plan, known.messages),
                        voices,
                    })
                }
                _ => {
                    if known.key_reply_lease.is_some_and(|lease| lease <= self.now) {
                        // Its process died. Who tries again finds what it left, or nothing and begins anew.
                        reconcile::end_expired(&self.app, Some(self.discussion)).await?;
                    }
                    Err(idempotency::IN_PROGRESS)
                }
            };
        }
        match known.streaming_until {
            Some(lease) if lease > self.now => return Err(REPLY_IN_PROGRESS),
            Some(_) => drop(reconcile::end_expired(&self.app, Some(self.discussion)).await?),
            None => {}
        }
        let personas: Vec<Persona> = parse(personas)?;
        let past: Vec<Past> = parse(
            known
                .past
                .take()
                .unwrap_or_else(|| Value::Array(Vec::new())),
        )?;
        let system = prompt::system(&personas, known.topic.as_deref());
        let memory = Memory {
            topic: known.topic,
            title_made: known.title_made,
            summary: known.summary,
            past,
        };
        let recap = memory
            .summary
            .as_deref()
            .map(summary::recap)
            .unwrap_or_default();
        let turns = prompt::turns(&memory.past, &self.content, system.len() + recap.len());
        let ledger = Ledger {
            plan,
            prompt_bytes: prompt::bytes(&system, &recap, &turns),
            messages: known.messages,
            spent: known.spent,
            burst_ms: known.burst_ms,
            today: known.today,
            month: known.month,
            running: parse(known.running.unwrap_or_else(|| Value::Array(Vec::new())))?,
            budgets: Budgets::from_json(known.budgets)?,
        };
        let gate = admission.decide(said, &ledger).await?;
        Ok(Opening::Ask(Granted {
            gate,
            system,
            recap,
            turns,
            voices,
            memory,
        }))
    }
}

fn parse<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Internal(error.into()))
}

pub(super) const REPLY_IN_PROGRESS: Error = Error::Conflict {
    code: "reply_in_progress",
    detail: "The last message is still being answered; wait for the reply to end.",
};

sql_positional! {
    /// All that an answer needs to know: nothing where the session is not live, no personas where the discussion is not
    /// there, the reply that runs, what the key stands for, the conversation's end, and what the ledger adds up to.
    read OPENING(UUID, INT4, UUID, UUID, TEXT, TEXT, DATE, DATE) -> OpeningRow = "
        select u.plan, d.topic, coalesce(d.title_made, false) as title_made, d.summary,
          (select jsonb_agg(jsonb_build_object('slug', i.slug, 'name', i.name, 'system_prompt', i.system_prompt)
              order by chosen.position)
            from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
          ) as personas,
          (select jsonb_agg(jsonb_build_object('id', m.id, 'role', m.role, 'status', m.status, 'content', m.content) order by m.id)
            from (
              select id, role, status, content from messages
              where discussion_id = d.id and id > coalesce(d.summary_until, '00000000-0000-0000-0000-000000000000')
              order by id desc limit 60
            ) m
          ) as past,
          (select lease_expires_at from messages where discussion_id = d.id and status = 'streaming') as streaming_until,
          k.request_hash as key_hash, k.reply_id as key_reply,
          (select lease_expires_at from messages where id = k.reply_id) as key_reply_lease,
          coalesce(s.messages, 0) as messages, coalesce(s.spent_microusd, 0) as spent,
          coalesce(
            s.burst_ms, (select y.burst_ms from subject_days y where y.subject = $6 and y.day = $7::date - 1), 0
          ) as burst_ms,
          coalesce((select spent_microusd from budget_days where day = $7), 0) as today,
          (select coalesce(sum(spent_microusd), 0)::bigint from budget_days where day between $8 and $7) as month,
          (select jsonb_agg(jsonb_build_array(e.request_id, e.cost_microusd)) from usage_events e
            where e.subject = $6 and e.outcome = 'running' and e.kind = 'reply'
              and e.created_at >= $7::timestamp at time zone 'UTC'
          ) as running,
          (select jsonb_object_agg(scope, limit_microusd) from budgets) as budgets
        from users u
        left join discussions d on d.id = $4 and d.user_id = u.id
        left join idempotency_keys k on k.user_id = u.id and k.key = $5
        left join subject_days s on s.subject = $6 and s.day = $7
        where u.id = $1 and u.token_version = $2 and u.suspended_at is null
          and not exists (select from revoked_sessions r where r.sid = $3)";
}

row! {
    pub(super) struct OpeningRow {
        plan: String,
        topic: Option<String>,
        title_made: bool,
        summary: Option<String>,
        personas: Option<Value>,
        past: Option<Value>,
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
