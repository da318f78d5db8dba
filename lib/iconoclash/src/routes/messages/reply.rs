//! The producer of a reply: registered with the platform, it asks Claude, keeps what arrives and ends the reply on every
//! path, whether or not anybody still listens.

use futures_util::future::OptionFuture;
use std::{
    pin::{Pin, pin},
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::{sync::mpsc::UnboundedSender, time::Interval};
use uuid::Uuid;

use super::{
    Message,
    afterwards::Answered,
    opening::{Granted, Opening},
    parts::Voice,
    prompt,
    record::{Record, Spent},
    resume, stop,
    stream::Start,
};
use crate::{
    admission::{Admission, Gate, Subject},
    app::App,
    auth::Session,
    claude::{self, Pool, Prompt, Route},
    error::{Error, Result},
    fault, idempotency, keys,
    quota::Quota,
    telemetry,
};

/// A reply that is silent for a while, but lives, says so well before its lease runs out.
const RENEW_LEASE: Duration = Duration::from_secs(20);

/// One message that wants an answer.
pub(super) struct Asked {
    pub(super) app: App,
    pub(super) session: Session,
    pub(super) subject: Subject,
    pub(super) discussion: Uuid,
    pub(super) key: Option<String>,
    pub(super) request: Uuid,
    pub(super) content: String,
    pub(super) now: OffsetDateTime,
    /// When the request began, for durations in the log.
    pub(super) begun: Instant,
}

/// What the producer tells whoever listens: `Refused`, or `Start`, `Delta`…, `End`. A channel has room for many, so what
/// is large and rare lies elsewhere.
pub(super) enum Event {
    Refused(Box<Error>),
    Start(Box<Start>),
    Delta(String),
    End(Box<End>),
}

/// The end of a stream.
pub(super) struct End {
    pub(super) reply: Message,
    pub(super) quota: Quota,
    /// Why the reply is not complete.
    pub(super) failure: Option<Error>,
}

impl Asked {
    /// Answers the message, to the end. The listener may leave at any time: what it would have heard is kept.
    pub(super) async fn produce(self, tell: UnboundedSender<Event>) {
        let app = self.app.clone();
        // It takes `tell` with it: whoever listens does not wait for what is done beside.
        let answer = async move {
            // On the heap, as all that an answer goes through lies side by side in it.
            match Box::pin(telemetry::noting(self.answer(&tell))).await {
                Err(refusal) => drop(tell.send(Event::Refused(Box::new(refusal)))),
                Ok(None) => {}
                Ok(Some(answered)) => {
                    // The stream ends before anything is done that nobody waits for.
                    drop(tell);
                    Box::pin(telemetry::noting(self.afterwards(answered))).await;
                }
            }
        };
        Box::pin(keys::beside(&app, Box::pin(answer))).await;
    }

    async fn answer(&self, tell: &UnboundedSender<Event>) -> Result<Option<Answered>> {
        let models = self.app.config().models.clone()?;
        let admission = Admission::new(&self.app, &self.subject, &self.session, self.request, self.now)?;
        let (opening, claude) = tokio::join!(Box::pin(self.open(&admission)), keys::ready(&self.app));
        let granted = match opening? {
            Opening::Replay { reply, plan, quota, voices } => {
                self.replay(reply, plan.model(&models), quota, &voices, tell).await?;
                return Ok(None);
            }
            Opening::Ask(granted) => granted,
        };
        let claude = match claude {
            Ok(claude) => claude,
            Err(error) => {
                admission.give_back().await;
                return Err(error);
            }
        };
        let Granted { gate, system, recap, turns, voices, memory } = granted;
        let plan = gate.plan();
        let prompt = Prompt {
            model: plan.model(&models).to_owned(),
            max_tokens: plan.max_output_tokens(),
            system,
            recap,
            turns,
            user_id: self.session.claims.sub.to_string(),
        };
        let route = Route { conversation: self.discussion, fallback: plan.fallback(&models, self.now) };
        let record = Record::new(self, gate, claude.likely_key(self.discussion), &prompt.model);
        let length = prompt::bytes(&prompt.system, &prompt.recap, &prompt.turns);
        let (reply_id, mut looks, text) = (record.reply_id, stop::looks(), String::new());
        let mut reply =
            Reply { asked: self, admission, gate, voices, taken: 0, length, record, text, first_text: None };
        let called = {
            // What beginning takes is given back before the reply is relayed, which is most of a producer's life.
            let call = Box::pin(reply.begin_and_call(claude, &prompt, &route));
            tokio::select! {
                called = call => Some(called),
                () = stop::wanted(&self.app, reply_id, &mut looks) => None,
            }
        };
        drop(prompt);
        let question = reply.record.message.id;
        let reply = match called {
            Some(Err(refused)) => {
                reply.admission.give_back().await;
                return Err(refused);
            }
            Some(Ok(Err(failed))) => {
                let spent = if failed.may_be_billed() { Spent::unanswered(length) } else { Spent::default() };
                let (_, _, failure) = Box::pin(reply.end(Ending::Broken(failed), spent)).await?;
                return Err(failure.unwrap_or(INTERRUPTED));
            }
            Some(Ok(Ok(stream))) => reply.relay(stream, looks, tell).await?,
            None => Box::pin(reply.stop_unanswered(tell)).await?,
        };
        Ok(Some(Answered { gate, memory, question, reply }))
    }

    /// What tells this request from another under the same key.
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        idempotency::fingerprint(&["POST messages", &self.discussion.to_string(), &self.content])
    }

    /// Tells an answered request's answer again.
    async fn replay(
        &self,
        reply: Uuid,
        model: &str,
        quota: Quota,
        voices: &[Voice],
        tell: &UnboundedSender<Event>,
    ) -> Result<()> {
        let (message, reply) = resume::pair(&self.app, reply).await?;
        let reply = reply.spoken_by(voices);
        let model = reply.model.clone().unwrap_or_else(|| model.to_owned());
        let start = Start { message, reply_id: reply.id, model, quota, replayed: true };
        let failure = (!matches!(reply.status.as_str(), "complete" | "stopped")).then_some(INTERRUPTED);
        let text = Some(reply.content.clone()).filter(|text| !text.is_empty()).map(Event::Delta);
        let (start, end) = (Event::Start(Box::new(start)), Event::End(Box::new(End { reply, quota, failure })));
        for event in [Some(start), text, Some(end)].into_iter().flatten() {
            let _gone = tell.send(event);
        }
        Ok(())
    }
}

/// How a reply came to its end.
enum Ending {
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
            return Self { stop: stop::is_wanted(app, record.reply_id).await, saved: None };
        };
        let stop = record.save(&text).await;
        Self { stop: stop.unwrap_or(false), saved: stop.map(|_| text.len()) }
    }
}

/// A reply in the making.
struct Reply<'a> {
    asked: &'a Asked,
    admission: Admission<'a>,
    gate: Gate,
    voices: Vec<Voice>,
    /// Messages today, this one included.
    taken: i64,
    /// Bytes of the prompt.
    length: usize,
    record: Record<'a>,
    text: String,
    first_text: Option<Instant>,
}

impl Reply<'_> {
    /// Asks Claude and, meanwhile, writes that it was asked. If that cannot be written the call is dropped. Where nobody
    /// but the writing statement keeps the limits, it comes first.
    async fn begin_and_call(
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

    async fn relay(
        mut self,
        mut stream: claude::Reply,
        looks: Interval,
        tell: &UnboundedSender<Event>,
    ) -> Result<Message> {
        self.record.answered_by(&stream);
        self.tell_start(tell);
        let ending = self.listen(&mut stream, looks, tell).await;
        if let (Ending::Broken(error), Ok(claude)) = (&ending, self.asked.app.claude()) {
            claude.broke(&stream, error);
        }
        let spent = Spent::by(&stream, &self.text, self.gate.plan().max_output_tokens());
        self.record.stop_reason = stream.stop_reason().map(str::to_owned);
        // Ends the provider's work, which is paid for by the word.
        drop(stream);
        // On the heap, like each save: a thousand replies under way do not keep room for their ends.
        Box::pin(self.tell_end(ending, spent, tell)).await
    }

    /// The call was given up before the provider said a word.
    async fn stop_unanswered(mut self, tell: &UnboundedSender<Event>) -> Result<Message> {
        self.taken = self.taken.max(self.gate.next());
        self.tell_start(tell);
        let spent = Spent::unanswered(self.length);
        self.tell_end(Ending::Stopped, spent, tell).await
    }

    fn tell_start(&self, tell: &UnboundedSender<Event>) {
        let Record { message, reply_id, model, .. } = &self.record;
        let (message, model) = (message.clone(), model.clone());
        let start = Start { message, reply_id: *reply_id, model, quota: self.gate.quota(self.taken), replayed: false };
        let _gone = tell.send(Event::Start(Box::new(start)));
    }

    async fn tell_end(&mut self, ending: Ending, spent: Spent, tell: &UnboundedSender<Event>) -> Result<Message> {
        let (reply, quota, failure) = self.end(ending, spent).await?;
        let _gone = tell.send(Event::End(Box::new(End { reply: reply.clone(), quota, failure })));
        Ok(reply)
    }

    /// Passes text on until the provider says that the message ended, or somebody that it shall, saving it on the way.
    async fn listen(
        &mut self,
        stream: &mut claude::Reply,
        mut looks: Interval,
        tell: &UnboundedSender<Event>,
    ) -> Ending {
        let Self { asked: Asked { app, begun, .. }, record, text, first_text, .. } = self;
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
            fault::step(app, "relaying").await;
            let _gone = tell.send(Event::Delta(piece));
        };
        if let Some(look) = look {
            // Given up, it would cost its connection.
            look.await;
        }
        ending
    }

    /// Ends the reply: its rows, and the message given back where nothing was billed for it.
    async fn end(&mut self, ending: Ending, spent: Spent) -> Result<(Message, Quota, Option<Error>)> {
        let (status, failure) = match ending {
            Ending::Complete => ("complete", None),
            Ending::Stopped => ("stopped", None),
            Ending::Broken(failure) if self.text.is_empty() => ("failed", Some(failure)),
            Ending::Broken(failure) => ("partial", Some(failure)),
        };
        let ended = self.record.end(status, &self.text, &spent).await;
        fault::step(&self.asked.app, "ended").await;
        self.log(status, failure.as_ref(), &ended);
        let reply = ended?.spoken_by(&self.voices);
        let cost_microusd = reply.usage.as_ref().map_or(self.gate.hold, |usage| usage.cost_microusd);
        if status == "failed" && !spent.begun {
            // What the provider may bill for nothing is ours to pay.
            self.admission.settle_uncounted(cost_microusd).await;
            self.taken -= 1;
        } else {
            self.admission.settle(cost_microusd).await;
            prompt::remember(self.asked.discussion, self.length + self.text.len());
        }
        fault::step(&self.asked.app, "settled").await;
        let failure = failure.map(|failure| if status == "failed" { failure.into() } else { INTERRUPTED });
        Ok((reply, self.gate.quota(self.taken), failure))
    }

    fn log(&self, status: &str, failure: Option<&claude::Error>, ended: &Result<Message>) {
        let (request, model, key) = (self.asked.request, &self.record.model, &self.record.key_label);
        let usage = ended.as_ref().ok().and_then(|reply| reply.usage.as_ref());
        let (output_tokens, cost_microusd) = usage.map(|usage| (usage.output_tokens, usage.cost_microusd)).unzip();
        let begun = self.asked.begun;
        let first_text_ms = self.first_text.map(|first| (first - begun).as_secs_f64() * 1e3);
        let duration_ms = begun.elapsed().as_secs_f64() * 1e3;
        let telemetry::Notes { redis_requests, redis_failures, degraded, .. } = telemetry::notes();
        match failure.map(|failure| telemetry::chain(failure)) {
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
        Self::Unavailable { retry_after, cause: error.into() }
    }
}
