//! Signals: Ctrl-C, SIGTERM and SIGHUP stop everything that was started before the program exits.

use std::{
    io,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};

use crate::instance::Instance;

/// Runs `work` and closes the instance afterwards, also when a signal interrupts it.
pub fn with_instance<T>(
    runtime: &Handle,
    instance: Arc<Instance>,
    work: impl FnOnce(&Instance) -> Result<T>,
) -> Result<T> {
    let interrupted = Arc::new(AtomicBool::new(false));
    runtime.spawn(exit_on_signal(
        Arc::clone(&instance),
        Arc::clone(&interrupted),
    ));

    let result = work(&instance);
    while interrupted.load(Ordering::Acquire) {
        // The signal's task stops everything and exits; the result only reflects that.
        thread::park();
    }
    instance.close();

    result
}

async fn exit_on_signal(instance: Arc<Instance>, interrupted: Arc<AtomicBool>) {
    let Ok(code) = exit_code_of_next_signal().await else {
        return;
    };
    interrupted.store(true, Ordering::Release);

    eprintln!("\nstopping what was started");
    instance.close();
    exit(code);
}

async fn exit_code_of_next_signal() -> io::Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;

    Ok(tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    })
}
