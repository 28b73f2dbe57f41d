//! The memory that unpublished bytes of all files may take together.

use super::lock;
use std::sync::Mutex;
use tokio::sync::Notify;

/// A count of bytes with a limit. A single write larger than the limit is let in when nothing else is.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: Mutex<u64>,
    released: Notify,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Budget { limit, used: Mutex::new(0), released: Notify::new() }
    }

    /// Takes `bytes` unless that would exceed the limit.
    pub(super) fn try_take(&self, bytes: u64) -> bool {
        let mut used = lock(&self.used);
        let fits = *used == 0 || *used + bytes <= self.limit;
        if fits {
            *used += bytes;
        }
        fits
    }

    /// Gives bytes back.
    pub(super) fn release(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = lock(&self.used);
            debug_assert!(*used >= bytes, "more bytes given back than taken");
            *used = used.saturating_sub(bytes);
            drop(used);
            self.released.notify_waiters();
        }
    }

    /// Returns after the next release; create it before trying, so that none is missed.
    pub(super) fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }

    /// Whether more than half is taken: time to write back what is old.
    pub(super) fn is_tight(&self) -> bool {
        *lock(&self.used) > self.limit / 2
    }

    /// Bytes that are taken.
    pub(super) fn used(&self) -> u64 {
        *lock(&self.used)
    }
}
