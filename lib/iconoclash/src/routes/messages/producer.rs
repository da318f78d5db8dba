//! The producer of a reply: background work that is registered with the platform.
//!
//! It calls Claude, saves the text as it arrives and ends the reply on every path, whether or not the client stays.

use claude::{Pool, Route};

use super::{
    events::{End, Event, EventSender, Start},
    follow_ups::{self, CompletedTurn},
    message::{INTERRUPTED, message_and_reply},
    preflight::{self, ApprovedRequest, Preflight, Replay},
    reply::{CallOutcome, Reply},
    request::SendRequest,
    resume::{self, ReplyFollower},
    stop,
};
use crate::{
    api_keys,
    conversation::history::MessageStatus,
    http::{error::Result, request_log},
    spending::admission::Admission,
};

/// Answers the request to the end. The client may leave at any time; the reply is saved.
pub(super) async fn run(request: SendRequest, tx: EventSender) {
    let app = request.app.clone();
    // Owns `tx`, so the response ends with the answer and never waits for background work.
    let work = async move {
        // Boxed: inline, this future would reserve space for every step at once.
        let answer = Box::pin(request_log::with_request_log(answer(&request, &tx)));
        match answer.await {
            Err(refusal) => tx.send(Event::refused(refusal)),
            Ok(None) => {}
            Ok(Some(turn)) => {
                // The stream ends before the follow-ups begin.
                drop(tx);
                let follow_ups = follow_ups::run(&request, turn);
                Box::pin(request_log::with_request_log(follow_ups)).await;
            }
        }
    };

    Box::pin(api_keys::run_with_key_sync(&app, Box::pin(work))).await;
}

/// Returns the turn for the follow-ups, if there is one.
async fn answer(request: &SendRequest, tx: &EventSender) -> Result<Option<CompletedTurn>> {
    let app = &request.app;
    let admission = Admission::new(
        app,
        &request.subject,
        &request.session,
        request.id,
        request.now,
    )?;

    let preflight = Box::pin(preflight::run(request, &admission));
    let (preflight, claude) = tokio::join!(preflight, api_keys::fresh_pool(app));
    let approved = match preflight? {
        Preflight::Proceed(approved) => approved,
        Preflight::Replay(replay) => {
            // Boxed because replays are rare and would enlarge every reply's future.
            Box::pin(send_replay(request, *replay, tx)).await?;
            return Ok(None);
        }
        Preflight::Follow(replay) => {
            Box::pin(follow(request, *replay, tx)).await?;
            return Ok(None);
        }
    };

    match claude {
        Ok(claude) => call_and_relay(request, admission, *approved, claude, tx).await,
        Err(error) => {
            Box::pin(admission.release()).await;
            Err(error)
        }
    }
}

async fn call_and_relay(
    request: &SendRequest,
    admission: Admission<'_>,
    approved: ApprovedRequest,
    claude: &Pool,
    tx: &EventSender,
) -> Result<Option<CompletedTurn>> {
    let ApprovedRequest {
        permit,
        prompt,
        prompt_bytes,
        speakers,
        state,
    } = approved;
    let models = request.app.config().models()?;
    let route = Route {
        conversation: request.discussion,
        fallback: permit.plan().fallback(models, request.now),
    };
    let likely_key = claude.likely_key(request.discussion);
    let mut reply = Reply::new(request, admission, permit, &prompt.model, likely_key);
    reply.speakers = speakers;
    reply.prompt_bytes = prompt_bytes;

    let reply_id = reply.rows.reply_id;
    let message_id = reply.rows.message.id;
    let mut poll_timer = stop::poll_timer();
    let outcome = {
        // Dropped before the reply is relayed, which takes most of a producer's life.
        let call = Box::pin(reply.begin_and_call(claude, &prompt, &route));
        let stop = Box::pin(stop::wait_for_stop(&request.app, reply_id, &mut poll_timer));
        tokio::select! {
            outcome = call => outcome,
            () = stop => CallOutcome::Stopped,
        }
    };
    drop(prompt);

    let reply = match outcome {
        CallOutcome::Streaming(stream) => reply.relay(*stream, poll_timer, tx).await?,
        CallOutcome::Stopped => Box::pin(reply.stop_unanswered(tx)).await?,
        CallOutcome::Failed(error) => return Err(Box::pin(reply.fail(error)).await),
        CallOutcome::Refused(error) => {
            Box::pin(reply.admission.release()).await;
            return Err(error);
        }
        CallOutcome::RefusedLate(error, usage) => {
            // The client does not wait for the booking.
            tx.send(Event::refused(error));
            Box::pin(reply.book_refused(usage)).await;
            return Ok(None);
        }
    };
    Ok(Some(CompletedTurn {
        permit,
        state,
        message_id,
        reply,
    }))
}

/// Sends the running answer of an earlier request, from where the client left it.
async fn follow(request: &SendRequest, replay: Replay, tx: &EventSender) -> Result<()> {
    let follower = ReplyFollower {
        app: request.app.clone(),
        subject: request.subject.clone(),
        plan: replay.plan,
        reply: replay.reply,
        discussion: request.discussion,
        speakers: replay.speakers,
        position: resume::position_of(request.last_event_id),
    };
    let start = follower.start().await?;

    tx.send(Event::start(Start {
        replayed: true,
        resumed: true,
        ..start
    }));
    follower.run(tx).await;
    Ok(())
}

/// Sends the answer of an earlier request again.
async fn send_replay(request: &SendRequest, replay: Replay, tx: &EventSender) -> Result<()> {
    let quota = replay.quota;
    let (message, reply) = message_and_reply(&request.app, replay.reply).await?;
    let reply = reply.with_speakers(&replay.speakers);

    let model = match &reply.model {
        Some(model) => model.clone(),
        None => {
            let models = request.app.config().models()?;
            replay.plan.model(models).to_owned()
        }
    };
    tx.send(Event::start(Start {
        message,
        reply_id: reply.id,
        model,
        quota,
        replayed: true,
        resumed: false,
    }));
    if !reply.content.is_empty() {
        tx.send(Event::Delta(reply.content.clone()));
    }

    let is_whole = matches!(
        reply.status,
        MessageStatus::Complete | MessageStatus::Stopped
    );
    let failure = (!is_whole).then_some(INTERRUPTED);
    tx.send(Event::end(End {
        reply,
        quota,
        failure,
    }));
    Ok(())
}
