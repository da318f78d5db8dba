//! One line a step on standard error, with how long it took.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Instant,
};

use anyhow::Result;

/// Runs one step and says how it went.
pub fn step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let live = stderr().is_terminal();
    if live {
        eprint!("  … {label}");
        let _ = stderr().flush();
    }
    let result = work();
    let mark = if result.is_ok() { "✓" } else { "✗" };
    let clear = if live { "\r\x1b[K" } else { "" };
    eprintln!(
        "{clear}  {mark} {label} ({:.1} s)",
        begun.elapsed().as_secs_f32()
    );
    result
}

/// Runs a step that takes long enough to be announced where lines cannot be rewritten.
pub fn long_step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if !stderr().is_terminal() {
        eprintln!("  … {label}");
    }
    step(label, work)
}

/// Says something that took no time.
pub fn note(text: &str) {
    eprintln!("  · {text}");
}
