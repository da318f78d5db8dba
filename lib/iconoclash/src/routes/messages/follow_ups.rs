//! Background calls after a reply: a better title after the first one, and a summary of a long conversation.
//!
//! The small model makes them under the same budgets as the reply. Without room, or after a failure, only the title or a
//! cheaper prompt is lost.

use claude::{Pool, Prompt, Route};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{message::Message, preflight::ConversationState, request::SendRequest};
use crate::{
    conversation::{
        history::{HistoryMessage, MessageRole},
        prompt, summary, title,
    },
    http::{
        error::{Error, Result},
        request_log,
    },
    spending::{
        admission::{
            Permit,
            background::{BackgroundHold, max_cost},
        },
        ledger::{self, CallResult, Kind, NewCall, Outcome, Settlement},
        usage::UsageReport,
    },
};

/// A message and its reply, and the conversation before them.
pub(super) struct CompletedTurn {
    pub(super) permit: Permit,
    pub(super) state: ConversationState,
    pub(super) message_id: Uuid,
    pub(super) reply: Message,
}

/// What a background call is for.
#[derive(Clone, Copy)]
enum Task {
    Title,
    /// A summary up to this message.
    Summary {
        until: Uuid,
    },
}

impl Task {
    fn kind(self) -> Kind {
        match self {
            Self::Title => Kind::Title,
            Self::Summary { .. } => Kind::Summary,
        }
    }
}

/// Makes the calls that are due.
pub(super) async fn run(request: &SendRequest, turn: CompletedTurn) {
    let Ok(models) = request.app.config().models.clone() else {
        return;
    };
    let small = &models.small;
    let user_id = request.session.claims.sub.to_string();
    let CompletedTurn {
        permit,
        state,
        message_id,
        reply,
    } = turn;
    let is_first = is_first_exchange(&state);

    let mut history = state.history;
    let content = request.content.as_str();
    history.push(HistoryMessage::complete(
        message_id,
        MessageRole::User,
        content,
    ));
    let content = reply.content.as_str();
    history.push(HistoryMessage::complete(
        reply.id,
        MessageRole::Assistant,
        content,
    ));

    if state.title_made && is_first && !reply.content.is_empty() {
        let exchange = &history[history.len() - 2..];
        let prompt = title::prompt(small, &user_id, state.topic.as_deref(), exchange);
        BackgroundCall::new(request, Task::Title, &prompt, &permit, reply.id)
            .run()
            .await;
    }
    if let Some((older, until)) = summary::needs_summary(&history) {
        let prompt = summary::prompt(small, &user_id, state.summary.as_deref(), older);
        BackgroundCall::new(request, Task::Summary { until }, &prompt, &permit, reply.id)
            .run()
            .await;
    }
}

fn is_first_exchange(state: &ConversationState) -> bool {
    let has_reply = state
        .history
        .iter()
        .any(|message| message.role == MessageRole::Assistant && !message.content.is_empty());
    state.summary.is_none() && !has_reply
}

/// One call of the small model, with its hold and its row in the ledger.
struct BackgroundCall<'a> {
    request: &'a SendRequest,
    task: Task,
    prompt: &'a Prompt,
    permit: &'a Permit,
    reply: Uuid,
    /// The call's own id in the ledger.
    id: Uuid,
    now: OffsetDateTime,
    prompt_bytes: usize,
    max_cost: i64,
}

impl<'a> BackgroundCall<'a> {
    fn new(
        request: &'a SendRequest,
        task: Task,
        prompt: &'a Prompt,
        permit: &'a Permit,
        reply: Uuid,
    ) -> Self {
        let now = request.app.now();
        let prompt_bytes = prompt::bytes(&prompt.system, &prompt.summary_block, &prompt.turns);

        Self {
            request,
            task,
            prompt,
            permit,
            reply,
            id: request.app.new_id(),
            now,
            prompt_bytes,
            max_cost: max_cost(&prompt.model, prompt_bytes, prompt.max_tokens, now),
        }
    }

    async fn run(&self) {
        let kind = self.task.kind().as_str();
        let request = self.request.id;
        match self.call().await {
            Ok(Some(cost_microusd)) => {
                tracing::info!(request.id = %request, kind, cost_microusd, "background call");
            }
            Ok(None) => {
                tracing::info!(request.id = %request, kind, "no budget for a background call");
            }
            Err(error) => {
                let cause = error.cause();
                tracing::warn!(request.id = %request, kind, cause, "background call");
            }
        }
    }

    /// Makes the call and returns its cost, or `None` without room in the budgets.
    async fn call(&self) -> Result<Option<i64>> {
        let app = &self.request.app;
        let claude = app.claude()?;
        let subject = &self.request.subject;
        let hold =
            BackgroundHold::reserve(app, subject, self.permit, self.id, self.now, self.max_cost);
        let Some(hold) = hold.await? else {
            return Ok(None);
        };

        let begun = self.begin(claude).await;
        if !matches!(begun, Ok(true)) {
            hold.settle(app, 0).await?;
            return begun.map(|_| None);
        }

        let completion = self.ask(claude).await;
        let cost = self.settle(&completion).await?;
        hold.settle(app, cost).await?;
        match completion.failure {
            Some(failure) => Err(Error::unavailable(failure)),
            None => Ok(Some(cost)),
        }
    }

    /// Writes the call's row. Returns false where the ledger has no room.
    async fn begin(&self, claude: &Pool) -> Result<bool> {
        let likely_key = claude.likely_key(self.request.discussion);
        let call = NewCall {
            request: self.id,
            kind: self.task.kind(),
            user: Some(self.request.session.claims.sub),
            reply: self.reply,
            subject: self.request.subject.as_str(),
            plan: self.permit.plan(),
            model: &self.prompt.model,
            key_label: &likely_key,
            max_cost: self.max_cost,
            counted: false,
            now: self.now,
        };
        let limits = ledger::Limits {
            messages: None,
            burst_interval_ms: 0,
            burst_tolerance_ms: None,
            ..self.permit.limits
        };

        match ledger::begin(self.request.app.db()?, &call, &limits, None).await {
            Ok(begun) => Ok(begun.is_some()),
            Err(limit) if limit.constraint().is_some() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn ask(&self, claude: &Pool) -> Completion {
        let route = Route {
            conversation: self.request.discussion,
            fallback: None,
        };
        let deadline = Instant::now() + self.request.app.config().timeouts.background_call;

        match timeout_at(deadline, claude.ask(self.prompt, &route)).await {
            Ok(Ok(stream)) => {
                Completion::read(claude, stream, self.prompt.max_tokens, deadline).await
            }
            Ok(Err(error)) => Completion {
                usage: UsageReport::of_failure(&error, self.prompt_bytes),
                failure: Some(request_log::error_chain(&error)),
                ..Completion::default()
            },
            Err(_) => Completion {
                usage: UsageReport::unanswered(self.prompt_bytes),
                failure: Some(TOO_LATE.to_owned()),
                ..Completion::default()
            },
        }
    }

    /// Writes the cost and the result, and returns the cost.
    async fn settle(&self, completion: &Completion) -> Result<i64> {
        let discussion = self.request.discussion;
        let text = completion.usable_text();
        let title = text.and_then(title::parse);
        let result = match self.task {
            Task::Title => CallResult::Title {
                discussion,
                title: title.as_deref(),
            },
            Task::Summary { until } => CallResult::Summary {
                discussion,
                summary: text,
                until,
            },
        };
        let outcome = match completion.failure {
            Some(_) => Outcome::Failed,
            None => Outcome::Complete,
        };

        let settlement = Settlement {
            request: self.id,
            outcome,
            counted: false,
            burst_ms: 0,
            usage: &completion.usage,
            model: &self.prompt.model,
            key_label: completion.key_label.as_deref(),
            began_at: self.now,
            now: self.request.app.now(),
            result,
        };
        let cost = ledger::settle(self.request.app.db()?, &settlement).await?;
        Ok(cost.unwrap_or(self.max_cost))
    }
}

/// The answer of the small model.
#[derive(Default)]
struct Completion {
    text: String,
    usage: UsageReport,
    failure: Option<String>,
    /// The key that answered.
    key_label: Option<String>,
}

const TOO_LATE: &str = "no answer in time";

impl Completion {
    async fn read(
        claude: &Pool,
        mut stream: claude::Reply,
        max_tokens: u32,
        deadline: Instant,
    ) -> Self {
        let mut text = String::new();
        let whole = async {
            while let Some(piece) = stream.next().await? {
                text.push_str(&piece);
            }
            Ok::<_, claude::Error>(())
        };

        let failure = match timeout_at(deadline, whole).await {
            Ok(Ok(())) if stream.stop_reason() == Some("refusal") => Some("refused".to_owned()),
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                claude.record_broken_stream(&stream, &error);
                Some(request_log::error_chain(&error))
            }
            Err(_) => Some(TOO_LATE.to_owned()),
        };
        Self {
            usage: UsageReport::of_stream(&stream, &text, max_tokens),
            text,
            failure,
            key_label: Some(stream.key_label().to_owned()),
        }
    }

    /// The text, unless the call failed or Postgres could not store it.
    fn usable_text(&self) -> Option<&str> {
        let text = self.text.trim();
        let is_usable = self.failure.is_none() && !text.is_empty() && !text.contains('\0');
        is_usable.then_some(text)
    }
}
