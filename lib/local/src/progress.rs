//! Progress on standard error: one line per step, with its duration.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Instant,
};

use anyhow::Result;

/// Runs a step and prints its result and duration.
pub fn step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started_at = Instant::now();
    let is_terminal = stderr().is_terminal();
    if is_terminal {
        eprint!("  … {label}");
        let _ = stderr().flush();
    }

    let result = work();
    let mark = if result.is_ok() { "✓" } else { "✗" };
    let clear = if is_terminal { "\r\x1b[K" } else { "" };
    let seconds = started_at.elapsed().as_secs_f32();
    eprintln!("{clear}  {mark} {label} ({seconds:.1} s)");

    result
}

/// Runs a step that takes long: it is announced even where lines cannot be rewritten.
pub fn long_step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if !stderr().is_terminal() {
        eprintln!("  … {label}");
    }

    step(label, work)
}

/// Prints a line that is not a step.
pub fn note(text: &str) {
    eprintln!("  · {text}");
}
