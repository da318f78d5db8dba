//! Events of a reply, from its producer or a follower to the response.

use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;
use utoipa::ToSchema;
use uuid::Uuid;

use super::message::Message;
use crate::{http::error::Error, spending::quota::Quota};

/// The sending half of a response's channel. Sending succeeds even when the client has left.
pub(super) struct EventSender(pub(super) UnboundedSender<Event>);

impl EventSender {
    pub(super) fn send(&self, event: Event) {
        let _client_left = self.0.send(event);
    }
}

/// Events sent to the response: `Refused`, or `Start`, `Delta`s and `End`.
///
/// Rare large variants are boxed to keep channel slots small.
pub(super) enum Event {
    Refused(Box<Error>),
    Start(Box<Start>),
    Delta(String),
    End(Box<End>),
}

impl Event {
    pub(super) fn refused(error: Error) -> Self {
        Self::Refused(Box::new(error))
    }

    pub(super) fn start(start: Start) -> Self {
        Self::Start(Box::new(start))
    }

    pub(super) fn end(end: End) -> Self {
        Self::End(Box::new(end))
    }
}

/// The first event of a stream: the message is stored and the reply has begun.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Start {
    pub(super) message: Message,
    pub(super) reply_id: Uuid,
    pub(super) model: String,
    pub(super) quota: Quota,
    /// Whether this repeats the answer of an earlier request.
    #[serde(skip)]
    pub(super) replayed: bool,
    /// Whether the events after this one go on where the client left the stream.
    #[serde(skip)]
    pub(super) resumed: bool,
}

/// The last event of a stream.
pub(super) struct End {
    pub(super) reply: Message,
    pub(super) quota: Quota,
    /// Why the reply is not complete.
    pub(super) failure: Option<Error>,
}
