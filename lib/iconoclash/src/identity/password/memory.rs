//! The memory of hashes: a few buffers that are reused while hashes wait or run, and given back to the system after that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use argon2::Block;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A buffer reserves more than 32 MiB, although a hash touches 19 MiB of it: from that size on, glibc maps every buffer on
/// its own and unmaps it when it is freed. Smaller ones stay in the heaps of the threads for ever.
const RESERVED_BLOCKS: usize = 33 * 1024;

/// Buffers for at most so many hashes at once. Further ones wait in order.
pub(super) struct Memory {
    places: Semaphore,
    state: Mutex<State>,
}

struct State {
    free: Vec<Vec<Block>>,
    /// Hashes that wait or run.
    wanted: usize,
    #[cfg(test)]
    allocated_ever: usize,
}

/// The memory of one hash, while it waits and runs.
pub(super) struct Lease<'a> {
    memory: &'a Memory,
    /// `None` while the hash waits.
    blocks: Option<Vec<Block>>,
    /// Given back after the blocks, so that the next hash finds them.
    _place: Option<SemaphorePermit<'a>>,
}

impl Memory {
    pub(super) const fn new(places: usize) -> Self {
        Self {
            places: Semaphore::const_new(places),
            state: Mutex::new(State {
                free: Vec::new(),
                wanted: 0,
                #[cfg(test)]
                allocated_ever: 0,
            }),
        }
    }

    /// Memory for one hash, as soon as it is this caller's turn.
    pub(super) async fn lease(&self) -> Lease<'_> {
        self.state().wanted += 1;
        // From here on, a caller who leaves is no longer counted.
        let mut lease = Lease {
            memory: self,
            blocks: None,
            _place: None,
        };

        let place = self.places.acquire().await;
        lease._place = Some(place.expect("the semaphore is never closed"));
        lease.blocks = Some(self.take());
        lease
    }

    fn take(&self) -> Vec<Block> {
        let mut state = self.state();
        if let Some(blocks) = state.free.pop() {
            return blocks;
        }

        #[cfg(test)]
        {
            state.allocated_ever += 1;
        }
        Vec::with_capacity(RESERVED_BLOCKS)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn allocated_ever(&self) -> usize {
        self.state().allocated_ever
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.state().free.len()
    }
}

impl Lease<'_> {
    /// Blocks whose content and number are those that the hash before has left.
    pub(super) fn blocks(&mut self) -> &mut Vec<Block> {
        self.blocks.get_or_insert_default()
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.wanted -= 1;
        state.free.extend(self.blocks.take());

        // A buffer is kept for each hash that still waits or runs, and none after the last.
        let kept = state.wanted.min(state.free.len());
        let unused = state.free.split_off(kept);

        // Unmapping takes a while.
        drop(state);
        drop(unused);
    }
}
