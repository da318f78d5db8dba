//! The rows of a message and its reply: written when the call begins, saved while it runs, settled when it ends.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use claude::Attempt;
use pooled_postgres::sql;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    message::{Message, REPLY_IN_PROGRESS, Usage},
    request::SendRequest,
};
use crate::{
    conversation::history::{MessageRole, MessageStatus},
    http::{
        error::{Error, Result},
        idempotency, request_log,
    },
    spending::{
        admission::Permit,
        ledger::{self, CallResult, Kind, NewCall, Outcome, Settlement},
        usage::UsageReport,
    },
};

/// A producer renews its lease while it lives. With the minute between two runs of the cron, a reply whose process died
/// ends within two minutes.
const LEASE: Duration = Duration::from_secs(60);

/// The rows of a message and its reply.
pub(super) struct ReplyRows<'a> {
    request: &'a SendRequest,
    permit: Permit,
    pub(super) message: Message,
    pub(super) reply_id: Uuid,
    /// The model that answers.
    pub(super) model: String,
    /// The key that answers.
    pub(super) key_label: String,
    /// Why Claude ended the reply.
    pub(super) stop_reason: Option<String>,
}

impl<'a> ReplyRows<'a> {
    /// Prepares the rows. Nothing is written yet.
    pub(super) fn new(
        request: &'a SendRequest,
        permit: Permit,
        key_label: String,
        model: &str,
    ) -> Self {
        let message = Message {
            id: request.app.new_id(),
            role: MessageRole::User,
            content: request.content.clone(),
            parts: None,
            status: MessageStatus::Complete,
            model: None,
            stop_reason: None,
            usage: None,
            created_at: request.now,
        };

        Self {
            request,
            permit,
            message,
            reply_id: request.app.new_id(),
            model: model.to_owned(),
            key_label,
            stop_reason: None,
        }
    }

    /// Records the key and the model that actually answer, after failover.
    pub(super) fn set_answering_key(&mut self, reply: &claude::Reply) {
        self.model = reply.asked_model().to_owned();
        self.key_label = reply.key_label().to_owned();
    }

    /// Writes the rows and the ledger's, and returns the subject's messages of today. Every limit is checked again.
    pub(super) async fn begin(&self) -> Result<i64> {
        let request = self.request;
        let call = self.new_call();
        let fingerprint = request.fingerprint();
        let key = request.key.as_deref();
        let rows = ledger::ReplyRows {
            discussion: request.discussion,
            message: self.message.id,
            content: &self.message.content,
            lease_expires_at: request.now + LEASE,
            key: key.map(|key| (key, fingerprint.as_slice())),
        };

        let limits = &self.permit.limits;
        let begun = ledger::begin(request.app.db()?, &call, limits, Some(&rows)).await;
        request.app.crash_point("begun").await;
        match begun {
            Ok(Some(messages)) => Ok(messages),
            Ok(None) if key.is_some() => Err(idempotency::IN_PROGRESS),
            Ok(None) => Err(Error::NotFound),
            Err(error) => Err(self.refusal(error)),
        }
    }

    fn new_call(&self) -> NewCall<'_> {
        let request = self.request;
        NewCall {
            request: request.id,
            kind: Kind::Reply,
            user: Some(request.session.claims.sub),
            reply: self.reply_id,
            subject: request.subject.as_str(),
            plan: self.permit.plan(),
            model: &self.model,
            key_label: &self.key_label,
            max_cost: self.permit.max_cost,
            counted: true,
            now: request.now,
        }
    }

    /// Books a call that was made although its rows could not be written, and returns its cost.
    pub(super) async fn book_refused(&self, usage: &UsageReport) -> i64 {
        let call = NewCall {
            counted: false,
            ..self.new_call()
        };
        let settlement = self.settlement(Outcome::Failed, "", false, usage);

        let booked = match self.request.app.db() {
            Ok(db) => (|| ledger::book(db, &call, &settlement))
                .retry(settle_retries())
                .await
                .map_err(Error::from),
            Err(error) => Err(error),
        };
        booked.unwrap_or_else(|error| {
            let cause = error.cause();
            tracing::error!(
                request.id = %self.request.id,
                ?usage,
                cause,
                "a call to Claude is not in the ledger"
            );
            self.permit.max_cost
        })
    }

    /// Books the attempts of a call that brought no reply and may be billed: each is estimated as the prompt. Returns what
    /// they cost together.
    pub(super) async fn book_attempts(&self, attempts: &[Attempt], prompt_bytes: usize) -> i64 {
        let usage = UsageReport::unanswered(prompt_bytes);
        let mut cost_microusd = 0;
        for attempt in attempts {
            let id = self.request.app.new_id();
            let call = NewCall {
                request: id,
                model: &attempt.model,
                key_label: &attempt.key_label,
                counted: false,
                ..self.new_call()
            };
            let settlement = Settlement {
                request: id,
                model: &attempt.model,
                key_label: Some(&attempt.key_label),
                result: CallResult::Nothing,
                ..self.settlement(Outcome::Failed, "", false, &usage)
            };

            let booked = match self.request.app.db() {
                Ok(db) => ledger::book(db, &call, &settlement)
                    .await
                    .map_err(Error::from),
                Err(error) => Err(error),
            };
            match booked {
                Ok(cost) => cost_microusd += cost,
                Err(error) => {
                    let cause = error.cause();
                    let key = &attempt.key_label;
                    tracing::error!(request.id = %self.request.id, key, cause, "an attempt is not in the ledger");
                }
            }
        }
        cost_microusd
    }

    fn settlement<'b>(
        &'b self,
        outcome: Outcome,
        text: &'b str,
        counted: bool,
        usage: &'b UsageReport,
    ) -> Settlement<'b> {
        Settlement {
            request: self.request.id,
            outcome,
            counted,
            burst_ms: self.permit.limits.burst_interval_ms,
            usage,
            model: &self.model,
            key_label: Some(&self.key_label),
            began_at: self.request.now,
            now: self.request.app.now(),
            result: CallResult::Reply {
                reply: self.reply_id,
                text,
                stop_reason: self.stop_reason.as_deref(),
            },
        }
    }

    fn refusal(&self, error: pooled_postgres::Error) -> Error {
        match error.constraint() {
            Some("messages_one_streaming_reply_key") => REPLY_IN_PROGRESS,
            // The key was claimed for a discussion that was deleted at the same time.
            Some("idempotency_keys_reply_id_fkey") => Error::NotFound,
            _ => self.permit.refusal(error),
        }
    }

    /// Saves the text so far and renews the lease. Returns whether to stop, or `None` if the save failed: only the end must
    /// be written.
    pub(super) async fn save(&self, text: &str) -> Option<bool> {
        let save = SaveReply {
            reply: self.reply_id,
            text,
            lease_expires_at: self.request.app.now() + LEASE,
        };
        let saved = async { Ok::<_, Error>(self.request.app.db()?.one(save).await?) };

        match saved.await {
            Ok(stop) => Some(stop),
            Err(error) => {
                let cause = error.cause();
                tracing::warn!(request.id = %self.request.id, cause, "a running reply was not saved");
                None
            }
        }
    }

    /// Settles the call and ends the reply in one statement, with retries because the reply is paid for.
    pub(super) async fn settle(
        &self,
        outcome: Outcome,
        text: &str,
        usage: &UsageReport,
    ) -> Result<Message> {
        let app = &self.request.app;
        let counted = outcome != Outcome::Failed || usage.begun;
        let settlement = self.settlement(outcome, text, counted, usage);
        app.crash_point("streamed").await;

        let db = app.db()?;
        let cost = (|| ledger::settle(db, &settlement))
            .retry(settle_retries())
            .notify(|error, _| {
                let cause = request_log::error_chain(error);
                tracing::warn!(request.id = %self.request.id, cause, "a reply's end is not written yet");
            })
            .await?;
        let cost = cost.unwrap_or(self.permit.max_cost);
        Ok(self.ended_message(outcome, text, usage, cost))
    }

    fn ended_message(
        &self,
        outcome: Outcome,
        text: &str,
        usage: &UsageReport,
        cost_microusd: i64,
    ) -> Message {
        let tokens = &usage.tokens;
        let cache_write = i64::from(tokens.cache_write_5m) + i64::from(tokens.cache_write_1h);
        let usage = Usage {
            input_tokens: tokens.input.into(),
            cache_write_tokens: cache_write,
            cache_read_tokens: tokens.cache_read.into(),
            output_tokens: tokens.output.into(),
            cost_microusd,
        };

        Message {
            id: self.reply_id,
            role: MessageRole::Assistant,
            content: text.to_owned(),
            parts: None,
            status: status_of(outcome),
            model: Some(self.model.clone()),
            stop_reason: self.stop_reason.clone(),
            usage: Some(usage),
            created_at: self.request.now,
        }
    }
}

/// Five retries within half a minute: a reply that is paid for must be written.
fn settle_retries() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .with_max_times(5)
}

fn status_of(outcome: Outcome) -> MessageStatus {
    match outcome {
        Outcome::Complete => MessageStatus::Complete,
        Outcome::Partial => MessageStatus::Partial,
        Outcome::Stopped => MessageStatus::Stopped,
        Outcome::Failed => MessageStatus::Failed,
    }
}

sql! {
    /// Returns whether to stop. A reply that is gone was deleted with its discussion, so it stops too; one that was only
    /// ended by another process goes on.
    write SaveReply { reply: Uuid, text: &str, lease_expires_at: OffsetDateTime } -> bool = "
        with saved as (
          update messages set content = :text, lease_expires_at = :lease_expires_at
          where id = :reply and status = 'streaming'
          returning stop_requested_at is not null as stop
        )
        select coalesce((select stop from saved), not exists (select from messages where id = :reply)) as stop";
}
