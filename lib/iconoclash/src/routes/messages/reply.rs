//! The producer of a reply: registered with the platform, it asks Claude, keeps what arrives and ends the reply on every
//! path, whether or not anybody still listens.

use std::{
    pin::pin,
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::{sync::mpsc::UnboundedSender, time::interval_at};
use uuid::Uuid;

use super::{
    Message, MessageRow,
    opening::{Granted, Opening},
    prompt,
    record::Record,
    send::Start,
};
use crate::{
    admission::{Admission, Gate, Subject},
    app::App,
    auth::Session,
    claude::{self, Pool, Prompt, Route},
    error::{Error, Result},
    fault, idempotency, keys,
    quota::Quota,
    sql, telemetry,
};

/// At most this much text is lost with a process.
const SAVE_EVERY: Duration = Duration::from_secs(1);
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

/// What the producer tells whoever listens: `Refused`, or `Start`, `Delta`…, `End`.
pub(super) enum Event {
    Refused(Error),
    Start(Start),
    Delta(String),
    End {
        reply: Message,
        quota: Quota,
        /// Why the reply is not complete.
        failure: Option<Error>,
    },
}

impl Asked {
    /// Answers the message, to the end. The listener may leave at any time: what it would have heard is kept.
    pub(super) async fn produce(self, tell: UnboundedSender<Event>) {
        let app = self.app.clone();
        // It takes `tell` with it: whoever listens does not wait for what is done beside.
        let answer = telemetry::noting(async move {
            if let Err(refusal) = self.answer(&tell).await {
                let _gone = tell.send(Event::Refused(refusal));
            }
        });
        Box::pin(keys::beside(&app, Box::pin(answer))).await;
    }

    async fn answer(&self, tell: &UnboundedSender<Event>) -> Result<()> {
        let models = self.app.config().models.clone()?;
        let admission = Admission::new(&self.app, &self.subject, &self.session, self.request, self.now)?;
        let (opening, claude) = tokio::join!(self.open(&admission), keys::ready(&self.app));
        let granted = match opening? {
            Opening::Replay { reply, plan, quota } => {
                return self.replay(reply, plan.model(&models), quota, tell).await;
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
        let Granted { gate, system, turns } = granted;
        let plan = gate.plan();
        let prompt = Prompt {
            model: plan.model(&models).to_owned(),
            max_tokens: plan.max_output_tokens(),
            system,
            turns,
            user_id: self.session.claims.sub.to_string(),
        };
        let route = Route { conversation: self.discussion, fallback: plan.fallback(&models, self.now) };
        let record = Record::new(self, gate, claude.likely_key(self.discussion), &prompt.model);
        let length = prompt::bytes(&prompt.system, &prompt.turns);
        let mut reply =
            Reply { asked: self, admission, gate, taken: 0, length, record, text: String::new(), first_text: None };
        match reply.begin_and_call(claude, &prompt, &route).await {
            Err(refused) => {
                reply.admission.give_back().await;
                Err(refused)
            }
            Ok(Err(failed)) => Err(reply.end(Some(failed), claude::Usage::default()).await?.2.unwrap_or(INTERRUPTED)),
            Ok(Ok(stream)) => reply.relay(stream, tell).await,
        }
    }

    /// What tells this request from another under the same key.
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        idempotency::fingerprint(&["POST messages", &self.discussion.to_string(), &self.content])
    }

    /// Tells an answered request's answer again.
    async fn replay(&self, reply: Uuid, model: &str, quota: Quota, tell: &UnboundedSender<Event>) -> Result<()> {
        let rows = self.app.db()?.all(&PAIR, &[&reply]).await?;
        let pair: Vec<Message> = rows.into_iter().map(Message::from).collect();
        let [message, reply] = <[Message; 2]>::try_from(pair).map_err(|_| Error::NotFound)?;
        let model = reply.model.clone().unwrap_or_else(|| model.to_owned());
        let start = Start { message, reply_id: reply.id, model, quota, replayed: true };
        let failure = (reply.status != "complete").then_some(INTERRUPTED);
        let text = reply.content.clone();
        for event in [Event::Start(start), Event::Delta(text), Event::End { reply, quota, failure }] {
            let _gone = tell.send(event);
        }
        Ok(())
    }
}

/// A reply in the making.
struct Reply<'a> {
    asked: &'a Asked,
    admission: Admission<'a>,
    gate: Gate,
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
            called = &mut call => (begin.await?, called),
        };
        self.taken = taken;
        Ok(called)
    }

    async fn relay(mut self, mut stream: claude::Reply, tell: &UnboundedSender<Event>) -> Result<()> {
        self.record.answered_by(&stream);
        let Record { message, reply_id, model, .. } = &self.record;
        let (message, model) = (message.clone(), model.clone());
        let start = Start { message, reply_id: *reply_id, model, quota: self.gate.quota(self.taken), replayed: false };
        let _gone = tell.send(Event::Start(start));
        let failure = self.listen(&mut stream, tell).await.err();
        self.record.stop_reason = stream.stop_reason().map(str::to_owned);
        let (reply, quota, failure) = self.end(failure, stream.usage()).await?;
        let _gone = tell.send(Event::End { reply, quota, failure });
        Ok(())
    }

    /// Passes text on until the provider says that the message ended, saving it on the way.
    async fn listen(&mut self, stream: &mut claude::Reply, tell: &UnboundedSender<Event>) -> Result<(), claude::Error> {
        let mut tick = interval_at(tokio::time::Instant::now() + SAVE_EVERY, SAVE_EVERY);
        let (mut saved, mut renewed) = (0, Instant::now());
        loop {
            let mut next = pin!(stream.next());
            let next = loop {
                tokio::select! {
                    next = &mut next => break next,
                    _ = tick.tick() => if self.text.len() > saved || renewed.elapsed() > RENEW_LEASE {
                        self.record.save(&self.text).await;
                        (saved, renewed) = (self.text.len(), Instant::now());
                    },
                }
            };
            let Some(text) = next? else { return Ok(()) };
            self.first_text.get_or_insert_with(Instant::now);
            self.text.push_str(&text);
            fault::step(&self.asked.app, "relaying").await;
            let _gone = tell.send(Event::Delta(text));
        }
    }

    /// Ends the reply: its rows, and the message given back where nothing was billed for it.
    async fn end(
        &mut self,
        failure: Option<claude::Error>,
        usage: claude::Usage,
    ) -> Result<(Message, Quota, Option<Error>)> {
        let status = match failure {
            None => "complete",
            Some(_) if self.text.is_empty() => "failed",
            Some(_) => "partial",
        };
        let ended = self.record.end(status, &self.text, &usage).await;
        fault::step(&self.asked.app, "ended").await;
        self.log(status, failure.as_ref(), &ended);
        let reply = ended?;
        if status == "failed" && usage == claude::Usage::default() {
            self.admission.give_back().await;
            self.taken -= 1;
        } else {
            self.admission.settle(reply.usage.as_ref().map_or(self.gate.hold, |usage| usage.cost_microusd)).await;
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
const INTERRUPTED: Error = Error::Interrupted;

impl From<claude::Error> for Error {
    fn from(error: claude::Error) -> Self {
        let retry_after = error.retry_after().unwrap_or(Duration::from_secs(10));
        Self::Unavailable { retry_after, cause: error.into() }
    }
}

sql! {
    /// A reply and, before it, the message that it answers.
    read PAIR(UUID) -> MessageRow = "
        select m.id, m.role, m.content, m.status, m.model, m.input_tokens, m.cache_write_tokens, m.cache_read_tokens,
          m.output_tokens, m.cost_microusd, m.stop_reason, m.created_at
        from messages reply join messages m on m.id in (reply.id, reply.reply_to)
        where reply.id = $1 order by m.id";
}
