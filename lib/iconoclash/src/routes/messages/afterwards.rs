//! What is done when a reply has ended and nobody waits any more: a better title after the first, a summary of the older
//! part where the conversation has become long. A small model does it, under the same budgets as the reply; where there
//! is no room, or it fails, nothing is lost but the title or a cheaper prompt.

use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{Message, producer::Asked, record::Spent};
use crate::conversation::{
    prompt::{self, Past},
    summary, title,
};
use claude::{self, Pool, Prompt, Route};
use pooled_postgres::{ToSql, sql_positional};

use crate::{
    clock::{month_start, utc_day},
    http::{
        error::{Error, Result},
        request_log,
    },
    spending::{
        admission::{
            Gate,
            aside::{self, Aside},
        },
        price,
    },
};

/// What a discussion was when its message was answered.
pub(super) struct Memory {
    pub(super) topic: Option<String>,
    /// Whether its title was not the user's.
    pub(super) title_made: bool,
    pub(super) summary: Option<String>,
    /// What was said since the summary.
    pub(super) past: Vec<Past>,
}

/// A message and its reply.
pub(super) struct Answered {
    pub(super) gate: Gate,
    pub(super) memory: Memory,
    pub(super) question: Uuid,
    pub(super) reply: Message,
}

/// What is asked for, and what becomes of the answer.
#[derive(Clone, Copy)]
enum Task {
    Title,
    Summary { until: Uuid },
}

impl Task {
    fn kind(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Summary { .. } => "summary",
        }
    }
}

impl Asked {
    /// Does what there is to do.
    pub(super) async fn afterwards(&self, answered: Answered) {
        let Answered {
            gate,
            memory:
                Memory {
                    topic,
                    title_made,
                    summary,
                    mut past,
                },
            question,
            reply,
        } = answered;
        let Ok(models) = self.app.config().models.clone() else {
            return;
        };
        let user_id = self.session.claims.sub.to_string();
        let is_first = past
            .iter()
            .all(|message| message.role == "user" || message.content.is_empty());
        let said = |id, role: &str, content: &str| {
            let (role, content) = (role.to_owned(), content.to_owned());
            Past {
                id,
                role,
                status: "complete".to_owned(),
                content,
            }
        };
        past.push(said(question, "user", &self.content));
        past.push(said(reply.id, "assistant", &reply.content));
        if title_made && is_first && summary.is_none() && !reply.content.is_empty() {
            let newest = &past[past.len() - 2..];
            let prompt = title::prompt(&models.small, &user_id, topic.as_deref(), newest);
            self.aside(Task::Title, &prompt, &gate, reply.id).await;
        }
        if let Some((older, until)) = summary::due(&past) {
            let prompt = summary::prompt(&models.small, &user_id, summary.as_deref(), older);
            self.aside(Task::Summary { until }, &prompt, &gate, reply.id)
                .await;
        }
    }

    async fn aside(&self, task: Task, prompt: &Prompt, gate: &Gate, reply: Uuid) {
        let kind = task.kind();
        match self.try_aside(task, prompt, gate, reply).await {
            Ok(Some(cost_microusd)) => {
                tracing::info!(request.id = %self.request, kind, cost_microusd, "aside")
            }
            Ok(None) => tracing::info!(request.id = %self.request, kind, "no room for an aside"),
            Err(error) => {
                tracing::warn!(request.id = %self.request, kind, cause = error.cause(), "aside")
            }
        }
    }

    /// One call under the budgets; none where they have no room. Says what it cost.
    async fn try_aside(
        &self,
        task: Task,
        prompt: &Prompt,
        gate: &Gate,
        reply: Uuid,
    ) -> Result<Option<i64>> {
        let (app, request, now) = (&self.app, self.app.new_id(), self.app.now());
        let claude = app.claude()?;
        let bytes = prompt::bytes(&prompt.system, &prompt.recap, &prompt.turns);
        let most = aside::most(&prompt.model, bytes, prompt.max_tokens, now);
        let Some(hold) = Aside::hold(app, &self.subject, gate, (request, now), most).await? else {
            return Ok(None);
        };
        let likely_key = claude.likely_key(self.discussion);
        let begun = self
            .begin_aside(task, prompt, &likely_key, gate, (request, now, reply, most))
            .await;
        if !matches!(begun, Ok(true)) {
            hold.settle(app, 0).await?;
            return begun.map(|_| None);
        }
        let route = Route {
            conversation: self.discussion,
            fallback: None,
        };
        let by = Instant::now() + app.config().timeouts.background_call;
        let heard = match timeout_at(by, claude.ask(prompt, &route)).await {
            Ok(Ok(stream)) => Heard::listen(claude, stream, prompt.max_tokens, by).await,
            Ok(Err(failed)) => Heard {
                failure: Some(request_log::error_chain(&failed)),
                ..Heard::default()
            },
            Err(_) => Heard {
                spent: Spent::unanswered(bytes),
                failure: Some(LATE.to_owned()),
                ..Heard::default()
            },
        };
        let cost = self.end_aside(task, prompt, &heard, request).await?;
        hold.settle(app, cost).await?;
        match heard.failure {
            Some(failure) => Err(Error::unavailable(failure)),
            None => Ok(Some(cost)),
        }
    }

    /// Writes that the call is made, with the most that it can cost; not where the ledger says that there is no room.
    async fn begin_aside(
        &self,
        task: Task,
        prompt: &Prompt,
        key_label: &str,
        gate: &Gate,
        (request, now, reply, most): (Uuid, OffsetDateTime, Uuid, i64),
    ) -> Result<bool> {
        let (user, today) = (self.session.claims.sub, utc_day(now));
        let (month, plan) = (month_start(today), gate.plan().as_str());
        let values: [&(dyn ToSql + Sync); 15] = [
            &request,
            &user,
            &reply,
            &self.subject.as_str(),
            &plan,
            &prompt.model,
            &key_label,
            &most,
            &now,
            &today,
            &gate.spent,
            &gate.day,
            &gate.month,
            &month,
            &task.kind(),
        ];
        match self.app.db()?.old_execute(&BEGIN_ASIDE, &values).await {
            Ok(written) => Ok(written == 1),
            Err(over) if over.constraint().is_some() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the call cost and what it was for.
    async fn end_aside(
        &self,
        task: Task,
        prompt: &Prompt,
        heard: &Heard,
        request: Uuid,
    ) -> Result<i64> {
        let Heard {
            text,
            spent: Spent {
                usage, estimated, ..
            },
            failure,
            ..
        } = heard;
        let now = self.app.now();
        let price::Cost {
            microusd,
            saved_microusd,
            price_date,
        } = price::cost(&prompt.model, usage, now)
            .expect("configuration takes only models with a price");
        let outcome = if failure.is_some() {
            "failed"
        } else {
            "complete"
        };
        let text = Some(text.trim())
            .filter(|text| failure.is_none() && !text.is_empty() && !text.contains('\0'));
        let (title, summary, until) = match task {
            Task::Title => (text.and_then(title::read), None, None),
            Task::Summary { until } => (None, text, Some(until)),
        };
        let [input, write_5m, write_1h, cache_read, output] = [
            usage.input,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.cache_read,
            usage.output,
        ]
        .map(i64::from);
        let values: [&(dyn ToSql + Sync); 17] = [
            &request,
            &outcome,
            &input,
            &write_5m,
            &write_1h,
            &cache_read,
            &output,
            &microusd,
            estimated,
            &price_date,
            &saved_microusd,
            &now,
            &self.discussion,
            &title,
            &summary,
            &until,
            &heard.key_label,
        ];
        self.app.db()?.old_execute(&END_ASIDE, &values).await?;
        Ok(microusd)
    }
}

/// What came of a call.
#[derive(Default)]
struct Heard {
    text: String,
    spent: Spent,
    failure: Option<String>,
    /// The key that answered.
    key_label: Option<String>,
}

const LATE: &str = "no answer in time";

impl Heard {
    async fn listen(
        claude: &Pool,
        mut stream: claude::Reply,
        max_tokens: u32,
        by: Instant,
    ) -> Self {
        let mut text = String::new();
        let whole = async {
            while let Some(piece) = stream.next().await? {
                text.push_str(&piece);
            }
            Ok::<_, claude::Error>(())
        };
        let failure = match timeout_at(by, whole).await {
            Ok(Ok(())) if stream.stop_reason() == Some("refusal") => Some("refused".to_owned()),
            Ok(Ok(())) => None,
            Ok(Err(broken)) => {
                claude.broke(&stream, &broken);
                Some(request_log::error_chain(&broken))
            }
            Err(_) => Some(LATE.to_owned()),
        };
        let spent = Spent::by(&stream, &text, max_tokens);
        Self {
            text,
            spent,
            failure,
            key_label: Some(stream.key_label().to_owned()),
        }
    }
}

sql_positional! {
    /// The ledger's row and what the ledger adds up to, as for a reply, but no message. The rows are there since the
    /// reply was begun; on a new day they are not, and then nothing is done.
    write BEGIN_ASIDE(
        UUID, UUID, UUID, TEXT, TEXT, TEXT, TEXT, INT8, TIMESTAMPTZ, DATE, INT8, INT8, INT8, DATE, TEXT
    ) -> () = "
        with taken as (
          update subject_days s set spent_microusd = at_most(s.spent_microusd + $8, $11, 'subject_days_spent')
          where s.subject = $4 and s.day = $10
          returning s.day
        ), spent as (
          update budget_days b
          set spent_microusd = at_most(
            at_most(b.spent_microusd + $8, $12, 'budget_days_day'),
            $13 - (
              select coalesce(sum(d.spent_microusd), 0)::bigint from budget_days d where d.day >= $14 and d.day < $10
            ),
            'budget_days_month')
          from taken where b.day = taken.day
          returning b.day
        )
        insert into usage_events
          (request_id, user_id, message_id, subject, plan, model, key_label, outcome, counted, cost_microusd, created_at, kind)
        select $1, $2, $3, $4, $5, $6, $7, 'running', false, $8, $9, $15 from spent";

    /// A title that the user has given meanwhile stays, and so does a summary that reaches further.
    write END_ASIDE(
        UUID, TEXT, INT8, INT8, INT8, INT8, INT8, INT8, BOOL, DATE, INT8, TIMESTAMPTZ, UUID, TEXT, TEXT, UUID, TEXT
    ) -> () = "
        with before as (
          select request_id, subject, (created_at at time zone 'UTC')::date as day, cost_microusd
          from usage_events where request_id = $1 and outcome = 'running' for update
        ), settled_subject as (
          update subject_days s set spent_microusd = s.spent_microusd + $8 - before.cost_microusd
          from before where s.subject = before.subject and s.day = before.day
          returning s.subject
        ), settled as (
          -- After the subject's day, in the order in which a reply's statements lock the two.
          update budget_days b set spent_microusd = b.spent_microusd + $8 - before.cost_microusd
          from before, (select count(*) from settled_subject) first
          where b.day = before.day
        ), titled as (
          update discussions set title = $14, title_made = false
          where id = $13 and title_made and $14::text is not null
        ), summed_up as (
          update discussions set summary = $15, summary_until = $16
          where id = $13 and $15::text is not null and (summary_until is null or summary_until < $16)
        )
        update usage_events e
        set outcome = $2, input_tokens = $3, cache_write_5m_tokens = $4, cache_write_1h_tokens = $5,
          cache_read_tokens = $6, output_tokens = $7, cost_microusd = $8, estimated = $9, price_date = $10,
          saved_microusd = $11, ended_at = $12, key_label = coalesce($17::text, key_label)
        from before where e.request_id = before.request_id";
}
