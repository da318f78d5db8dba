//! The results of the suite's parts.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use crate::tally::Tally;

/// The result of one part.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) label: String,
    pub(crate) took: Duration,
    pub(crate) tally: Tally,
    pub(crate) is_success: bool,
}

/// The results so far.
#[derive(Debug)]
pub(crate) struct Report {
    started_at: Instant,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            started_at: Instant::now(),
            outcomes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// Adds a part that could not run.
    pub(crate) fn add_failure(&mut self, label: &str) {
        self.add(Outcome {
            label: label.to_owned(),
            took: Duration::ZERO,
            tally: Tally {
                passed: 0,
                failed: 1,
            },
            is_success: false,
        });
    }

    pub(crate) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for outcome in &self.outcomes {
            total += outcome.tally;
        }

        total
    }

    pub(crate) fn is_success(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.is_success)
    }

    /// Prints the parts, their durations and the numbers of their tests to standard error.
    pub(crate) fn print_table(&self) {
        eprintln!("\n{}", table(&self.outcomes, self.started_at.elapsed()));
    }
}

fn table(outcomes: &[Outcome], took: Duration) -> String {
    let labels = outcomes.iter().map(|outcome| outcome.label.chars().count());
    let width = labels.max().unwrap_or_default().max("everything".len());
    let mut text = format!("{:width$}  {:>7}  passed  failed\n", "part", "seconds");

    for outcome in outcomes {
        let Tally { passed, failed } = outcome.tally;
        let seconds = outcome.took.as_secs_f32();
        let label = &outcome.label;
        let _ = writeln!(
            text,
            "{label:width$}  {seconds:>7.0}  {passed:>6}  {failed:>6}"
        );
    }
    let _ = writeln!(text, "{:width$}  {:>7.0}", "everything", took.as_secs_f32());

    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_part_and_one_for_everything() {
        let outcome = |label: &str, seconds, passed| Outcome {
            label: label.into(),
            took: Duration::from_secs(seconds),
            tally: Tally { passed, failed: 0 },
            is_success: true,
        };
        let outcomes = [
            outcome("cargo test", 240, 612),
            outcome("cargo test on Postgres 15.18", 95, 402),
        ];

        assert_eq!(
            table(&outcomes, Duration::from_secs(400)),
            "part                          seconds  passed  failed\n\
             cargo test                        240     612       0\n\
             cargo test on Postgres 15.18       95     402       0\n\
             everything                        400\n"
        );
    }
}
