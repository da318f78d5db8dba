//! A reply in the making: begun, relayed as it comes, kept on the way, and ended.

use futures_util::future::OptionFuture;
use std::{
    pin::{Pin, pin},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc::UnboundedSender, time::Interval};

use super::{
    Message,
    producer::{Asked, End, Event},
    record::{Record, Spent},
    stop,
    stream::Start,
};
use crate::conversation::prompt;
use claude::{self, Pool, Prompt, Route};

use crate::conversation::speakers::Voice;
use crate::{
    app::App,
    http::{
        error::{Error, Result},
        request_log,
    },
    spending::{
        admission::{Admission, Gate},
        quota::Quota,
    },
};

/// A reply that is silent for a while, but lives, says so well before its lease runs out.
const RENEW_LEASE: Duration = Duration::from_secs(20);

/// How a reply came to its end.
pub(super) enum Ending {
    /// The provider said that the message ended.
    Complete,
    /// The user did not want more of it.
    Stopped,
    Broken(claude::Error),
}

/// What a look at the reply's row came to.
struct Look {
    /// Whether the reply is to stop.
    stop: bool,
    /// How much of the text is kept now, where the look kept any.
    saved: Option<usize>,
}

impl Look {
    async fn take(app: &App, record: &Record<'_>, keep: Option<String>) -> Self {
        let Some(text) = keep else {
            return Self {
                stop: stop::is_wanted(app, record.reply_id).await,
                saved: None,
            };
        };
        let stop = record.save(&text).await;
        Self {
            stop: stop.unwrap_or(false),
            saved: stop.map(|_| text.len()),
        }
    }
}

/// A reply in the making.
pub(super) struct Reply<'a> {
    pub(super) asked: &'a Asked,
    pub(super) admission: Admission<'a>,
    pub(super) gate: Gate,
    pub(super) voices: Vec<Voice>,
    /// Messages today, this one included.
    pub(super) taken: i64,
    /// Bytes of the prompt.
    pub(super) length: usize,
    pub(super) record: Record<'a>,
    pub(super) text: String,
    pub(super) first_text: Option<Instant>,
}

impl Reply<'_> {
    /// Asks Claude and, meanwhile, writes that it was asked. If that cannot be written the call is dropped. Where nobody
    /// but the writing statement keeps the limits, it comes first.
    pub(super) async fn begin_and_call(
        &mut self,
        claude: &Pool,
        prompt: &Prompt,
        route: &Route<'_>,
    ) -> Result<Result<claude::Reply, claude::Error>> {
        if self.gate.is_degraded() {
            self.taken = self.record.begin().await?;
            return Ok(claude.ask(prompt, route).await);
        }
        let mut call = pin!(claude.ask(prompt, route));
        let mut begin = pin!(self.record.begin());
        let (taken, called) = tokio::select! {
            begun = &mut begin => (begun?, call.await),
            called = &mut call => match (begin.await, called) {
                (Ok(taken), called) => (taken, called),
                (Err(refused), called) => {
                    if let Ok(begun) = called {
                        tracing::warn!(request.id = %self.asked.request, usage = ?begun.usage(), "a reply that began is not in the ledger");
                    }
                    return Err(refused);
                }
            },
        };
        self.taken = taken;
        Ok(called)
    }

    pub(super) async fn relay(
        mut self,
        mut stream: claude::Reply,
        looks: Interval,
        tell: &UnboundedSender<Event>,
    ) -> Result<Message> {
        self.record.answered_by(&stream);
        self.tell_start(tell);
        let ending = self.listen(&mut stream, looks, tell).await;
        if let (Ending::Broken(error), Ok(claude)) = (&ending, self.asked.app.claude()) {
            claude.record_broken_stream(&stream, error);
        }
        let spent = Spent::by(&stream, &self.text, self.gate.plan().max_output_tokens());
        self.record.stop_reason = stream.stop_reason().map(str::to_owned);
        // Ends the provider's work, which is paid for by the word.
        drop(stream);
        // On the heap, like each save: a thousand replies under way do not keep room for their ends.
        Box::pin(self.tell_end(ending, spent, tell)).await
    }

    /// The call was given up before the provider said a word.
    pub(super) async fn stop_unanswered(
        mut self,
        tell: &UnboundedSender<Event>,
    ) -> Result<Message> {
        self.taken = self.taken.max(self.gate.next());
        self.tell_start(tell);
        let spent = Spent::unanswered(self.length);
        self.tell_end(Ending::Stopped, spent, tell).await
    }

    fn tell_start(&self, tell: &UnboundedSender<Event>) {
        let Record {
            message,
            reply_id,
            model,
            ..
        } = &self.record;
        let (message, model) = (message.clone(), model.clone());
        let start = Start {
            message,
            reply_id: *reply_id,
            model,
            quota: self.gate.quota(self.taken),
            replayed: false,
        };
        let _gone = tell.send(Event::Start(Box::new(start)));
    }

    async fn tell_end(
        &mut self,
        ending: Ending,
        spent: Spent,
        tell: &UnboundedSender<Event>,
    ) -> Result<Message> {
        let (reply, quota, failure) = self.end(ending, spent).await?;
        let _gone = tell.send(Event::End(Box::new(End {
            reply: reply.clone(),
            quota,
            failure,
        })));
        Ok(reply)
    }

    /// Passes text on until the provider says that the message ended, or somebody that it shall, saving it on the way.
    async fn listen(
        &mut self,
        stream: &mut claude::Reply,
        mut looks: Interval,
        tell: &UnboundedSender<Event>,
    ) -> Ending {
        let Self {
            asked: Asked { app, begun, .. },
            record,
            text,
            first_text,
            ..
        } = self;
        let (mut saved, mut renewed) = (0, *begun);
        // One look at a time, beside the provider's words: where Postgres is slow, they are not held up.
        let mut look: Option<Pin<Box<dyn Future<Output = Look> + Send + '_>>> = None;
        let ending = loop {
            let next = tokio::select! {
                next = stream.next() => next,
                _ = looks.tick(), if look.is_none() => {
                    let is_due = text.len() > saved || renewed.elapsed() > RENEW_LEASE;
                    look = Some(Box::pin(Look::take(app, record, is_due.then(|| text.clone()))));
                    continue;
                }
                Some(seen) = OptionFuture::from(look.as_mut()), if look.is_some() => {
                    look = None;
                    if let Some(length) = seen.saved {
                        (saved, renewed) = (length, Instant::now());
                    }
                    if seen.stop {
                        break Ending::Stopped;
                    }
                    continue;
                }
            };
            let piece = match next {
                Ok(Some(piece)) => piece,
                Ok(None) => break Ending::Complete,
                Err(broken) => break Ending::Broken(broken),
            };
            first_text.get_or_insert_with(Instant::now);
            text.push_str(&piece);
            app.crash_point("relaying").await;
            let _gone = tell.send(Event::Delta(piece));
        };
        if let Some(look) = look {
            // Given up, it would cost its connection.
            look.await;
        }
        ending
    }

    /// Ends the reply: its rows, and the message given back where nothing was billed for it.
    pub(super) async fn end(
        &mut self,
        ending: Ending,
        spent: Spent,
    ) -> Result<(Message, Quota, Option<Error>)> {
        let (status, failure) = match ending {
            Ending::Complete => ("complete", None),
            Ending::Stopped => ("stopped", None),
            Ending::Broken(failure) if self.text.is_empty() => ("failed", Some(failure)),
            Ending::Broken(failure) => ("partial", Some(failure)),
        };
        let ended = self.record.end(status, &self.text, &spent).await;
        self.asked.app.crash_point("ended").await;
        self.log(status, failure.as_ref(), &ended);
        let reply = ended?.spoken_by(&self.voices);
        let cost_microusd = reply
            .usage
            .as_ref()
            .map_or(self.gate.hold, |usage| usage.cost_microusd);
        if status == "failed" && !spent.begun {
            // What the provider may bill for nothing is ours to pay.
            self.admission.settle_uncounted(cost_microusd).await;
            self.taken -= 1;
        } else {
            self.admission.settle(cost_microusd).await;
            prompt::remember(self.asked.discussion, self.length + self.text.len());
        }
        self.asked.app.crash_point("settled").await;
        let failure = failure.map(|failure| {
            if status == "failed" {
                failure.into()
            } else {
                INTERRUPTED
            }
        });
        Ok((reply, self.gate.quota(self.taken), failure))
    }

    fn log(&self, status: &str, failure: Option<&claude::Error>, ended: &Result<Message>) {
        let (request, model, key) = (
            self.asked.request,
            &self.record.model,
            &self.record.key_label,
        );
        let usage = ended.as_ref().ok().and_then(|reply| reply.usage.as_ref());
        let (output_tokens, cost_microusd) = usage
            .map(|usage| (usage.output_tokens, usage.cost_microusd))
            .unzip();
        let begun = self.asked.begun;
        let first_text_ms = self
            .first_text
            .map(|first| (first - begun).as_secs_f64() * 1e3);
        let duration_ms = begun.elapsed().as_secs_f64() * 1e3;
        let request_log::RequestLog {
            redis_requests,
            redis_failures,
            degraded,
            ..
        } = request_log::snapshot();
        match failure.map(|failure| request_log::error_chain(failure)) {
            None => {
                tracing::info!(request.id = %request, status, model, key, output_tokens, cost_microusd, first_text_ms, duration_ms, redis_requests, redis_failures, degraded, "reply")
            }
            Some(cause) => {
                tracing::warn!(request.id = %request, status, model, key, output_tokens, cost_microusd, first_text_ms, duration_ms, redis_requests, redis_failures, degraded, cause, "reply");
            }
        }
    }
}

/// The reply has an end, but not the one that Claude would have given it.
pub(super) const INTERRUPTED: Error = Error::Interrupted;

impl From<claude::Error> for Error {
    fn from(error: claude::Error) -> Self {
        let retry_after = error.retry_after().unwrap_or(Duration::from_secs(10));
        Self::Unavailable {
            retry_after,
            cause: error.into(),
        }
    }
}
