//! Concurrent loads of one key share a single call.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OnceCell;

/// The loads that are running in this process, by key.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight(Mutex<HashMap<String, Arc<OnceCell<String>>>>);

impl SingleFlight {
    /// Runs `load`, or waits for the same key's running load. If that one fails or is dropped, the next waiter loads.
    pub(crate) async fn run<E>(
        &self,
        key: String,
        load: impl AsyncFnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let cell = Arc::clone(self.lock().entry(key.clone()).or_default());
        let loaded = cell.get_or_try_init(async || load().await).await.cloned();

        let mut running = self.lock();
        let is_current = running
            .get(&key)
            .is_some_and(|current| Arc::ptr_eq(current, &cell));
        if is_current {
            running.remove(&key);
        }
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<String>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
