//! Server-sent events from a response body, with a bound on the memory of one event.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use eventsource_stream::{Event, EventStream, EventStreamError};
use futures_util::{Stream, StreamExt};

/// The provider's events are a few hundred bytes.
pub(crate) const MAX_EVENT_BYTES: usize = 256 * 1024;

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, ChunkError>> + Send>>;

/// The events of a response body.
pub(crate) struct Events {
    events: EventStream<Chunks>,
    /// Bytes since the last complete event. The parser buffers all of them.
    buffered: Arc<AtomicUsize>,
}

/// Why there is no next event.
pub(crate) enum EventError {
    /// The connection failed.
    Body(reqwest::Error),
    /// The body is not an event stream, or an event is too long.
    Malformed(&'static str),
}

#[derive(Debug)]
enum ChunkError {
    Body(reqwest::Error),
    TooLong,
}

impl Events {
    pub(crate) fn new(body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static) -> Self {
        let buffered = Arc::default();
        let chunks = with_size_limit(body, Arc::clone(&buffered)).boxed();

        Self {
            events: EventStream::new(chunks),
            buffered,
        }
    }

    /// The next event; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, EventError>> {
        let event = self.events.next().await?;

        Some(match event {
            Ok(event) if event.data.len() > MAX_EVENT_BYTES => {
                Err(EventError::Malformed("an event is too long"))
            }
            Ok(event) => {
                self.buffered.store(0, Ordering::Relaxed);
                Ok(event)
            }
            Err(EventStreamError::Transport(ChunkError::Body(error))) => {
                Err(EventError::Body(error))
            }
            Err(EventStreamError::Transport(ChunkError::TooLong)) => {
                Err(EventError::Malformed("an event has no end"))
            }
            Err(EventStreamError::Utf8(_)) => Err(EventError::Malformed("not UTF-8")),
            Err(EventStreamError::Parser(_)) => Err(EventError::Malformed("not an event stream")),
        })
    }
}

/// Fails once the body has sent [`MAX_EVENT_BYTES`] without completing an event.
fn with_size_limit(
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send,
    buffered: Arc<AtomicUsize>,
) -> impl Stream<Item = Result<Bytes, ChunkError>> + Send {
    body.map(move |chunk| {
        let chunk = chunk.map_err(ChunkError::Body)?;

        let before = buffered.fetch_add(chunk.len(), Ordering::Relaxed);
        if before > MAX_EVENT_BYTES {
            return Err(ChunkError::TooLong);
        }
        Ok(chunk)
    })
}
