//! Named crash points for recovery tests. Release builds ignore them.

use std::{fmt, sync::Arc};

type Condition = dyn Fn(&str) -> bool + Send + Sync;

/// Decides at each crash point whether the process stops there.
#[derive(Clone)]
pub struct CrashTrigger(Arc<Condition>);

impl CrashTrigger {
    /// Stops at every crash point for which the condition is true.
    pub fn when(condition: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(condition))
    }

    /// Whether the process stops at this crash point.
    pub(crate) fn fires_at(&self, name: &str) -> bool {
        (self.0)(name)
    }

    /// Parses `name:file`: stops at the named crash point, after creating the file that the test waits for.
    pub(crate) fn parse(place: &str) -> Option<Self> {
        let (name, file) = place.split_once(':')?;
        let name = name.to_owned();
        let file = file.to_owned();

        Some(Self::when(move |reached| {
            reached == name && std::fs::write(&file, "").is_ok()
        }))
    }
}

impl fmt::Debug for CrashTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CrashTrigger(…)")
    }
}
