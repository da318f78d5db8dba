//! Named crash points for recovery tests. Release builds ignore them.

use std::{fmt, sync::Arc};

type Stops = dyn Fn(&str) -> bool + Send + Sync;

/// Says of each step, when it is reached, whether work stops there.
#[derive(Clone)]
pub struct Freeze(Arc<Stops>);

impl Freeze {
    /// Stops where the function says so.
    pub fn when(stops: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(stops))
    }

    /// Whether work stops at a step.
    pub(crate) fn stops_at(&self, step: &str) -> bool {
        (self.0)(step)
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
