//! Ctrl-C and its likes: everything that was started is ended first.

use std::{
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};

use crate::profile::Profile;

/// Does the work, and ends all that it started however it ends.
pub fn with_profile<T>(
    runtime: &Handle,
    profile: Arc<Profile>,
    work: impl FnOnce(&Profile) -> Result<T>,
) -> Result<T> {
    let told = Arc::new(AtomicBool::new(false));
    runtime.spawn(end_on_signal(Arc::clone(&profile), Arc::clone(&told)));
    let result = work(&profile);
    while told.load(Ordering::Acquire) {
        // What ended now ended because of the signal; the other task ends the process when all of it has.
        std::thread::park();
    }
    profile.close();
    result
}

async fn end_on_signal(profile: Arc<Profile>, told: Arc<AtomicBool>) {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let Ok([mut interrupt, mut terminate, mut hangup]) = <[_; 3]>::try_from(
        kinds
            .into_iter()
            .filter_map(|kind| signal(kind).ok())
            .collect::<Vec<_>>(),
    ) else {
        return;
    };
    let code = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    };
    told.store(true, Ordering::Release);
    eprintln!("\nending what was started");
    profile.close();
    exit(code);
}
