//! What a day costs: simulated conversations through the real prompts, plans and prices, with a cache that forgets and
//! the measures that make it cheaper, each also left out once.

mod cache;
mod people;

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use clap::Args;
use claude::{Prompt, Turn, Usage};

use iconoclash::{
    conversation::{
        history::{HistoryMessage, MessageRole},
        prompt::{self, Persona},
        summary, title,
    },
    spending::{plan::Plan, price},
};
use serde::Deserialize;
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

use self::{
    cache::{Cache, tokens},
    people::{Day, words},
};

/// Prices are those of this day, so that the result is the same on every day.
const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
const BAR_MICRODOLLARS: f64 = 10_000.0;
const PRO: &str = "claude-sonnet-5-5";
const SMALL: &str = "claude-haiku-5-5";
/// Messages that the service reads for a prompt.
const READ: usize = 60;

/// How the day is made.
#[derive(Debug, Args)]
pub(crate) struct Costs {
    /// People who write on that day
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Which day of all possible
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What makes a message cheaper.
#[derive(Clone, Copy, Debug)]
struct Measures {
    cache: bool,
    haiku: bool,
    summary: bool,
    max_tokens: bool,
    no_thought: bool,
}

const ALL: Measures = Measures {
    cache: true,
    haiku: true,
    summary: true,
    max_tokens: true,
    no_thought: true,
};
const NONE: Measures = Measures {
    cache: false,
    haiku: false,
    summary: false,
    max_tokens: false,
    no_thought: false,
};

/// Micro-dollars by what they were paid for, and tokens of the prompts.
#[derive(Clone, Copy, Debug, Default)]
struct Bill {
    replies: i64,
    by_plan: [(usize, i64); 3],
    summaries: (usize, i64),
    titles: (usize, i64),
    prompt_tokens: u64,
    read_tokens: u64,
    longest_prompt_bytes: usize,
}

impl Bill {
    fn total(&self) -> i64 {
        self.replies + self.summaries.1 + self.titles.1
    }

    fn messages(&self) -> usize {
        self.by_plan.iter().map(|(messages, _)| messages).sum()
    }

    fn a_message(&self) -> f64 {
        self.total() as f64 / self.messages() as f64
    }
}

/// Simulates, prints, and says whether a message is as cheap as it must be.
pub(crate) fn run(costs: &Costs) -> Result<bool> {
    let icons = icons()?;
    let day = Day::of(costs.users as usize, &icons, costs.seed);
    let bill = simulate(&day, ALL);
    let mut out = stdout().lock();
    let dollars = |microusd: f64| format!("${:.4}", microusd / 1e6);
    writeln!(out, "Assumptions (seed {}):", costs.seed)?;
    for assumption in people::ASSUMPTIONS.iter().chain(cache::ASSUMPTIONS) {
        writeln!(out, "  · {assumption}")?;
    }
    writeln!(out, "\n{} users, {} messages", costs.users, bill.messages())?;
    for (plan, (messages, cost)) in Plan::ALL.into_iter().zip(bill.by_plan) {
        let each = dollars(cost as f64 / messages.max(1) as f64);
        writeln!(
            out,
            "  {:<10}{messages:>6} messages at {each}",
            plan.as_str()
        )?;
    }
    for (name, (calls, cost)) in [("summaries", bill.summaries), ("titles", bill.titles)] {
        writeln!(
            out,
            "  {name:<10}{calls:>6} calls    at {}",
            dollars(cost as f64 / calls.max(1) as f64)
        )?;
    }
    let share = |part: f64, whole: f64| 100.0 * part / whole;
    writeln!(
        out,
        "  of {:.1} M prompt tokens the cache gave {:.0} %; the longest prompt has {} bytes",
        bill.prompt_tokens as f64 / 1e6,
        share(bill.read_tokens as f64, bill.prompt_tokens as f64),
        bill.longest_prompt_bytes
    )?;
    let (message, total) = (bill.a_message(), bill.total() as f64);
    writeln!(out, "\na message                {}", dollars(message))?;
    writeln!(out, "a day                    {}", dollars(total))?;
    writeln!(
        out,
        "a month at 2,000 users   {}",
        dollars(total * 30.0 * 2_000.0 / f64::from(costs.users))
    )?;
    writeln!(out, "\nWithout one measure      a message   saved by it")?;
    for (name, measures) in [
        (
            "prompt cache",
            Measures {
                cache: false,
                ..ALL
            },
        ),
        (
            "Haiku for guests, free",
            Measures {
                haiku: false,
                ..ALL
            },
        ),
        (
            "summaries",
            Measures {
                summary: false,
                ..ALL
            },
        ),
        (
            "max_tokens by plan",
            Measures {
                max_tokens: false,
                ..ALL
            },
        ),
        (
            "no thinking first",
            Measures {
                no_thought: false,
                ..ALL
            },
        ),
        ("all of them", NONE),
    ] {
        let without = simulate(&day, measures).a_message();
        writeln!(
            out,
            "  {name:<23}{}   {:>5.1} %",
            dollars(without),
            share(without - message, without)
        )?;
    }
    let met = message <= BAR_MICRODOLLARS;
    let verdict = if met { "met" } else { "MISSED" };
    writeln!(
        out,
        "\nbar: at most {} a message, a tenth of the old plan's $0.10: {verdict}",
        dollars(BAR_MICRODOLLARS)
    )?;
    Ok(met)
}

#[derive(Deserialize)]
struct Icon {
    name: String,
    system_prompt: Vec<String>,
}

/// The icons as they are seeded.
fn icons() -> Result<Vec<Persona>> {
    let icons: Vec<Icon> =
        serde_json::from_str(include_str!("../../cli/icons.json")).context("icons.json")?;
    let persona = |icon: Icon| Persona {
        name: icon.name,
        system_prompt: icon.system_prompt.join("\n\n"),
    };
    Ok(icons.into_iter().map(persona).collect())
}

fn simulate(day: &Day, measures: Measures) -> Bill {
    let mut bill = Bill::default();
    for talk in &day.talks {
        Simulated::new(talk, measures).run(&mut bill);
    }
    bill
}

/// One conversation under some measures.
struct Simulated<'a> {
    talk: &'a people::Talk,
    measures: Measures,
    model: &'static str,
    system: String,
    past: Vec<HistoryMessage>,
    summary: Option<String>,
    cache: Cache,
    ids: u128,
}

impl<'a> Simulated<'a> {
    fn new(talk: &'a people::Talk, measures: Measures) -> Self {
        let model = if measures.haiku && talk.plan != Plan::Pro {
            SMALL
        } else {
            PRO
        };
        let system = prompt::system(&talk.personas, Some(&talk.topic));
        let cache = Cache::new(model);
        Self {
            talk,
            measures,
            model,
            system,
            past: Vec::new(),
            summary: None,
            cache,
            ids: 0,
        }
    }

    fn run(mut self, bill: &mut Bill) {
        for exchange in &self.talk.exchanges {
            let today = exchange.at_secs >= 0;
            let mut unpaid = Bill::default();
            let bill = if today { &mut *bill } else { &mut unpaid };
            let reply = self.answer(exchange, bill);
            self.say(MessageRole::User, &exchange.message);
            self.say(MessageRole::Assistant, &reply);
            self.afterwards(bill);
        }
    }

    fn say(&mut self, role: MessageRole, content: &str) {
        self.ids += 1;
        let id = Uuid::from_u128(self.ids);
        self.past.push(HistoryMessage::complete(id, role, content));
    }

    /// Asks, pays, and gives the reply's text.
    fn answer(&mut self, exchange: &people::Exchange, bill: &mut Bill) -> String {
        let recap = self
            .summary
            .as_deref()
            .map(summary::summary_block)
            .unwrap_or_default();
        let read = &self.past[self.past.len().saturating_sub(READ)..];
        let turns = prompt::turns(read, &exchange.message, self.system.len() + recap.len());
        bill.longest_prompt_bytes =
            bill.longest_prompt_bytes
                .max(prompt::bytes(&self.system, &recap, &turns));
        let mut usage = self.prompt_usage(exchange.at_secs, &recap, &turns);
        let (text, output) = self.cut(exchange);
        usage.output = output;
        let cost = cost(self.model, &usage);
        let (messages, of_plan) = &mut bill.by_plan[self.talk.plan as usize];
        (*messages, *of_plan) = (*messages + 1, *of_plan + cost);
        bill.replies += cost;
        let prompt = usage.input + usage.cache_write_5m + usage.cache_read;
        bill.prompt_tokens += u64::from(prompt);
        bill.read_tokens += u64::from(usage.cache_read);
        text
    }

    fn prompt_usage(&mut self, at_secs: i64, recap: &str, turns: &[Turn]) -> Usage {
        let mut blocks = vec![(self.system.as_str(), true)];
        if !recap.is_empty() {
            blocks.push((recap, true));
        }
        let last = turns.len() - 1;
        blocks.extend(
            turns
                .iter()
                .enumerate()
                .map(|(at, turn)| (turn.text.as_str(), at == last)),
        );
        if self.measures.cache {
            return self.cache.charge(&blocks, at_secs);
        }
        Usage {
            input: blocks.iter().map(|(text, _)| tokens(text.len())).sum(),
            ..Usage::default()
        }
    }

    /// The reply as long as it may be: what the model thinks before it speaks is part of that.
    fn cut(&self, exchange: &people::Exchange) -> (String, u32) {
        let thought = if self.measures.no_thought {
            0.0
        } else {
            people::THOUGHT
        };
        let whole = f64::from(tokens(exchange.reply.len())) * (1.0 + thought);
        let most = if self.measures.max_tokens {
            f64::from(self.talk.plan.max_output_tokens())
        } else {
            f64::INFINITY
        };
        let kept = (whole.min(most) / whole).clamp(0.0, 1.0);
        let end = (exchange.reply.len() as f64 * kept) as usize;
        (exchange.reply[..end].to_owned(), whole.min(most) as u32)
    }

    fn afterwards(&mut self, bill: &mut Bill) {
        if self.past.len() == 2 && self.talk.untitled {
            let asked = title::prompt(SMALL, "", Some(&self.talk.topic), &self.past);
            bill.titles = (bill.titles.0 + 1, bill.titles.1 + aside(&asked, 12));
        }
        if !self.measures.summary {
            return;
        }
        let Some((older, _)) = summary::needs_summary(&self.past) else {
            return;
        };
        let asked = summary::prompt(SMALL, "", self.summary.as_deref(), older);
        let cut = older.len();
        bill.summaries = (
            bill.summaries.0 + 1,
            bill.summaries.1 + aside(&asked, tokens(people::SUMMARY_BYTES)),
        );
        self.past.drain(..cut);
        self.summary = Some(words(people::SUMMARY_BYTES));
    }
}

/// What a call of the small model costs, of which nothing is in a cache but everything is marked for it.
fn aside(asked: &Prompt, output: u32) -> i64 {
    let prompt = prompt::bytes(&asked.system, &asked.recap, &asked.turns);
    cost(
        &asked.model,
        &Usage {
            cache_write_5m: tokens(prompt),
            output,
            ..Usage::default()
        },
    )
}

fn cost(model: &str, usage: &Usage) -> i64 {
    price::cost(model, usage, NOW).map_or(0, |cost| cost.microusd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_tenth_of_what_it_was_on_several_days() {
        let icons = icons().unwrap();
        for seed in 1..=2 {
            let day = Day::of(200, &icons, seed);
            let bill = simulate(&day, ALL);
            assert_eq!(bill.messages(), 1_000, "{bill:?}");
            assert!(bill.a_message() <= BAR_MICRODOLLARS, "{bill:?}");
            for measures in [
                Measures {
                    cache: false,
                    ..ALL
                },
                Measures {
                    haiku: false,
                    ..ALL
                },
                Measures {
                    summary: false,
                    ..ALL
                },
                Measures {
                    max_tokens: false,
                    ..ALL
                },
                Measures {
                    no_thought: false,
                    ..ALL
                },
            ] {
                let without = simulate(&day, measures).a_message();
                assert!(
                    without > bill.a_message(),
                    "{measures:?} saves nothing on day {seed}: {without}"
                );
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_day() {
        let icons = icons().unwrap();
        let total = |seed| simulate(&Day::of(50, &icons, seed), ALL).total();
        assert_eq!(total(7), total(7));
        assert_ne!(total(7), total(8));
    }
}
