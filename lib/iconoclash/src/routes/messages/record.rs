//! What Postgres keeps of a reply: its beginning, its text on the way, and its end with the ledger's row.

use std::time::Duration;
use uuid::Uuid;

use super::{Message, Usage, opening::REPLY_IN_PROGRESS, producer::Asked};
use pooled_postgres::{ToSql, sql_positional};

use crate::{
    clock::{epoch_ms, month_start, utc_day},
    http::{
        error::{Error, Result},
        idempotency,
    },
    spending::{admission::Gate, price},
};

/// A reply whose producer has not renewed its lease for so long belongs to a process that died. With the minute between
/// two runs of the cron that ends such replies, nobody waits for one longer than two minutes.
const LEASE: Duration = Duration::from_secs(60);
/// Seconds between attempts to write the end of a reply, which was paid for.
const END_RETRIES: [u64; 5] = [1, 2, 4, 8, 16];

/// The rows of a message and its reply.
pub(super) struct Record<'a> {
    asked: &'a Asked,
    gate: Gate,
    pub(super) key_label: String,
    pub(super) message: Message,
    pub(super) reply_id: Uuid,
    pub(super) model: String,
    /// Why Claude ended the reply, once it has.
    pub(super) stop_reason: Option<String>,
}

impl<'a> Record<'a> {
    /// Prepares the rows; nothing is written yet.
    pub(super) fn new(asked: &'a Asked, gate: Gate, key_label: String, model: &str) -> Self {
        let message = Message {
            id: asked.app.new_id(),
            role: "user".to_owned(),
            content: asked.content.clone(),
            parts: None,
            status: "complete".to_owned(),
            model: None,
            stop_reason: None,
            usage: None,
            created_at: asked.now,
        };
        let (reply_id, model) = (asked.app.new_id(), model.to_owned());
        Self {
            asked,
            gate,
            key_label,
            message,
            reply_id,
            model,
            stop_reason: None,
        }
    }

    /// Notes who answers, which is not always who was expected to.
    pub(super) fn answered_by(&mut self, reply: &claude::Reply) {
        self.model = reply.asked_model().to_owned();
        self.key_label = reply.key_label().to_owned();
    }

    /// Writes that Claude was asked, with the most that it can cost, and says how many messages that makes today. The
    /// same statement keeps the limits: what is over one changes nothing.
    pub(super) async fn begin(&self) -> Result<i64> {
        let Asked {
            app,
            session,
            subject,
            discussion,
            key,
            request,
            now,
            ..
        } = self.asked;
        let (user, lease) = (session.claims.sub, *now + LEASE);
        let hash = key.as_ref().map(|_| self.asked.fingerprint());
        let (subject, plan) = (subject.as_str(), self.gate.plan().as_str());
        let (today, now_ms) = (utc_day(*now), epoch_ms(*now));
        let month = month_start(today);
        let values: [&(dyn ToSql + Sync); 24] = [
            &user,
            discussion,
            &self.message.id,
            &self.message.content,
            &self.reply_id,
            &self.model,
            &lease,
            now,
            key,
            &hash,
            request,
            &subject,
            &plan,
            &self.key_label,
            &self.gate.hold,
            &today,
            &self.gate.messages,
            &self.gate.spent,
            &now_ms,
            &self.gate.burst_every_ms,
            &self.gate.burst_most_ms,
            &self.gate.day,
            &self.gate.month,
            &month,
        ];
        let begun = app.db()?.old_optional(&BEGIN, &values).await;
        app.crash_point("begun").await;
        match begun {
            Err(error) if error.constraint() == Some("messages_one_streaming_reply_key") => {
                Err(REPLY_IN_PROGRESS)
            }
            // The key was taken for a discussion that was deleted meanwhile.
            Err(error) if error.constraint() == Some("idempotency_keys_reply_id_fkey") => {
                Err(Error::NotFound)
            }
            Err(error) => Err(self.gate.refused(error)),
            Ok(None) if key.is_some() => Err(idempotency::IN_PROGRESS),
            Ok(None) => Err(Error::NotFound),
            Ok(Some(messages)) => Ok(messages),
        }
    }

    /// Keeps what is there so far, renews the lease, and says whether the reply is to stop; nothing where that failed, as
    /// the end is what must be written.
    pub(super) async fn save(&self, text: &str) -> Option<bool> {
        let lease = self.asked.app.now() + LEASE;
        let db = self.asked.app.db();
        let saved = async {
            Ok::<_, Error>(
                db?.old_optional(&SAVE, &[&self.reply_id, &text, &lease])
                    .await?,
            )
        };
        match saved.await {
            Ok(stop) => Some(stop.unwrap_or(false)),
            Err(error) => {
                tracing::warn!(request.id = %self.asked.request, cause = ?error, "a running reply could not be saved");
                None
            }
        }
    }

    /// Writes the reply, its status and the ledger in one statement, trying for a while: the reply was paid for.
    pub(super) async fn end(&self, status: &str, text: &str, spent: &Spent) -> Result<Message> {
        let (app, usage) = (&self.asked.app, &spent.usage);
        let [input, write_5m, write_1h, cache_read, output] = [
            usage.input,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.cache_read,
            usage.output,
        ]
        .map(i64::from);
        let (cache_write, ended_at) = (write_5m + write_1h, app.now());
        let price::Cost {
            microusd: cost,
            saved_microusd: saved,
            price_date,
        } = price::cost(&self.model, usage, self.asked.now)
            .expect("configuration takes only models with a price");
        let counted = status != "failed" || spent.begun;
        let values: [&(dyn ToSql + Sync); 19] = [
            &self.reply_id,
            &status,
            &text,
            &input,
            &cache_write,
            &cache_read,
            &output,
            &cost,
            &self.asked.request,
            &counted,
            &write_5m,
            &write_1h,
            &ended_at,
            &self.model,
            &self.key_label,
            &self.stop_reason,
            &spent.estimated,
            &price_date,
            &saved,
        ];
        app.crash_point("told").await;
        let mut waits = END_RETRIES.into_iter();
        while let Err(error) = app.db()?.old_execute(&END, &values).await {
            let Some(wait) = waits.next() else {
                return Err(error.into());
            };
            tracing::warn!(request.id = %self.asked.request, cause = ?error, "a reply's end could not be written yet");
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
        let usage = Usage {
            input_tokens: input,
            cache_write_tokens: cache_write,
            cache_read_tokens: cache_read,
            output_tokens: output,
            cost_microusd: cost,
        };
        Ok(Message {
            id: self.reply_id,
            role: "assistant".to_owned(),
            content: text.to_owned(),
            parts: None,
            status: status.to_owned(),
            model: Some(self.model.clone()),
            stop_reason: self.stop_reason.clone(),
            usage: Some(usage),
            created_at: self.asked.now,
        })
    }
}

/// What a reply took, as far as anybody knows.
#[derive(Debug, Default)]
pub(super) struct Spent {
    pub(super) usage: claude::Usage,
    /// Whether the provider did not say all of it.
    pub(super) estimated: bool,
    /// Whether the provider said that the reply began, from when on it is billed for certain.
    pub(super) begun: bool,
}

impl Spent {
    /// Of a reply of which this text came. Where the provider did not tell its end: it reports the prompt when it begins,
    /// and how much it has written only at the end. What it has written is what came, of which no language takes more
    /// than a token for two bytes, and what it thought before, of which nothing is told; it is never less than was
    /// reported, nor more than was allowed.
    pub(super) fn by(reply: &claude::Reply, text: &str, max_tokens: u32) -> Self {
        let usage = reply.usage();
        if reply.stop_reason().is_some() {
            return Self {
                usage,
                estimated: false,
                begun: true,
            };
        }
        let written = if reply.has_thought() {
            max_tokens
        } else {
            tokens_at_most(text.len()).min(max_tokens)
        };
        let output = usage.output.max(written);
        Self {
            usage: claude::Usage { output, ..usage },
            estimated: output > usage.output,
            begun: true,
        }
    }

    /// Of a call that was given up before the provider said anything: it has most likely read the prompt.
    pub(super) fn unanswered(prompt_bytes: usize) -> Self {
        let usage = claude::Usage {
            cache_write_5m: tokens_at_most(prompt_bytes),
            ..claude::Usage::default()
        };
        Self {
            usage,
            estimated: true,
            begun: false,
        }
    }
}

fn tokens_at_most(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(2)).unwrap_or(u32::MAX)
}

sql_positional! {
    /// The question, the reply's place, the ledger's row, what the ledger adds up to, and the key: all or nothing. No
    /// row changes where the key is taken or the discussion is gone. The rows that everybody writes come last, so that
    /// they are locked for the shortest time.
    write BEGIN(
        UUID, UUID, UUID, TEXT, UUID, TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TEXT, BYTEA, UUID, TEXT, TEXT, TEXT, INT8,
        DATE, INT8, INT8, INT8, INT8, INT8, INT8, INT8, DATE
    ) -> i64 = "
        with claimed as (
          insert into idempotency_keys (user_id, key, request_hash, reply_id, created_at)
          select $1, $9::text, $10::bytea, $5::uuid, $8::timestamptz where $9 is not null
          on conflict do nothing
          returning key
        ), bumped as (
          update discussions set message_count = message_count + 2, updated_at = $8
          where id = $2 and user_id = $1 and ($9 is null or exists (select from claimed))
          returning id
        ), question as (
          insert into messages (id, discussion_id, role, status, content, created_at)
          select $3, id, 'user', 'complete', $4, $8 from bumped
        ), reply as (
          insert into messages (id, discussion_id, role, status, content, reply_to, model, lease_expires_at, created_at)
          select $5, id, 'assistant', 'streaming', '', $3, $6, $7, $8 from bumped
          returning id
        ), taken as (
          insert into subject_days as s (subject, day, messages, spent_microusd, burst_ms)
          select $12, $16, at_most(1, $17, 'subject_days_messages'),
            at_most($15, $18, 'subject_days_spent'),
            $19 + at_most(
              greatest((select y.burst_ms from subject_days y where y.subject = $12 and y.day = $16::date - 1), $19) + $20 - $19,
              $21, 'subject_days_burst')
          from reply
          on conflict (subject, day) do update
          set messages = at_most(s.messages + 1, $17, 'subject_days_messages'),
            spent_microusd = at_most(s.spent_microusd + $15, $18, 'subject_days_spent'),
            burst_ms = $19 + at_most(greatest(s.burst_ms, $19) + $20 - $19, $21, 'subject_days_burst')
          returning s.messages
        ), spent as (
          insert into budget_days as b (day, spent_microusd)
          select $16, at_most(at_most($15, $22, 'budget_days_day'), $23 - before.spent, 'budget_days_month')
          from taken, (
            select coalesce(sum(d.spent_microusd), 0)::bigint as spent from budget_days d
            where d.day >= $24 and d.day < $16
          ) before
          on conflict (day) do update
          set spent_microusd = at_most(
            at_most(b.spent_microusd + $15, $22, 'budget_days_day'),
            $23 - (
              select coalesce(sum(d.spent_microusd), 0)::bigint from budget_days d where d.day >= $24 and d.day < $16
            ),
            'budget_days_month')
          returning day
        )
        insert into usage_events
          (request_id, user_id, message_id, subject, plan, model, key_label, outcome, cost_microusd, created_at)
        select $11, $1, $5, $12, $13, $6, $14, 'running', $15, $8 from spent
        returning (select taken.messages from taken)";

    write SAVE(UUID, TEXT, TIMESTAMPTZ) -> bool = "
        update messages set content = $2, lease_expires_at = $3 where id = $1 and status = 'streaming'
        returning stop_requested_at is not null";

    /// Safe to repeat, and right even after the lease ran out under a producer that was only slow: a message that was
    /// given back by then, and may have been sent again, stays given back. A failed reply frees its key, so that the same
    /// request may be tried again. What the ledger adds up to follows the ledger.
    write END(
        UUID, TEXT, TEXT, INT8, INT8, INT8, INT8, INT8, UUID, BOOL, INT8, INT8, TIMESTAMPTZ, TEXT, TEXT, TEXT, BOOL,
        DATE, INT8
    ) -> () = "
        with ended as (
          update messages
          set status = $2, content = $3, input_tokens = $4, cache_write_tokens = $5, cache_read_tokens = $6,
            output_tokens = $7, cost_microusd = $8, lease_expires_at = null, model = $14, stop_reason = $16
          where id = $1
          returning id
        ), freed as (
          delete from idempotency_keys where reply_id = $1 and $2 = 'failed'
        ), before as (
          -- After the message, as where a reply is ended whose lease ran out, perhaps this one: CTEs that nobody reads run
          -- last to first, and two statements that lock these rows in different orders wait for each other until one is
          -- killed.
          select e.request_id, e.subject, (e.created_at at time zone 'UTC')::date as day, e.counted, e.cost_microusd
          from usage_events e, (select count(*) from ended) first where e.request_id = $9 for update of e
        ), given_back as (
          update subject_days s
          set messages = s.messages + (before.counted and $10::bool)::int - before.counted::int,
            spent_microusd = s.spent_microusd + $8 - before.cost_microusd
          from before where s.subject = before.subject and s.day = before.day
          returning s.subject
        ), settled as (
          -- After the subject's day, as in the statement that begins a reply.
          update budget_days b set spent_microusd = b.spent_microusd + $8 - before.cost_microusd
          from before, (select count(*) from given_back) first
          where b.day = before.day and before.cost_microusd <> $8
        )
        update usage_events e
        set outcome = $2, input_tokens = $4, cache_write_5m_tokens = $11, cache_write_1h_tokens = $12,
          cache_read_tokens = $6, output_tokens = $7, cost_microusd = $8, counted = before.counted and $10,
          estimated = $17, price_date = $18, saved_microusd = $19, ended_at = $13, model = $14, key_label = $15
        from before where e.request_id = before.request_id";
}
