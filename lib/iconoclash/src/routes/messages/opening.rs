//! Whether the answer may begin: what Postgres knows and what admission says, asked at the same time.

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    prompt::{self, Past, Persona},
    reply::Asked,
};
use crate::{
    admission::{Admission, Decision},
    auth,
    claude::Turn,
    db::{self, ToSql},
    error::{Error, Result},
    idempotency,
    plan::Plan,
    quota::Quota,
    row, sql,
};

/// How a request that may go on goes on.
pub(super) enum Opening {
    /// Claude may be asked.
    Ask(Granted),
    /// The same request was answered before, by this reply.
    Replay { reply: Uuid, plan: Plan, quota: Quota },
}

/// What a message that may be answered is answered with.
pub(super) struct Granted {
    pub(super) plan: Plan,
    pub(super) quota: Quota,
    pub(super) system: String,
    pub(super) turns: Vec<Turn>,
}

impl Asked {
    /// One round trip: Redis and Postgres are asked together. Whatever is refused here leaves the quota as it was.
    pub(super) async fn open(&self, admission: &Admission<'_>) -> Result<Opening> {
        let claims = &self.session.claims;
        let db = self.app.db()?;
        let who = [&claims.sub as &(dyn ToSql + Sync), &claims.ver, &claims.sid, &self.discussion, &self.key];
        let (decision, known) = tokio::join!(admission.take(None), db.optional(&OPENING, &who));
        let may_have_taken = !matches!(decision, Ok(Decision::Exhausted(_) | Decision::PlanUnknown));
        let opened = self.judge(admission, decision, known).await;
        match &opened {
            Ok(_) => {}
            Err(Error::QuotaExceeded(..)) if !may_have_taken => {}
            Err(_) => self.give_back(admission).await,
        }
        opened
    }

    async fn judge(
        &self,
        admission: &Admission<'_>,
        decision: Result<Decision>,
        known: Result<Option<OpeningRow>, db::Error>,
    ) -> Result<Opening> {
        let known = known?.ok_or(auth::INVALID_TOKEN)?;
        let plan = Plan::from_name(&known.plan).ok_or_else(|| Error::Internal("users.plan is not a plan".into()))?;
        let Some(personas) = known.personas else {
            return Err(Error::NotFound);
        };
        if let Some(hash) = known.key_hash {
            return match known.key_reply {
                _ if hash != self.fingerprint() => Err(Error::IdempotencyKeyReused),
                Some(reply) if known.key_reply_lease.is_none_or(|lease| lease <= self.now) => {
                    let quota = admission.quota(plan, admission.refund().await?);
                    Ok(Opening::Replay { reply, plan, quota })
                }
                _ => Err(idempotency::IN_PROGRESS),
            };
        }
        match known.streaming_until {
            Some(lease) if lease > self.now => return Err(REPLY_IN_PROGRESS),
            Some(_) => drop(self.app.db()?.execute(&END_EXPIRED, &[&self.discussion, &self.now]).await?),
            None => {}
        }
        let taken = confirm(admission, decision?, plan).await?;
        let personas: Vec<Persona> = parse(personas)?;
        let past: Vec<Past> = parse(known.past.unwrap_or_else(|| Value::Array(Vec::new())))?;
        Ok(Opening::Ask(Granted {
            plan,
            quota: admission.quota(plan, taken),
            system: prompt::system(&personas, known.topic.as_deref()),
            turns: prompt::turns(&past, &self.content),
        }))
    }

    /// Gives the message back. Where Redis cannot be asked the day's key runs out by itself.
    pub(super) async fn give_back(&self, admission: &Admission<'_>) {
        if let Err(error) = admission.refund().await {
            tracing::warn!(request.id = %self.request, cause = ?error, "a message could not be given back");
        }
    }
}

/// The plan in Postgres counts: admission may have known an older one, or none.
async fn confirm(admission: &Admission<'_>, decision: Decision, plan: Plan) -> Result<u32> {
    let limit = admission.quota(plan, 0).limit;
    let decision = match decision {
        Decision::PlanUnknown => admission.take(Some(plan)).await?,
        Decision::Exhausted(taken) if taken < limit => admission.take(Some(plan)).await?,
        decided => decided,
    };
    match decision {
        Decision::Admitted(taken) if taken <= limit => Ok(taken),
        _ => Err(Error::QuotaExceeded(admission.quota(plan, limit), plan)),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Internal(error.into()))
}

pub(super) const REPLY_IN_PROGRESS: Error = Error::Conflict {
    code: "reply_in_progress",
    detail: "The last message is still being answered; wait for the reply to end.",
};

sql! {
    /// All that an answer needs to know: nothing where the session is not live, no personas where the discussion is not
    /// there, the reply that runs, what the key stands for, and the conversation's end.
    read OPENING(UUID, INT4, UUID, UUID, TEXT) -> OpeningRow = "
        select u.plan, d.topic,
          (select jsonb_agg(jsonb_build_object('name', i.name, 'system_prompt', i.system_prompt) order by chosen.position)
            from unnest(d.icons) with ordinality as chosen (slug, position) join icons i on i.slug = chosen.slug
          ) as personas,
          (select jsonb_agg(jsonb_build_object('role', m.role, 'status', m.status, 'content', m.content) order by m.id)
            from (select id, role, status, content from messages where discussion_id = d.id order by id desc limit 60) m
          ) as past,
          (select lease_expires_at from messages where discussion_id = d.id and status = 'streaming') as streaming_until,
          k.request_hash as key_hash, k.reply_id as key_reply,
          (select lease_expires_at from messages where id = k.reply_id) as key_reply_lease
        from users u
        left join discussions d on d.id = $4 and d.user_id = u.id
        left join idempotency_keys k on k.user_id = u.id and k.key = $5
        where u.id = $1 and u.token_version = $2 and u.suspended_at is null
          and not exists (select from revoked_sessions r where r.sid = $3)";
}

row! {
    pub(super) struct OpeningRow {
        plan: String,
        topic: Option<String>,
        personas: Option<Value>,
        past: Option<Value>,
        streaming_until: Option<OffsetDateTime>,
        key_hash: Option<Vec<u8>>,
        key_reply: Option<Uuid>,
        key_reply_lease: Option<OffsetDateTime>,
    }
}

sql! {
    /// Ends a reply whose producer died. What was written stays; the ledger keeps the most that it can have cost.
    write END_EXPIRED(UUID, TIMESTAMPTZ) -> () = "
        with ended as (
          update messages
          set status = case when content = '' then 'failed' else 'partial' end, lease_expires_at = null
          where discussion_id = $1 and status = 'streaming' and lease_expires_at <= $2
          returning id, status
        )
        update usage_events e set outcome = ended.status, ended_at = $2
        from ended where e.message_id = ended.id and e.outcome = 'running'";
}
