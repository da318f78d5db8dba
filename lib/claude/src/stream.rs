//! A reply under way: server-sent events in, pieces of text out, usage kept as it is reported.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::{Event, EventStream, EventStreamError};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

use super::{ApiKey, Deadlines, Detail, Error, Limits, Phase, Usage};

/// The provider's events are a few hundred bytes; this is what one may cost us in memory.
const MOST_EVENT_BYTES: usize = 256 * 1024;
/// How long a complete reply waits for its body to end.
const BODY_END: Duration = Duration::from_millis(100);

/// A reply whose head has come; its text is read with [`Reply::next`].
pub struct Reply {
    events: EventStream<Chunks>,
    unread: Arc<AtomicUsize>,
    clock: Clock,
    /// Wakes at the next deadline or earlier. With each event that moves away, mostly, and then the alarm is set anew when
    /// it wakes, which is seldom.
    alarm: Pin<Box<Sleep>>,
    head: Head,
    usage: Reported,
    stop_reason: Option<String>,
    has_thought: bool,
    state: State,
}

/// What is known of a reply before its body.
pub(super) struct Head {
    /// As the provider names it, once the reply has begun.
    pub(super) model: String,
    pub(super) asked_model: String,
    pub(super) key: ApiKey,
    pub(super) limits: Limits,
    pub(super) request_id: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Begun,
    Complete,
    Failed,
}

enum Step {
    Text(String),
    Nothing,
    Stop,
}

impl Step {
    /// No text holds the character that Postgres cannot store: a reply with one in it could not be kept at all.
    fn said(mut text: String) -> Self {
        text.retain(|letter| letter != '\0');
        if text.is_empty() {
            Self::Nothing
        } else {
            Self::Text(text)
        }
    }
}

impl Reply {
    pub(super) fn new(
        body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
        head: Head,
        clock: Clock,
    ) -> Self {
        let unread = Arc::default();
        let chunks = capped(body, Arc::clone(&unread)).boxed();
        Self {
            events: EventStream::new(chunks),
            unread,
            alarm: Box::pin(sleep_until(clock.next().0)),
            clock,
            head,
            usage: Reported::default(),
            stop_reason: None,
            has_thought: false,
            state: State::Asked,
        }
    }

    /// The next piece of text; `None` only after the provider's `message_stop`.
    ///
    /// Nothing is lost if the future is dropped. After an error every further call is [`Error::Cut`].
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        while self.state != State::Complete {
            match self.step().await {
                Ok(Step::Text(text)) => return Ok(Some(text)),
                Ok(Step::Nothing) => {}
                Ok(Step::Stop) => {
                    self.state = State::Complete;
                    // A body dropped before its end costs the connection on HTTP/1.1 and a reset on HTTP/2,
                    // of which servers tolerate few. The end is due right after this event.
                    let _ = timeout(BODY_END, self.events.next()).await;
                }
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Waits until the provider says that the reply begins, which is when it may be billed.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        let by = self.clock.first_event_by();
        while self.state == State::Asked {
            let step = timeout_at(by, self.step()).await;
            let begun = match step.unwrap_or(Err(Error::Timeout {
                phase: Phase::FirstEvent,
            })) {
                Ok(Step::Nothing) => Ok(()),
                Ok(Step::Text(_) | Step::Stop) => Err(self.malformed("text before message_start")),
                Err(error) => Err(error),
            };
            if begun.is_err() {
                self.state = State::Failed;
                return begun;
            }
        }
        Ok(())
    }

    /// What the provider reported so far; final once [`Reply::next`] gave `None`.
    pub fn usage(&self) -> Usage {
        self.usage.classes()
    }

    /// The model that answers; until the reply begins, the one asked for.
    pub fn model(&self) -> &str {
        &self.head.model
    }

    /// The model that was asked, which prices go by.
    pub fn asked_model(&self) -> &str {
        &self.head.asked_model
    }

    /// The label of the key that pays.
    pub fn key_label(&self) -> &str {
        &self.head.key.label
    }

    pub(super) fn key(&self) -> &ApiKey {
        &self.head.key
    }

    /// Why the model stopped, such as `end_turn`, `max_tokens` or `refusal`; others will be added.
    pub fn stop_reason(&self) -> Option<&str> {
        self.stop_reason.as_deref()
    }

    /// Whether the model thought before it spoke, of which nothing is told but the sum at the end.
    pub fn has_thought(&self) -> bool {
        self.has_thought
    }

    /// The provider's id of the request.
    pub fn request_id(&self) -> Option<&str> {
        self.head.request_id.as_deref()
    }

    /// What the key may still ask for.
    pub fn limits(&self) -> Limits {
        self.head.limits
    }

    async fn step(&mut self) -> Result<Step, Error> {
        if self.state == State::Failed {
            return Err(self.cut(None));
        }
        // A stream that always has something ready would never let the timer speak.
        if Instant::now() >= self.clock.whole_by() {
            return Err(Error::Timeout {
                phase: Phase::Whole,
            });
        }
        let event = loop {
            tokio::select! {
                biased;
                event = self.events.next() => break event,
                () = self.alarm.as_mut() => {
                    let (deadline, phase) = self.clock.next();
                    if Instant::now() >= deadline {
                        return Err(Error::Timeout { phase });
                    }
                    self.alarm.as_mut().reset(deadline);
                }
            }
        };
        self.clock.heard();
        let (deadline, _) = self.clock.next();
        if deadline < self.alarm.deadline() {
            self.alarm.as_mut().reset(deadline);
        }
        match event {
            Some(Ok(event)) => {
                self.unread.store(0, Ordering::Relaxed);
                self.take(event)
            }
            Some(Err(EventStreamError::Transport(ChunkError::Body(error)))) => {
                Err(self.cut(Some(error)))
            }
            Some(Err(EventStreamError::Transport(ChunkError::TooLong))) => {
                Err(self.malformed("an event has no end"))
            }
            Some(Err(EventStreamError::Utf8(_))) => Err(self.malformed("not UTF-8")),
            Some(Err(EventStreamError::Parser(_))) => Err(self.malformed("not an event stream")),
            None => Err(self.cut(None)),
        }
    }

    /// Ignores what it does not know: within a version the provider adds events, blocks, deltas and reasons.
    fn take(&mut self, event: Event) -> Result<Step, Error> {
        if event.data.len() > MOST_EVENT_BYTES {
            return Err(self.malformed("an event is too long"));
        }
        match event.event.as_str() {
            "message_start" => {
                let MessageStart { message } = self.parse(&event)?;
                self.state = State::Begun;
                self.head.model = message.model;
                self.usage.absorb(&message.usage);
            }
            "content_block_start" => {
                let ContentBlockStart { content_block } = self.parse(&event)?;
                match content_block {
                    Block::Text { text } => return Ok(Step::said(text)),
                    Block::Thinking => self.has_thought = true,
                    Block::Unknown => {}
                }
            }
            "content_block_delta" => {
                if let ContentBlockDelta {
                    delta: Delta::TextDelta { text },
                } = self.parse(&event)?
                {
                    return Ok(Step::said(text));
                }
            }
            "message_delta" => {
                let MessageDelta { delta, usage } = self.parse(&event)?;
                self.stop_reason = delta.stop_reason.or(self.stop_reason.take());
                self.usage.absorb(&usage);
            }
            // Without a start nobody said what the reply costs.
            "message_stop" if self.state == State::Asked => {
                return Err(self.malformed("message_stop before message_start"));
            }
            "message_stop" => return Ok(Step::Stop),
            "error" => {
                let detail = Detail::parse(&event.data, self.request_id(), &self.head.key.secret);
                return Err(Error::InStream(Box::new(detail)));
            }
            _ => {}
        }
        Ok(Step::Nothing)
    }

    fn parse<T: DeserializeOwned>(&self, event: &Event) -> Result<T, Error> {
        // The event's text stays out of the message: it is part of a private conversation.
        serde_json::from_str(&event.data).map_err(|error| {
            self.malformed(&format!(
                "{} at column {} of {}",
                kind(&error),
                error.column(),
                event.event
            ))
        })
    }

    fn malformed(&self, what: &str) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            request_id: self.head.request_id.clone(),
        }
    }

    fn cut(&self, error: Option<reqwest::Error>) -> Error {
        let source = error.map(reqwest::Error::without_url);
        Error::Cut {
            request_id: self.head.request_id.clone(),
            source,
        }
    }
}

fn kind(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Data => "unexpected shape",
        _ => "broken JSON",
    }
}

/// The deadlines of one reply, counted from its start and from its last event, however often it is polled.
pub(super) struct Clock {
    started: Instant,
    heard: Option<Instant>,
    deadlines: Deadlines,
}

impl Clock {
    pub(super) fn start(deadlines: Deadlines) -> Self {
        Self {
            started: Instant::now(),
            heard: None,
            deadlines,
        }
    }

    pub(super) fn first_event_by(&self) -> Instant {
        self.started + self.deadlines.first_event.min(self.deadlines.whole)
    }

    fn heard(&mut self) {
        self.heard = Some(Instant::now());
    }

    fn whole_by(&self) -> Instant {
        self.started + self.deadlines.whole
    }

    fn next(&self) -> (Instant, Phase) {
        let whole = (self.whole_by(), Phase::Whole);
        let pause = match self.heard {
            None => (self.started + self.deadlines.first_event, Phase::FirstEvent),
            Some(heard) => (heard + self.deadlines.silence, Phase::Silence),
        };
        if pause.0 < whole.0 { pause } else { whole }
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, ChunkError>> + Send>>;

#[derive(Debug)]
enum ChunkError {
    Body(reqwest::Error),
    TooLong,
}

/// Refuses to read on once `unread` bytes came without completing an event, as the parser would keep them all.
fn capped(
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send,
    unread: Arc<AtomicUsize>,
) -> impl Stream<Item = Result<Bytes, ChunkError>> + Send {
    body.map(move |chunk| {
        let chunk = chunk.map_err(ChunkError::Body)?;
        let before = unread.fetch_add(chunk.len(), Ordering::Relaxed);
        if before > MOST_EVENT_BYTES {
            Err(ChunkError::TooLong)
        } else {
            Ok(chunk)
        }
    })
}

#[derive(Deserialize)]
struct MessageStart {
    message: StartedMessage,
}

#[derive(Deserialize)]
struct StartedMessage {
    model: String,
    usage: WireUsage,
}

#[derive(Deserialize)]
struct ContentBlockStart {
    content_block: Block,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking,
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct ContentBlockDelta {
    delta: Delta,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta {
    TextDelta {
        text: String,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct MessageDelta {
    #[serde(default)]
    delta: Stopped,
    #[serde(default)]
    usage: WireUsage,
}

#[derive(Default, Deserialize)]
struct Stopped {
    stop_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct WireUsage {
    input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    cache_creation: Option<WireCacheCreation>,
    cache_read_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct WireCacheCreation {
    #[serde(default)]
    ephemeral_5m_input_tokens: u32,
    #[serde(default)]
    ephemeral_1h_input_tokens: u32,
}

/// Usage in the provider's terms: every report is cumulative and may leave fields out.
#[derive(Default)]
struct Reported {
    input: u32,
    written: u32,
    written_1h: u32,
    read: u32,
    output: u32,
}

impl Reported {
    fn absorb(&mut self, wire: &WireUsage) {
        let keep = |have: &mut u32, said: Option<u32>| *have = said.unwrap_or(*have);
        keep(&mut self.input, wire.input_tokens);
        keep(&mut self.written, wire.cache_creation_input_tokens);
        keep(&mut self.read, wire.cache_read_input_tokens);
        keep(&mut self.output, wire.output_tokens);
        if let Some(split) = &wire.cache_creation {
            self.written_1h = split.ephemeral_1h_input_tokens;
            let sum = split
                .ephemeral_5m_input_tokens
                .saturating_add(split.ephemeral_1h_input_tokens);
            self.written = self.written.max(sum);
        }
    }

    /// Only the start of a message carries the split; what is written beyond it, or without it, is for 5 minutes.
    fn classes(&self) -> Usage {
        let cache_write_1h = self.written_1h.min(self.written);
        Usage {
            input: self.input,
            cache_write_5m: self.written - cache_write_1h,
            cache_write_1h,
            cache_read: self.read,
            output: self.output,
        }
    }
}

#[cfg(test)]
mod tests;
