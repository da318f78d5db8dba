//! A reply on the wire: its events in their order, the faults among them, and the same as one JSON answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use claude::Usage;
use futures_util::{Stream, stream};
use serde_json::{Value, json};

use super::behaviour::{Behaviour, Script};
use super::cache::count;
use super::request::Asked;
use super::{Cancelled, Shared, prose};

/// Tokens that a model thinks where it is let; nobody sees them, and they are billed.
const THINKING_TOKENS: u32 = 40;

/// One thing the stand-in does while it streams.
enum Step {
    Send(Bytes),
    Pace,
    Hold,
    Stall,
    Cut,
}

/// A reply with all that is decided before its first byte.
pub(super) struct Reply {
    id: String,
    model: String,
    pieces: Vec<String>,
    thinking_tokens: u32,
    usage: Usage,
    behaviour: Behaviour,
    stop_reason: &'static str,
}

impl Reply {
    pub(super) fn plan(id: String, asked: &Asked, script: Script, prompt: Usage) -> Self {
        let text = script
            .text
            .unwrap_or_else(|| prose::argue(&asked.system, &asked.last, asked.turns));
        let mut pieces: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
        let mut stop_reason = "end_turn";
        match script.behaviour {
            Behaviour::MaxTokens => {
                pieces.truncate(pieces.len().div_ceil(2));
                stop_reason = "max_tokens";
            }
            Behaviour::Refusal => {
                pieces.truncate(2);
                stop_reason = "refusal";
            }
            Behaviour::OnlyThinking => pieces.clear(),
            _ => {}
        }
        let thinks = asked.thinks || script.behaviour == Behaviour::OnlyThinking;
        let thinking_tokens = if thinks { THINKING_TOKENS } else { 0 };
        let mut output = thinking_tokens;
        if let Some(at) = pieces.iter().position(|piece| {
            output += count(piece);
            output > asked.max_tokens
        }) {
            pieces.truncate(at);
            output = asked.max_tokens;
            stop_reason = "max_tokens";
        }
        let usage = script.usage.unwrap_or(Usage { output, ..prompt });
        let (model, behaviour) = (asked.model.clone(), script.behaviour);
        Self {
            id,
            model,
            pieces,
            thinking_tokens,
            usage,
            behaviour,
            stop_reason,
        }
    }

    /// The answer without streaming.
    pub(super) fn whole(&self) -> Value {
        let thought = json!({"type": "thinking", "thinking": "", "signature": "c2lnbmVk"});
        let text = json!({"type": "text", "text": self.pieces.concat(), "citations": null});
        let content: Vec<Value> = match (self.thinking_tokens, &self.behaviour) {
            (_, Behaviour::OnlyThinking) => vec![thought],
            (0, _) => vec![text],
            _ => vec![thought, text],
        };
        let mut message = self.message(self.usage.output);
        message["content"] = content.into();
        message["stop_reason"] = self.stop_reason.into();
        message["stop_details"] = self.stop_details();
        message
    }

    /// The event stream. Each chunk is flushed before the next step, so that a cut loses nothing before it.
    pub(super) fn stream(
        self,
        shared: Arc<Shared>,
        pace: Duration,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let watch = Cancelled::watch(&shared);
        let steps = self.steps().into_iter();
        stream::unfold(
            (steps, shared, watch),
            move |(mut steps, shared, mut watch)| async move {
                loop {
                    match steps.next() {
                        Some(Step::Send(bytes)) => {
                            tokio::task::yield_now().await;
                            return Some((Ok(bytes), (steps, shared, watch)));
                        }
                        Some(Step::Pace) if pace.is_zero() => {}
                        Some(Step::Pace) => tokio::time::sleep(pace).await,
                        Some(Step::Hold) => shared.held().await,
                        Some(Step::Stall) => std::future::pending().await,
                        Some(Step::Cut) => {
                            tokio::task::yield_now().await;
                            watch.served();
                            return Some((
                                Err(io::Error::other("cut on purpose")),
                                (steps, shared, watch),
                            ));
                        }
                        None => {
                            watch.served();
                            return None;
                        }
                    }
                }
            },
        )
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![send(
            "message_start",
            json!({"message": self.message(self.usage.output.min(1))}),
        )];
        let strange = self.behaviour == Behaviour::Strange;
        if strange {
            steps.push(send("weather_report", json!({"sky": {"clouds": [1, 2]}})));
            steps.push(Step::Send("event: gossip\ndata: not even JSON\n\n".into()));
            steps.push(block_start(0, json!({"type": "hologram", "text": 7})));
            steps.push(delta(0, json!({"type": "hologram_delta", "text": ["x"]})));
            steps.push(block_stop(0));
        }
        let mut index = usize::from(strange);
        if self.thinking_tokens > 0 {
            steps.push(block_start(
                index,
                json!({"type": "thinking", "thinking": "", "signature": ""}),
            ));
            steps.push(delta(
                index,
                json!({"type": "thinking_delta", "thinking": "A hard question."}),
            ));
            steps.push(delta(
                index,
                json!({"type": "signature_delta", "signature": "c2lnbmVk"}),
            ));
            steps.push(block_stop(index));
            index += 1;
        }
        if self.behaviour != Behaviour::OnlyThinking {
            steps.push(block_start(
                index,
                json!({"type": "text", "text": "", "citations": null}),
            ));
            steps.push(send("ping", json!({})));
            let mut fault = self.fault();
            for (at, piece) in self.pieces.iter().enumerate() {
                if let Some((_, steps_of_fault)) = fault.take_if(|(after, _)| *after == at) {
                    steps.extend(steps_of_fault);
                    if matches!(self.behaviour, Behaviour::Error { .. }) {
                        return steps;
                    }
                }
                if at > 0 {
                    steps.push(Step::Pace);
                }
                steps.push(delta(index, json!({"type": "text_delta", "text": piece})));
                if strange {
                    steps.push(delta(index, json!({"type": "smell_delta", "text": 7})));
                    steps.push(send("ping", json!({})));
                }
            }
            if let Some((_, steps_of_fault)) = fault {
                steps.extend(steps_of_fault);
                if matches!(self.behaviour, Behaviour::Error { .. }) {
                    return steps;
                }
            }
            steps.push(block_stop(index));
        }
        if strange {
            steps.push(self.message_delta(None, self.usage.output / 2));
        }
        steps.push(self.message_delta(Some(self.stop_reason), self.usage.output));
        steps.push(send("message_stop", json!({})));
        steps
    }

    /// The fault with the number of deltas before it, at most those there are.
    fn fault(&self) -> Option<(usize, Vec<Step>)> {
        let (after, steps) = match self.behaviour {
            Behaviour::Stall { after } => (after, vec![Step::Stall]),
            Behaviour::Cut { after } => (after, vec![Step::Cut]),
            Behaviour::Hold { after } => (after, vec![Step::Hold]),
            Behaviour::Malformed { after } => {
                let broken = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"te\n\n";
                (after, vec![Step::Send(broken.into())])
            }
            Behaviour::Error { after } => {
                let error = json!({"error": {"type": "overloaded_error", "message": "Overloaded", "details": null}});
                (after, vec![send("error", error)])
            }
            _ => return None,
        };
        Some((after.min(self.pieces.len()), steps))
    }

    fn message(&self, output_tokens: u32) -> Value {
        let mut usage = self.prompt_usage(output_tokens);
        usage["cache_creation"] = json!({
            "ephemeral_5m_input_tokens": self.usage.cache_write_5m,
            "ephemeral_1h_input_tokens": self.usage.cache_write_1h,
        });
        usage["service_tier"] = "standard".into();
        usage["inference_geo"] = "global".into();
        usage["speed"] = "standard".into();
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "container": null, "diagnostics": null, "stop_reason": null, "stop_sequence": null,
            "stop_details": null, "usage": usage,
        })
    }

    fn message_delta(&self, stop_reason: Option<&str>, output_tokens: u32) -> Step {
        let stop_details = if stop_reason.is_some() {
            self.stop_details()
        } else {
            Value::Null
        };
        let delta = json!({
            "container": null, "stop_details": stop_details, "stop_reason": stop_reason, "stop_sequence": null,
        });
        send(
            "message_delta",
            json!({"delta": delta, "usage": self.prompt_usage(output_tokens)}),
        )
    }

    fn prompt_usage(&self, output_tokens: u32) -> Value {
        let thinking = self.thinking_tokens.min(output_tokens);
        json!({
            "input_tokens": self.usage.input,
            "cache_creation_input_tokens": u64::from(self.usage.cache_write_5m) + u64::from(self.usage.cache_write_1h),
            "cache_read_input_tokens": self.usage.cache_read,
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": thinking},
            "server_tool_use": null,
        })
    }

    fn stop_details(&self) -> Value {
        match self.behaviour {
            Behaviour::Refusal => {
                json!({"type": "refusal", "category": "general_harms", "explanation": null})
            }
            _ => Value::Null,
        }
    }
}

fn send(name: &str, mut data: Value) -> Step {
    data["type"] = name.into();
    Step::Send(format!("event: {name}\ndata: {data}\n\n").into())
}

fn block_start(index: usize, block: Value) -> Step {
    send(
        "content_block_start",
        json!({"index": index, "content_block": block}),
    )
}

fn delta(index: usize, delta: Value) -> Step {
    send(
        "content_block_delta",
        json!({"index": index, "delta": delta}),
    )
}

fn block_stop(index: usize) -> Step {
    send("content_block_stop", json!({"index": index}))
}
