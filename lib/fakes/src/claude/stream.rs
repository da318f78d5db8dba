//! A reply as an event stream, with its faults at their places.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::{Value, json};

use super::behaviour::Behaviour;
use super::reply::Reply;
use super::{CancelGuard, Shared};

/// Time in which the head of an answer is sent.
const HEAD_SENT: Duration = Duration::from_millis(20);

/// One step of a stream.
enum Step {
    Send(Bytes),
    Pause,
    Hold,
    Stall,
    Cut,
}

/// The event stream of a reply.
///
/// Each chunk is flushed before the next step, so that a cut loses nothing of the text before it.
pub(super) fn events(
    reply: Reply,
    shared: Arc<Shared>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let guard = CancelGuard::new(&shared);
    let steps = steps(&reply).into_iter();

    stream::unfold(
        (steps, shared, guard),
        async |(mut steps, shared, mut guard)| {
            loop {
                let chunk = match steps.next() {
                    Some(Step::Send(bytes)) => Ok(bytes),
                    Some(Step::Cut) => {
                        guard.served();
                        Err(io::Error::other("cut on purpose"))
                    }
                    Some(waiting) => {
                        wait(&waiting, &shared).await;
                        continue;
                    }
                    None => {
                        guard.served();
                        return None;
                    }
                };

                tokio::task::yield_now().await;
                return Some((chunk, (steps, shared, guard)));
            }
        },
    )
}

/// A body that breaks off after its head was sent.
pub(super) fn cut() -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::once(async {
        tokio::time::sleep(HEAD_SENT).await;
        Err(io::Error::other("cut on purpose"))
    })
}

async fn wait(step: &Step, shared: &Shared) {
    match step {
        Step::Pause if !shared.pace.is_zero() => tokio::time::sleep(shared.pace).await,
        Step::Hold => shared.wait_for_release().await,
        Step::Stall => std::future::pending().await,
        Step::Pause | Step::Send(_) | Step::Cut => {}
    }
}

fn steps(reply: &Reply) -> Vec<Step> {
    let output = reply.usage.output;
    let strange = reply.behaviour == Behaviour::Strange;
    let mut index = 0;

    let message = reply.message(output.min(1));
    let mut steps = vec![send("message_start", json!({ "message": message }))];
    if strange {
        steps.extend(unknown_events(index));
        index += 1;
    }
    if reply.thinking_tokens > 0 {
        steps.extend(thinking_block(index));
        index += 1;
    }
    if reply.behaviour != Behaviour::OnlyThinking {
        steps.extend(text_block(index, reply));
        if matches!(reply.behaviour, Behaviour::Error { .. }) {
            return steps;
        }
    }

    if strange {
        steps.push(message_delta(reply, None, output / 2));
    }
    steps.push(message_delta(reply, Some(reply.stop_reason), output));
    steps.push(send("message_stop", json!({})));

    steps
}

/// Events and a block of types that no client knows.
fn unknown_events(index: usize) -> [Step; 5] {
    [
        send("weather_report", json!({"sky": {"clouds": [1, 2]}})),
        Step::Send("event: gossip\ndata: not even JSON\n\n".into()),
        block_start(index, json!({"type": "hologram", "text": 7})),
        delta(index, json!({"type": "hologram_delta", "text": ["x"]})),
        block_stop(index),
    ]
}

fn thinking_block(index: usize) -> [Step; 4] {
    let thinking = json!({"type": "thinking_delta", "thinking": "A hard question."});
    let signature = json!({"type": "signature_delta", "signature": "c2lnbmVk"});

    [
        block_start(
            index,
            json!({"type": "thinking", "thinking": "", "signature": ""}),
        ),
        delta(index, thinking),
        delta(index, signature),
        block_stop(index),
    ]
}

/// The text with the fault at its place; an error ends the stream there.
fn text_block(index: usize, reply: &Reply) -> Vec<Step> {
    let empty = json!({"type": "text", "text": "", "citations": null});
    let mut steps = vec![block_start(index, empty), send("ping", json!({}))];

    let fault_at = fault_position(reply);
    for (at, piece) in reply.pieces.iter().enumerate() {
        if fault_at == Some(at) {
            steps.extend(fault(reply));
            if matches!(reply.behaviour, Behaviour::Error { .. }) {
                return steps;
            }
        }
        if at > 0 {
            steps.push(Step::Pause);
        }

        steps.push(delta(index, json!({"type": "text_delta", "text": piece})));
        if reply.behaviour == Behaviour::Strange {
            steps.push(delta(index, json!({"type": "smell_delta", "text": 7})));
            steps.push(send("ping", json!({})));
        }
    }

    if fault_at == Some(reply.pieces.len()) {
        steps.extend(fault(reply));
    }
    if !matches!(reply.behaviour, Behaviour::Error { .. }) {
        steps.push(block_stop(index));
    }
    steps
}

/// The number of deltas before the fault, at most all of them.
fn fault_position(reply: &Reply) -> Option<usize> {
    match reply.behaviour {
        Behaviour::Stall { after }
        | Behaviour::Cut { after }
        | Behaviour::Hold { after }
        | Behaviour::Malformed { after }
        | Behaviour::Error { after } => Some(after.min(reply.pieces.len())),
        _ => None,
    }
}

fn fault(reply: &Reply) -> Option<Step> {
    match reply.behaviour {
        Behaviour::Stall { .. } => Some(Step::Stall),
        Behaviour::Cut { .. } => Some(Step::Cut),
        Behaviour::Hold { .. } => Some(Step::Hold),
        Behaviour::Malformed { .. } => {
            let broken = "event: content_block_delta\n\
                          data: {\"type\":\"content_block_delta\",\"delta\":{\"te\n\n";
            Some(Step::Send(broken.into()))
        }
        Behaviour::Error { .. } => {
            let error =
                json!({"type": "overloaded_error", "message": "Overloaded", "details": null});
            Some(send("error", json!({ "error": error })))
        }
        _ => None,
    }
}

fn message_delta(reply: &Reply, stop_reason: Option<&str>, output_tokens: u32) -> Step {
    let stop_details = match stop_reason {
        Some(_) => reply.stop_details(),
        None => Value::Null,
    };
    let delta = json!({
        "container": null,
        "stop_details": stop_details,
        "stop_reason": stop_reason,
        "stop_sequence": null,
    });

    let usage = reply.usage_json(output_tokens);
    send("message_delta", json!({"delta": delta, "usage": usage}))
}

fn block_start(index: usize, block: Value) -> Step {
    let data = json!({"index": index, "content_block": block});
    send("content_block_start", data)
}

fn delta(index: usize, delta: Value) -> Step {
    let data = json!({"index": index, "delta": delta});
    send("content_block_delta", data)
}

fn block_stop(index: usize) -> Step {
    send("content_block_stop", json!({ "index": index }))
}

fn send(name: &str, mut data: Value) -> Step {
    data["type"] = name.into();
    Step::Send(format!("event: {name}\ndata: {data}\n\n").into())
}
