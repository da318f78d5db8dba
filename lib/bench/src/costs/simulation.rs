//! Runs conversations through the service's own prompts, and bills them.

use claude::{Prompt, Turn, Usage};
use iconoclash::{
    conversation::{
        history::{HistoryMessage, MessageRole},
        prompt, summary, title,
    },
    spending::{plan::Plan, price},
};
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

use super::{
    cache::{Cache, tokens},
    people::{Conversation, Day, Exchange, SUMMARY_BYTES, THINKING, text},
};

/// The day whose prices apply, so that the result never changes with the date.
const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
const PRO: &str = "claude-sonnet-5-5";
const SMALL: &str = "claude-haiku-5-5";
/// Number of messages that the service loads for a prompt.
const LOADED_MESSAGES: usize = 60;
const TITLE_TOKENS: u32 = 12;

/// Measures that lower the costs of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measures {
    cache: bool,
    small_model: bool,
    summary: bool,
    max_tokens: bool,
    no_thinking: bool,
}

impl Measures {
    pub(super) const ALL: Self = Self {
        cache: true,
        small_model: true,
        summary: true,
        max_tokens: true,
        no_thinking: true,
    };
    const NONE: Self = Self {
        cache: false,
        small_model: false,
        summary: false,
        max_tokens: false,
        no_thinking: false,
    };

    /// All measures but one, for each of them, and none at all.
    pub(super) fn each_left_out() -> [(&'static str, Self); 6] {
        let mut cache = Self::ALL;
        cache.cache = false;
        let mut small_model = Self::ALL;
        small_model.small_model = false;
        let mut summary = Self::ALL;
        summary.summary = false;
        let mut max_tokens = Self::ALL;
        max_tokens.max_tokens = false;
        let mut no_thinking = Self::ALL;
        no_thinking.no_thinking = false;

        [
            ("prompt cache", cache),
            ("Haiku for guests, free", small_model),
            ("summaries", summary),
            ("max_tokens by plan", max_tokens),
            ("no thinking", no_thinking),
            ("all of them", Self::NONE),
        ]
    }
}

/// Calls of one kind, and their costs in micro-dollars.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) count: usize,
    cost: i64,
}

impl Calls {
    fn add(&mut self, cost: i64) {
        self.count += 1;
        self.cost += cost;
    }

    pub(super) fn average(self) -> f64 {
        self.cost as f64 / self.count.max(1) as f64
    }
}

/// The costs of a day, and figures of its prompts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bill {
    /// Replies, in the order of `Plan::ALL`.
    pub(super) by_plan: [Calls; 3],
    pub(super) summaries: Calls,
    pub(super) titles: Calls,
    pub(super) prompt_tokens: u64,
    pub(super) read_tokens: u64,
    pub(super) longest_prompt_bytes: usize,
}

impl Bill {
    pub(super) fn total(&self) -> i64 {
        let replies: i64 = self.by_plan.iter().map(|replies| replies.cost).sum();

        replies + self.summaries.cost + self.titles.cost
    }

    pub(super) fn messages(&self) -> usize {
        self.by_plan.iter().map(|replies| replies.count).sum()
    }

    pub(super) fn per_message(&self) -> f64 {
        self.total() as f64 / self.messages() as f64
    }
}

/// The bill of a day under these measures.
pub(super) fn simulate(day: &Day, measures: Measures) -> Bill {
    let mut bill = Bill::default();
    for conversation in &day.conversations {
        Simulation::new(conversation, measures).run(&mut bill);
    }

    bill
}

/// A conversation in progress.
struct Simulation<'a> {
    conversation: &'a Conversation,
    measures: Measures,
    model: &'static str,
    system: String,
    history: Vec<HistoryMessage>,
    summary: Option<String>,
    cache: Cache,
    last_id: u128,
}

impl<'a> Simulation<'a> {
    fn new(conversation: &'a Conversation, measures: Measures) -> Self {
        let model = if measures.small_model && conversation.plan != Plan::Pro {
            SMALL
        } else {
            PRO
        };

        Self {
            conversation,
            measures,
            model,
            system: prompt::system(&conversation.personas, Some(&conversation.topic)),
            history: Vec::new(),
            summary: None,
            cache: Cache::new(model),
            last_id: 0,
        }
    }

    /// Simulates all exchanges; only those of today are billed.
    fn run(mut self, bill: &mut Bill) {
        let mut earlier_days = Bill::default();

        for exchange in &self.conversation.exchanges {
            let is_today = exchange.at_secs >= 0;
            let bill = if is_today {
                &mut *bill
            } else {
                &mut earlier_days
            };

            let reply = self.reply(exchange, bill);
            self.remember(MessageRole::User, &exchange.message);
            self.remember(MessageRole::Assistant, &reply);
            self.make_title(bill);
            self.make_summary(bill);
        }
    }

    fn remember(&mut self, role: MessageRole, content: &str) {
        self.last_id += 1;
        let id = Uuid::from_u128(self.last_id);
        self.history
            .push(HistoryMessage::complete(id, role, content));
    }

    /// Bills a reply and returns its text.
    fn reply(&mut self, exchange: &Exchange, bill: &mut Bill) -> String {
        let summary = self.summary.as_deref();
        let summary = summary.map(summary::summary_block).unwrap_or_default();
        let loaded = &self.history[self.history.len().saturating_sub(LOADED_MESSAGES)..];
        let fixed_bytes = self.system.len() + summary.len();
        let turns = prompt::turns(loaded, &exchange.message, fixed_bytes);
        let prompt_bytes = prompt::bytes(&self.system, &summary, &turns);

        let mut usage = self.prompt_usage(exchange.at_secs, &summary, &turns);
        let (text, output_tokens) = self.truncated_reply(exchange);
        usage.output = output_tokens;

        bill.by_plan[self.conversation.plan as usize].add(cost(self.model, &usage));
        bill.longest_prompt_bytes = bill.longest_prompt_bytes.max(prompt_bytes);
        bill.prompt_tokens += u64::from(usage.input + usage.cache_write_5m + usage.cache_read);
        bill.read_tokens += u64::from(usage.cache_read);

        text
    }

    fn prompt_usage(&mut self, at_secs: i64, summary: &str, turns: &[Turn]) -> Usage {
        let mut blocks = vec![(self.system.as_str(), true)];
        if !summary.is_empty() {
            blocks.push((summary, true));
        }
        let last = turns.len() - 1;
        let turns = turns.iter().enumerate();
        blocks.extend(turns.map(|(index, turn)| (turn.text.as_str(), index == last)));

        if self.measures.cache {
            return self.cache.charge(&blocks, at_secs);
        }
        Usage {
            input: blocks.iter().map(|(text, _)| tokens(text.len())).sum(),
            ..Usage::default()
        }
    }

    /// The reply's text and billed tokens, cut at the plan's `max_tokens`. Thinking counts
    /// towards both.
    fn truncated_reply(&self, exchange: &Exchange) -> (String, u32) {
        let thinking = if self.measures.no_thinking {
            0.0
        } else {
            THINKING
        };
        let max_tokens = if self.measures.max_tokens {
            f64::from(self.conversation.plan.max_output_tokens())
        } else {
            f64::INFINITY
        };

        let whole = f64::from(tokens(exchange.reply.len())) * (1.0 + thinking);
        let billed = whole.min(max_tokens);
        let share = (billed / whole).clamp(0.0, 1.0);
        let end = (exchange.reply.len() as f64 * share) as usize;

        (exchange.reply[..end].to_owned(), billed as u32)
    }

    /// Gives the conversation a title after its first exchange, as the service does.
    fn make_title(&self, bill: &mut Bill) {
        if self.history.len() == 2 && self.conversation.is_untitled {
            let topic = Some(self.conversation.topic.as_str());
            let prompt = title::prompt(SMALL, "", topic, &self.history);
            bill.titles.add(background_cost(&prompt, TITLE_TOKENS));
        }
    }

    /// Replaces older messages by a summary when they are long enough.
    fn make_summary(&mut self, bill: &mut Bill) {
        if !self.measures.summary {
            return;
        }
        let Some((older, _)) = summary::needs_summary(&self.history) else {
            return;
        };

        let prompt = summary::prompt(SMALL, "", self.summary.as_deref(), older);
        let summarized = older.len();
        let output = tokens(SUMMARY_BYTES);
        bill.summaries.add(background_cost(&prompt, output));

        self.history.drain(..summarized);
        self.summary = Some(text(SUMMARY_BYTES));
    }
}

/// The cost of a call of the small model whose whole prompt is written to the cache.
fn background_cost(prompt: &Prompt, output: u32) -> i64 {
    let bytes = prompt::bytes(&prompt.system, &prompt.summary_block, &prompt.turns);
    let usage = Usage {
        cache_write_5m: tokens(bytes),
        output,
        ..Usage::default()
    };

    cost(&prompt.model, &usage)
}

fn cost(model: &str, usage: &Usage) -> i64 {
    price::cost(model, usage, NOW).map_or(0, |cost| cost.microusd)
}
