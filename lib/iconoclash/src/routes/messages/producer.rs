//! The producer of a reply: registered with the platform, it asks Claude, keeps what arrives and ends the reply on every
//! path, whether or not anybody still listens.

use std::time::Instant;
use time::OffsetDateTime;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::{
    Message,
    afterwards::Answered,
    opening::{Granted, Opening},
    record::{Record, Spent},
    reply::{Ending, INTERRUPTED, Reply},
    resume, stop,
    stream::Start,
};
use crate::conversation::prompt;
use claude::{Prompt, Route};

use crate::conversation::speakers::Voice;
use crate::{
    api_keys,
    app::App,
    http::{
        error::{Error, Result},
        idempotency, request_log,
    },
    identity::auth::Session,
    spending::{
        admission::{Admission, Subject},
        quota::Quota,
    },
};

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
            match Box::pin(request_log::with_request_log(self.answer(&tell))).await {
                Err(refusal) => drop(tell.send(Event::Refused(Box::new(refusal)))),
                Ok(None) => {}
                Ok(Some(answered)) => {
                    // The stream ends before anything is done that nobody waits for.
                    drop(tell);
                    Box::pin(request_log::with_request_log(self.afterwards(answered))).await;
                }
            }
        };
        Box::pin(api_keys::run_with_key_sync(&app, Box::pin(answer))).await;
    }

    async fn answer(&self, tell: &UnboundedSender<Event>) -> Result<Option<Answered>> {
        let models = self.app.config().models.clone()?;
        let admission = Admission::new(
            &self.app,
            &self.subject,
            &self.session,
            self.request,
            self.now,
        )?;
        let (opening, claude) = tokio::join!(
            Box::pin(self.open(&admission)),
            api_keys::fresh_pool(&self.app)
        );
        let granted = match opening? {
            Opening::Replay {
                reply,
                plan,
                quota,
                voices,
            } => {
                // What few replies come to is on the heap: it would lie beside every reply that is relayed.
                Box::pin(self.replay(reply, plan.model(&models), quota, &voices, tell)).await?;
                return Ok(None);
            }
            Opening::Ask(granted) => granted,
        };
        let claude = match claude {
            Ok(claude) => claude,
            Err(error) => {
                Box::pin(admission.give_back()).await;
                return Err(error);
            }
        };
        let Granted {
            gate,
            system,
            recap,
            turns,
            voices,
            memory,
        } = granted;
        let plan = gate.plan();
        let prompt = Prompt {
            model: plan.model(&models).to_owned(),
            max_tokens: plan.max_output_tokens(),
            system,
            summary_block: recap,
            turns,
            user_id: self.session.claims.sub.to_string(),
        };
        let route = Route {
            conversation: self.discussion,
            fallback: plan.fallback(&models, self.now),
        };
        let record = Record::new(
            self,
            gate,
            claude.likely_key(self.discussion),
            &prompt.model,
        );
        let length = prompt::bytes(&prompt.system, &prompt.summary_block, &prompt.turns);
        let (reply_id, mut looks) = (record.reply_id, stop::looks());
        let mut reply = Reply {
            asked: self,
            admission,
            gate,
            voices,
            taken: 0,
            length,
            record,
            text: String::new(),
            first_text: None,
        };
        let called = {
            // What beginning takes is given back before the reply is relayed, which is most of a producer's life.
            let call = Box::pin(reply.begin_and_call(claude, &prompt, &route));
            tokio::select! {
                called = call => Some(called),
                () = Box::pin(stop::wanted(&self.app, reply_id, &mut looks)) => None,
            }
        };
        drop(prompt);
        let question = reply.record.message.id;
        let reply = match called {
            Some(Err(refused)) => {
                Box::pin(reply.admission.give_back()).await;
                return Err(refused);
            }
            Some(Ok(Err(failed))) => {
                let spent = if failed.may_be_billed() {
                    Spent::unanswered(length)
                } else {
                    Spent::default()
                };
                let (_, _, failure) = Box::pin(reply.end(Ending::Broken(failed), spent)).await?;
                return Err(failure.unwrap_or(INTERRUPTED));
            }
            Some(Ok(Ok(stream))) => reply.relay(stream, looks, tell).await?,
            None => Box::pin(reply.stop_unanswered(tell)).await?,
        };
        Ok(Some(Answered {
            gate,
            memory,
            question,
            reply,
        }))
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
        let start = Start {
            message,
            reply_id: reply.id,
            model,
            quota,
            replayed: true,
        };
        let failure =
            (!matches!(reply.status.as_str(), "complete" | "stopped")).then_some(INTERRUPTED);
        let text = Some(reply.content.clone())
            .filter(|text| !text.is_empty())
            .map(Event::Delta);
        let (start, end) = (
            Event::Start(Box::new(start)),
            Event::End(Box::new(End {
                reply,
                quota,
                failure,
            })),
        );
        for event in [Some(start), text, Some(end)].into_iter().flatten() {
            let _gone = tell.send(event);
        }
        Ok(())
    }
}
