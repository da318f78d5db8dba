//! The costs of a day: simulated conversations with the real prompts, plans and prices.
//!
//! A model of Claude's prompt cache is part of the simulation. Each measure that lowers the costs
//! is also left out once, to show what it saves.

mod cache;
mod people;
mod simulation;

use std::io::{StdoutLock, Write, stdout};

use anyhow::{Context, Result};
use iconoclash::{conversation::prompt::Persona, spending::plan::Plan};
use iconoclash_local::bench::Costs;
use serde::Deserialize;

use self::{
    people::Day,
    simulation::{Bill, Measures, simulate},
};

/// The most that a message may cost.
const MAX_MICRODOLLARS: f64 = 10_000.0;

/// Simulates and prints; true if a message costs at most `MAX_MICRODOLLARS`.
pub(crate) fn run(options: &Costs) -> Result<bool> {
    let icons = icons()?;
    let day = Day::generate(options.users as usize, &icons, options.seed);
    let bill = simulate(&day, Measures::ALL);
    let mut out = stdout().lock();

    print_assumptions(&mut out, options.seed)?;
    print_bill(&mut out, &bill, options.users)?;
    print_savings(&mut out, &day, bill.per_message())?;

    let is_within_bar = bill.per_message() <= MAX_MICRODOLLARS;
    let verdict = if is_within_bar { "met" } else { "MISSED" };
    writeln!(
        out,
        "\nbar: at most {} per message, a tenth of the old plan's $0.10: {verdict}",
        dollars(MAX_MICRODOLLARS)
    )?;

    Ok(is_within_bar)
}

fn print_assumptions(out: &mut StdoutLock<'_>, seed: u64) -> Result<()> {
    writeln!(out, "Assumptions (seed {seed}):")?;
    for assumption in people::ASSUMPTIONS.iter().chain(cache::ASSUMPTIONS) {
        writeln!(out, "  · {assumption}")?;
    }

    Ok(())
}

fn print_bill(out: &mut StdoutLock<'_>, bill: &Bill, users: u32) -> Result<()> {
    writeln!(out, "\n{users} users, {} messages", bill.messages())?;
    for (plan, replies) in Plan::ALL.into_iter().zip(bill.by_plan) {
        writeln!(
            out,
            "  {:<10}{:>6} messages at {}",
            plan.as_str(),
            replies.count,
            dollars(replies.average())
        )?;
    }
    for (name, calls) in [("summaries", bill.summaries), ("titles", bill.titles)] {
        writeln!(
            out,
            "  {name:<10}{:>6} calls    at {}",
            calls.count,
            dollars(calls.average())
        )?;
    }

    writeln!(
        out,
        "  of {:.1} M prompt tokens {:.0} % came from the cache; the longest prompt has {} bytes",
        bill.prompt_tokens as f64 / 1e6,
        percent(bill.read_tokens as f64, bill.prompt_tokens as f64),
        bill.longest_prompt_bytes
    )?;

    let total = bill.total() as f64;
    let month = total * 30.0 * 2_000.0 / f64::from(users);
    writeln!(
        out,
        "\nper message              {}",
        dollars(bill.per_message())
    )?;
    writeln!(out, "per day                  {}", dollars(total))?;
    writeln!(out, "per month, 2,000 users   {}", dollars(month))?;

    Ok(())
}

/// Simulates the day again without each measure.
fn print_savings(out: &mut StdoutLock<'_>, day: &Day, per_message: f64) -> Result<()> {
    writeln!(out, "\nWithout one measure      per message   saved by it")?;
    for (name, measures) in Measures::each_left_out() {
        let without = simulate(day, measures).per_message();
        writeln!(
            out,
            "  {name:<23}{}     {:>5.1} %",
            dollars(without),
            percent(without - per_message, without)
        )?;
    }

    Ok(())
}

fn dollars(microdollars: f64) -> String {
    format!("${:.4}", microdollars / 1e6)
}

fn percent(part: f64, whole: f64) -> f64 {
    100.0 * part / whole
}

/// The icons that a new database is seeded with.
fn icons() -> Result<Vec<Persona>> {
    #[derive(Deserialize)]
    struct Icon {
        name: String,
        system_prompt: Vec<String>,
    }

    let icons: Vec<Icon> =
        serde_json::from_str(include_str!("../../cli/icons.json")).context("icons.json")?;
    let persona = |icon: Icon| Persona {
        name: icon.name,
        system_prompt: icon.system_prompt.join("\n\n"),
    };

    Ok(icons.into_iter().map(persona).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_costs_a_tenth_of_the_old_plan_on_several_days() {
        let icons = icons().unwrap();
        for seed in 1..=2 {
            let day = Day::generate(200, &icons, seed);
            let bill = simulate(&day, Measures::ALL);
            assert_eq!(bill.messages(), 1_000, "{bill:?}");
            assert!(bill.per_message() <= MAX_MICRODOLLARS, "{bill:?}");

            for (name, measures) in Measures::each_left_out() {
                let without = simulate(&day, measures).per_message();
                assert!(
                    without > bill.per_message(),
                    "{name} saves nothing on day {seed}: {without}"
                );
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_day() {
        let icons = icons().unwrap();
        let total = |seed| simulate(&Day::generate(50, &icons, seed), Measures::ALL).total();
        assert_eq!(total(7), total(7));
        assert_ne!(total(7), total(8));
    }
}
