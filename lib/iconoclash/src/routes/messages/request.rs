//! One request for a reply.

use std::time::Instant;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{app::App, http::idempotency, identity::auth::Session, spending::subject::Subject};

/// A message that a user sends, and what answering it needs.
pub(super) struct SendRequest {
    pub(super) app: App,
    pub(super) session: Session,
    pub(super) subject: Subject,
    pub(super) discussion: Uuid,
    pub(super) content: String,
    /// Whether the client accepts a stream.
    pub(super) streams: bool,
    /// The `Idempotency-Key`, if the client sent one.
    pub(super) key: Option<String>,
    /// The `Last-Event-ID` of a client that comes back with its key, or 0.
    pub(super) last_event_id: u64,
    /// The request's id, which is the call's id in the ledger.
    pub(super) id: Uuid,
    pub(super) now: OffsetDateTime,
    /// When the request started, for durations in the log.
    pub(super) started_at: Instant,
}

impl SendRequest {
    /// The fingerprint that an idempotency key is bound to.
    pub(super) fn fingerprint(&self) -> Vec<u8> {
        let discussion = self.discussion.to_string();
        idempotency::fingerprint(&["POST messages", &discussion, &self.content])
    }
}
