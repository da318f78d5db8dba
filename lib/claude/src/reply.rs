//! A streamed reply: events in, pieces of text out, usage as the provider reports it.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::Event;
use futures_util::Stream;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

use crate::connections::OpenStream;
use crate::event_stream::{EventError, Events};
use crate::events::{
    ContentBlock, ContentBlockDelta, ContentBlockStart, Delta, MessageDelta, MessageStart,
};
use crate::timer::ReplyTimer;
use crate::usage::ReportedUsage;
use crate::{ApiKey, Attempt, Detail, Error, Limits, Phase, Usage};

/// How long a complete reply waits for the end of its body.
const BODY_END: Duration = Duration::from_millis(100);

/// A reply whose head has arrived. [`Reply::next`] reads its text.
pub struct Reply {
    /// `None` after the end, which closes the stream.
    events: Option<Events>,
    /// `None` after the end, and without a pool.
    open_stream: Option<OpenStream>,
    timer: ReplyTimer,
    /// Fires at the next deadline or earlier. Most events move the deadline away; the alarm is reset only when it fires,
    /// which is rare.
    alarm: Pin<Box<Sleep>>,
    head: Head,
    usage: ReportedUsage,
    stop_reason: Option<String>,
    has_thought: bool,
    abandoned_attempts: Vec<Attempt>,
    state: State,
}

/// What is known before the body.
pub(crate) struct Head {
    /// The model that was asked, until the reply starts and names the one that answers.
    pub(crate) model: String,
    pub(crate) asked_model: String,
    pub(crate) key: ApiKey,
    pub(crate) limits: Limits,
    pub(crate) request_id: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Started,
    Complete,
    Failed,
}

enum Step {
    Text(String),
    Nothing,
    Stop,
}

impl Step {
    /// Drops U+0000, which Postgres and many other stores cannot hold.
    fn from_text(mut text: String) -> Self {
        text.retain(|letter| letter != '\0');

        match text.is_empty() {
            true => Self::Nothing,
            false => Self::Text(text),
        }
    }
}

impl Reply {
    pub(crate) fn new(
        body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
        head: Head,
        timer: ReplyTimer,
    ) -> Self {
        let (deadline, _) = timer.next_deadline();

        Self {
            events: Some(Events::new(body)),
            open_stream: None,
            alarm: Box::pin(sleep_until(deadline)),
            timer,
            head,
            usage: ReportedUsage::default(),
            stop_reason: None,
            has_thought: false,
            abandoned_attempts: Vec::new(),
            state: State::Waiting,
        }
    }

    /// The next piece of text; `None` only after the provider's `message_stop`.
    ///
    /// Dropping the future loses nothing. After an error every further call returns [`Error::Cut`].
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        while self.state != State::Complete {
            match self.step().await {
                Ok(Step::Text(text)) => return Ok(Some(text)),
                Ok(Step::Nothing) => {}
                Ok(Step::Stop) => {
                    self.state = State::Complete;
                    self.wait_for_body_end().await;
                    self.close();
                }
                Err(error) => {
                    self.state = State::Failed;
                    self.close();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Keeps the place on a connection until the reply ends or is dropped.
    pub(crate) fn hold(&mut self, open_stream: OpenStream) {
        self.open_stream = Some(open_stream);
    }

    /// Records the attempts before this one that the provider may bill.
    pub(crate) fn set_abandoned_attempts(&mut self, attempts: Vec<Attempt>) {
        self.abandoned_attempts = attempts;
    }

    /// Ends the stream and frees its place on the connection. Nothing more is read from it.
    fn close(&mut self) {
        self.events = None;
        self.open_stream = None;
    }

    /// Waits until the reply starts. From then on the provider may bill it.
    pub(crate) async fn wait_for_start(&mut self) -> Result<(), Error> {
        let deadline = self.timer.first_event_deadline();

        while self.state == State::Waiting {
            let step = timeout_at(deadline, self.step()).await;
            let step = step.unwrap_or(Err(Error::Timeout {
                phase: Phase::FirstEvent,
            }));

            let error = match step {
                Ok(Step::Nothing) => continue,
                Ok(Step::Text(_) | Step::Stop) => self.malformed("text before message_start"),
                Err(error) => error,
            };
            self.state = State::Failed;
            return Err(error);
        }
        Ok(())
    }

    /// The usage reported so far; final once [`Reply::next`] has returned `None`.
    pub fn usage(&self) -> Usage {
        self.usage.by_price_class()
    }

    /// The model that answers. Before the start, the model that was asked.
    pub fn model(&self) -> &str {
        &self.head.model
    }

    /// The model that was asked, whose prices apply.
    pub fn asked_model(&self) -> &str {
        &self.head.asked_model
    }

    /// The label of the key that pays.
    pub fn key_label(&self) -> &str {
        &self.head.key.label
    }

    /// The attempts before this one that the provider may bill although they brought no reply.
    pub fn abandoned_attempts(&self) -> &[Attempt] {
        &self.abandoned_attempts
    }

    pub(crate) fn key(&self) -> &ApiKey {
        &self.head.key
    }

    /// Why the model stopped, such as `end_turn`, `max_tokens` or `refusal`. The provider may add others.
    pub fn stop_reason(&self) -> Option<&str> {
        self.stop_reason.as_deref()
    }

    /// Whether the model thought before it spoke. Only the final usage counts the tokens of thinking.
    pub fn has_thought(&self) -> bool {
        self.has_thought
    }

    /// The provider's id of the request.
    pub fn request_id(&self) -> Option<&str> {
        self.head.request_id.as_deref()
    }

    /// The remaining limits of the key's organisation.
    pub fn limits(&self) -> Limits {
        self.head.limits
    }

    async fn step(&mut self) -> Result<Step, Error> {
        if self.state == State::Failed {
            return Err(self.cut(None));
        }

        // A stream that always has an event ready would never let the alarm fire.
        if Instant::now() >= self.timer.whole_deadline() {
            return Err(Error::Timeout {
                phase: Phase::Whole,
            });
        }

        let event = self.next_event().await?;
        self.timer.record_event();
        let (deadline, _) = self.timer.next_deadline();
        if deadline < self.alarm.deadline() {
            self.alarm.as_mut().reset(deadline);
        }

        match event {
            Some(Ok(event)) => self.apply(event),
            Some(Err(EventError::Body(error))) => Err(self.cut(Some(error))),
            Some(Err(EventError::Malformed(what))) => Err(self.malformed(what)),
            None => Err(self.cut(None)),
        }
    }

    /// The next event, or the timeout of the current phase.
    async fn next_event(&mut self) -> Result<Option<Result<Event, EventError>>, Error> {
        let Some(events) = &mut self.events else {
            return Ok(None);
        };
        loop {
            tokio::select! {
                biased;
                event = events.next() => return Ok(event),
                () = self.alarm.as_mut() => {
                    let (deadline, phase) = self.timer.next_deadline();
                    if Instant::now() >= deadline {
                        return Err(Error::Timeout { phase });
                    }
                    self.alarm.as_mut().reset(deadline);
                }
            }
        }
    }

    /// Reads the body to its end, which is due right after `message_stop`. Dropping a body before its end closes the
    /// connection on HTTP/1.1 and resets the stream on HTTP/2. Servers tolerate few resets.
    async fn wait_for_body_end(&mut self) {
        if let Some(events) = &mut self.events {
            let _late = timeout(BODY_END, events.next()).await;
        }
    }

    /// Applies an event. Unknown ones are ignored: within a version the provider adds events, blocks, deltas and reasons.
    fn apply(&mut self, event: Event) -> Result<Step, Error> {
        match event.event.as_str() {
            "message_start" => {
                let MessageStart { message } = self.parse(&event)?;
                self.state = State::Started;
                self.head.model = message.model;
                self.usage.absorb(&message.usage);
            }
            "content_block_start" => {
                let ContentBlockStart { content_block } = self.parse(&event)?;
                match content_block {
                    ContentBlock::Text { text } => return Ok(Step::from_text(text)),
                    ContentBlock::Thinking => self.has_thought = true,
                    ContentBlock::Unknown => {}
                }
            }
            "content_block_delta" => {
                let ContentBlockDelta { delta } = self.parse(&event)?;
                if let Delta::TextDelta { text } = delta {
                    return Ok(Step::from_text(text));
                }
            }
            "message_delta" => {
                let MessageDelta { delta, usage } = self.parse(&event)?;
                self.stop_reason = delta.stop_reason.or(self.stop_reason.take());
                self.usage.absorb(&usage);
            }
            // Only the start reports the price of the prompt.
            "message_stop" if self.state == State::Waiting => {
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
        // The message leaves out the event's text, which is part of a private conversation.
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

#[cfg(test)]
mod tests;
