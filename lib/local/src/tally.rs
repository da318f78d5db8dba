//! Counts tests from the output of test runners.

use std::ops::AddAssign;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// How many passed.
    pub(crate) passed: u64,
    /// How many failed.
    pub(crate) failed: u64,
}

impl Tally {
    /// Whether any test ran at all.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds the numbers in one line of a runner's output; most lines have none.
    pub(crate) fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // cargo test
            [
                "test",
                "result:",
                _,
                passed,
                "passed;",
                failed,
                "failed;",
                ..,
            ] => {
                *self += Self {
                    passed: number(passed),
                    failed: number(failed),
                };
            }
            // node --test: TAP and human-readable output
            ["#" | "ℹ", "pass", passed] => self.passed += number(passed),
            ["#" | "ℹ", "fail" | "cancelled", failed] => self.failed += number(failed),
            _ => {}
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_default()
}

fn strip_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        text.push_str(before);
        rest = after
            .split_once(|c: char| c.is_ascii_alphabetic())
            .map_or("", |(_, rest)| rest);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(output: &str, expected: &str) {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        assert_eq!(tally.to_string(), expected);
    }

    #[test]
    fn cargo_tests_are_counted() {
        check(
            "running 3 tests\ntest a ... ok\n\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s\n\
             test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 1.20s\n",
            "13 passed, 2 failed",
        );
        check(
            "test result: \x1b[31mFAILED\x1b[0m. 1 passed; 1 failed; 0 ignored;\n",
            "1 passed, 1 failed",
        );
    }

    #[test]
    fn node_tests_are_counted() {
        check(
            "# tests 6\n# suites 1\n# pass 4\n# fail 1\n# cancelled 1\n# skipped 0\n",
            "4 passed, 2 failed",
        );
        check("ℹ tests 2\nℹ pass 2\nℹ fail 0\n", "2 passed, 0 failed");
    }

    #[test]
    fn other_lines_count_nothing() {
        check(
            "# passing by\ntest result: unknown\n12 passed, 0 failed\n",
            "0 passed, 0 failed",
        );
    }
}
