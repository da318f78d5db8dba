//! A reply in the making: begun, relayed as it arrives, saved on the way, and ended.

use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use claude::{Attempt, Pool, Prompt, Route};
use futures_util::future::OptionFuture;
use tokio::time::Interval;

use super::{
    events::{End, Event, EventSender, Start},
    message::{INTERRUPTED, Message},
    reply_rows::ReplyRows,
    request::SendRequest,
    stop,
};
use crate::{
    app::App,
    conversation::{prompt, speakers::Speaker},
    http::{
        error::{Error, Result},
        request_log::{self, RequestLog},
    },
    spending::{
        admission::{Admission, Permit},
        ledger::Outcome,
        quota::Quota,
        usage::UsageReport,
    },
};

/// Renew the lease at least this often, even when no text arrives.
const RENEW_LEASE: Duration = Duration::from_secs(20);

/// From this duration of the last write on, the ledger is asked before Claude.
const SLOW_BEGIN: Duration = Duration::from_millis(250);

/// Milliseconds that this process's last begin took.
static LAST_BEGIN_MS: AtomicU64 = AtomicU64::new(0);

fn ledger_is_slow() -> bool {
    u128::from(LAST_BEGIN_MS.load(Ordering::Relaxed)) >= SLOW_BEGIN.as_millis()
}

async fn begin(rows: &ReplyRows<'_>) -> Result<i64> {
    let started_at = Instant::now();
    let begun = rows.begin().await;
    let ms = u64::try_from(started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
    LAST_BEGIN_MS.store(ms, Ordering::Relaxed);
    begun
}

/// What a call to Claude came to.
pub(super) enum CallOutcome {
    /// The ledger refused it, or could not be reached, before Claude was called.
    Refused(Error),
    /// The ledger refused it, or could not be reached, while Claude was called.
    RefusedLate(Error, UsageReport),
    /// Claude did not begin a reply.
    Failed(claude::Error),
    /// Claude began a reply.
    Streaming(Box<claude::Reply>),
    /// The user stopped it before Claude answered.
    Stopped,
}

/// How a reply ended.
enum Ending {
    /// The provider said that the message ended.
    Complete,
    /// The user stopped it.
    Stopped,
    /// The stream broke off.
    Failed(claude::Error),
}

/// What a poll of the reply's row found.
struct Poll {
    must_stop: bool,
    /// Length of the text that is saved now, if this poll saved any.
    saved: Option<usize>,
}

impl Poll {
    /// Reads the stop flag, and saves `text` if there is any.
    async fn run(app: &App, rows: &ReplyRows<'_>, text: Option<String>) -> Self {
        let Some(text) = text else {
            return Self {
                must_stop: stop::must_stop(app, rows.reply_id).await,
                saved: None,
            };
        };
        let saved = rows.save(&text).await;
        Self {
            must_stop: saved.unwrap_or(false),
            saved: saved.map(|_| text.len()),
        }
    }
}

/// A reply in the making.
pub(super) struct Reply<'a> {
    request: &'a SendRequest,
    pub(super) admission: Admission<'a>,
    permit: Permit,
    pub(super) speakers: Vec<Speaker>,
    pub(super) prompt_bytes: usize,
    pub(super) rows: ReplyRows<'a>,
    /// The subject's messages today, this one included.
    messages_today: i64,
    text: String,
    first_text_at: Option<Instant>,
    /// Attempts before this reply that may be billed.
    attempts: Vec<Attempt>,
}

impl<'a> Reply<'a> {
    /// Prepares a reply. Nothing is written yet.
    pub(super) fn new(
        request: &'a SendRequest,
        admission: Admission<'a>,
        permit: Permit,
        model: &str,
        likely_key: String,
    ) -> Self {
        Self {
            request,
            admission,
            permit,
            speakers: Vec::new(),
            prompt_bytes: 0,
            rows: ReplyRows::new(request, permit, likely_key, model),
            messages_today: permit.messages_with_this(),
            text: String::new(),
            first_text_at: None,
            attempts: Vec::new(),
        }
    }

    /// Calls Claude and writes the rows at the same time. If the ledger refuses, the call is dropped and booked.
    ///
    /// Where only the ledger checks the limits, or where it was slow lately, it goes first.
    pub(super) async fn begin_and_call(
        &mut self,
        claude: &Pool,
        prompt: &Prompt,
        route: &Route<'_>,
    ) -> CallOutcome {
        if self.permit.is_ledger_only() || ledger_is_slow() {
            return match begin(&self.rows).await {
                Ok(messages) => {
                    self.messages_today = messages;
                    CallOutcome::from(claude.ask(prompt, route).await)
                }
                Err(refusal) => CallOutcome::Refused(refusal),
            };
        }

        let called_at = Instant::now();
        let mut call = pin!(claude.ask(prompt, route));
        let mut begin = pin!(begin(&self.rows));
        let (begun, called) = tokio::select! {
            begun = &mut begin => match begun {
                Ok(messages) => (Ok(messages), Some(call.await)),
                Err(refusal) => (Err(refusal), None),
            },
            called = &mut call => (begin.await, Some(called)),
        };
        match (begun, called) {
            (Ok(messages), Some(called)) => {
                self.messages_today = messages;
                CallOutcome::from(called)
            }
            (Ok(_), None) => unreachable!("a begun call is awaited"),
            (Err(refusal), called) => {
                let usage = self.usage_of_refused(called, called_at.elapsed());
                CallOutcome::RefusedLate(refusal, usage)
            }
        }
    }

    /// What a call used that is dropped because the ledger refused it.
    fn usage_of_refused(
        &self,
        called: Option<Result<claude::Reply, claude::Error>>,
        elapsed: Duration,
    ) -> UsageReport {
        let max_tokens = self.permit.plan().max_output_tokens();
        match called {
            Some(Err(error)) => UsageReport::of_failure(&error, self.prompt_bytes),
            Some(Ok(reply)) => {
                UsageReport::of_dropped(Some(&reply), self.prompt_bytes, elapsed, max_tokens)
            }
            None => UsageReport::of_dropped(None, self.prompt_bytes, elapsed, max_tokens),
        }
    }

    /// Books a call that the ledger refused after it was made. The message does not count.
    pub(super) async fn book_refused(&self, usage: UsageReport) {
        let cost = self.rows.book_refused(&usage).await;
        self.admission.settle_uncounted(cost).await;
    }

    /// Relays a stream to its end.
    pub(super) async fn relay(
        mut self,
        mut stream: claude::Reply,
        poll_timer: Interval,
        tx: &EventSender,
    ) -> Result<Message> {
        self.rows.set_answering_key(&stream);
        self.emit_start(tx);
        self.attempts = stream.abandoned_attempts().to_vec();

        let ending = self.relay_loop(&mut stream, poll_timer, tx).await;
        if let Ending::Failed(error) = &ending
            && let Ok(claude) = self.request.app.claude()
        {
            claude.record_broken_stream(&stream, error);
        }
        let max_tokens = self.permit.plan().max_output_tokens();
        let usage = UsageReport::of_stream(&stream, &self.text, max_tokens);
        self.rows.stop_reason = stream.stop_reason().map(str::to_owned);
        // Ends the provider's work, which is billed by the token.
        drop(stream);

        // Boxed, so that a thousand running replies reserve no space for their ends.
        Box::pin(self.end_and_emit(ending, usage, tx)).await
    }

    /// Ends a reply that was stopped before the provider answered.
    pub(super) async fn stop_unanswered(mut self, tx: &EventSender) -> Result<Message> {
        self.emit_start(tx);
        let usage = UsageReport::unanswered(self.prompt_bytes);
        self.end_and_emit(Ending::Stopped, usage, tx).await
    }

    /// Ends a reply that the provider did not begin, and returns the outcome for the client.
    pub(super) async fn fail(mut self, error: claude::Error) -> Error {
        let usage = UsageReport::of_failure(&error, self.prompt_bytes);
        // The last attempt is the call's own row.
        if let [earlier @ .., _] = error.abandoned_attempts() {
            self.attempts = earlier.to_vec();
        }
        match self.end(Ending::Failed(error), usage).await {
            Ok((_, _, failure)) => failure.unwrap_or(INTERRUPTED),
            Err(error) => error,
        }
    }

    fn emit_start(&self, tx: &EventSender) {
        tx.send(Event::start(Start {
            message: self.rows.message.clone(),
            reply_id: self.rows.reply_id,
            model: self.rows.model.clone(),
            quota: self.permit.quota(self.messages_today),
            replayed: false,
            resumed: false,
        }));
    }

    async fn end_and_emit(
        &mut self,
        ending: Ending,
        usage: UsageReport,
        tx: &EventSender,
    ) -> Result<Message> {
        let (reply, quota, failure) = self.end(ending, usage).await?;
        tx.send(Event::end(End {
            reply: reply.clone(),
            quota,
            failure,
        }));
        Ok(reply)
    }

    /// Passes text on until the stream ends or a stop is requested, and saves it on the way.
    async fn relay_loop(
        &mut self,
        stream: &mut claude::Reply,
        mut poll_timer: Interval,
        tx: &EventSender,
    ) -> Ending {
        let app = &self.request.app;
        let rows = &self.rows;
        let text = &mut self.text;
        let mut saved = 0;
        let mut renewed_at = self.request.started_at;
        // One poll at a time, concurrent with the stream: a slow Postgres does not delay the text.
        let mut poll: Option<Pin<Box<dyn Future<Output = Poll> + Send + '_>>> = None;

        let ending = loop {
            let next = tokio::select! {
                next = stream.next() => next,
                _ = poll_timer.tick(), if poll.is_none() => {
                    let is_due = text.len() > saved || renewed_at.elapsed() > RENEW_LEASE;
                    let text = is_due.then(|| text.clone());
                    poll = Some(Box::pin(Poll::run(app, rows, text)));
                    continue;
                }
                Some(found) = OptionFuture::from(poll.as_mut()), if poll.is_some() => {
                    poll = None;
                    if let Some(length) = found.saved {
                        saved = length;
                        renewed_at = Instant::now();
                    }
                    if found.must_stop {
                        break Ending::Stopped;
                    }
                    continue;
                }
            };
            let piece = match next {
                Ok(Some(piece)) => piece,
                Ok(None) => break Ending::Complete,
                Err(error) => break Ending::Failed(error),
            };

            self.first_text_at.get_or_insert_with(Instant::now);
            text.push_str(&piece);
            app.crash_point("relaying").await;
            tx.send(Event::Delta(piece));
        };

        if let Some(poll) = poll {
            // Dropping a running query would discard its pooled connection, so wait for it.
            poll.await;
        }
        ending
    }

    /// Writes the end, and releases the message if nothing was billed for it.
    async fn end(
        &mut self,
        ending: Ending,
        usage: UsageReport,
    ) -> Result<(Message, Quota, Option<Error>)> {
        let (outcome, failure) = match ending {
            Ending::Complete => (Outcome::Complete, None),
            Ending::Stopped => (Outcome::Stopped, None),
            Ending::Failed(error) if self.text.trim().is_empty() => (Outcome::Failed, Some(error)),
            Ending::Failed(error) => (Outcome::Partial, Some(error)),
        };
        let settled = self.rows.settle(outcome, &self.text, &usage).await;
        self.request.app.crash_point("ended").await;
        self.log(outcome, failure.as_ref(), &settled);

        let reply = settled?.with_speakers(&self.speakers);
        let usage_cost = reply.usage.as_ref().map(|usage| usage.cost_microusd);
        let attempts_cost = Box::pin(self.rows.book_attempts(&self.attempts, self.prompt_bytes));
        let cost = usage_cost.unwrap_or(self.permit.max_cost) + attempts_cost.await;
        if outcome == Outcome::Failed && !usage.begun {
            // We may still be billed for the prompt; that is our cost, not the user's quota.
            self.admission.settle_uncounted(cost).await;
            self.messages_today -= 1;
        } else {
            self.admission.settle(cost).await;
            let length = self.prompt_bytes + self.text.len();
            prompt::remember_bytes(self.request.discussion, length);
        }
        self.request.app.crash_point("settled").await;

        let failure = failure.map(|error| match outcome {
            Outcome::Failed => error.into(),
            _ => INTERRUPTED,
        });
        Ok((reply, self.permit.quota(self.messages_today), failure))
    }

    fn log(&self, outcome: Outcome, failure: Option<&claude::Error>, settled: &Result<Message>) {
        let started_at = self.request.started_at;
        let first_text = self.first_text_at.map(|first| first - started_at);
        let first_text_ms = first_text.map(|wait| wait.as_secs_f64() * 1e3);
        let duration_ms = started_at.elapsed().as_secs_f64() * 1e3;

        let usage = settled.as_ref().ok().and_then(|reply| reply.usage.as_ref());
        let output_tokens = usage.map(|usage| usage.output_tokens);
        let cost_microusd = usage.map(|usage| usage.cost_microusd);
        let cause = failure.map(|error| request_log::error_chain(error));
        let RequestLog {
            redis_requests,
            redis_failures,
            degraded,
            ..
        } = request_log::snapshot();

        // The macro fixes the level at compile time, so the fields are in one macro of ours.
        macro_rules! log_reply {
            ($level:ident) => {
                tracing::$level!(
                    request.id = %self.request.id,
                    status = outcome.as_str(),
                    model = self.rows.model,
                    key = self.rows.key_label,
                    output_tokens,
                    cost_microusd,
                    first_text_ms,
                    duration_ms,
                    redis_requests,
                    redis_failures,
                    degraded,
                    cause,
                    "reply"
                )
            };
        }
        match cause {
            None => log_reply!(info),
            Some(_) => log_reply!(warn),
        }
    }
}

impl From<Result<claude::Reply, claude::Error>> for CallOutcome {
    fn from(called: Result<claude::Reply, claude::Error>) -> Self {
        match called {
            Ok(stream) => Self::Streaming(Box::new(stream)),
            Err(error) => Self::Failed(error),
        }
    }
}

impl From<claude::Error> for Error {
    fn from(error: claude::Error) -> Self {
        Self::Unavailable {
            retry_after: error.retry_after().unwrap_or(Duration::from_secs(10)),
            cause: error.into(),
        }
    }
}
