//! Steps at which a test stops a process for good, to see what becomes of what it had begun. Release builds have none.

use std::{fmt, sync::Arc};

use crate::app::App;

type Stops = dyn Fn(&str) -> bool + Send + Sync;

/// Says of each step, when it is reached, whether work stops there.
#[derive(Clone)]
pub struct Freeze(Arc<Stops>);

impl Freeze {
    /// Stops where the function says so.
    pub fn when(stops: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(stops))
    }

    /// `step:file` stops at that step, after it has made the file for whoever waits for it.
    pub(crate) fn parse(place: &str) -> Option<Self> {
        let (step, file) = place.split_once(':')?;
        let (step, file) = (step.to_owned(), file.to_owned());
        Some(Self::when(move |reached| {
            reached == step && std::fs::write(&file, "").is_ok()
        }))
    }
}

impl fmt::Debug for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Freeze(…)")
    }
}

/// Marks a step.
pub(crate) async fn step(app: &App, name: &str) {
    if cfg!(debug_assertions)
        && app
            .config()
            .freeze
            .as_ref()
            .is_some_and(|freeze| (freeze.0)(name))
    {
        std::future::pending::<()>().await;
    }
}
