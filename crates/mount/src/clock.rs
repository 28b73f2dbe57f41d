//! The server's clock as a client knows it: an offset to the monotonic clock, so that a jump of the local clock
//! changes nothing.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct ServerClock {
    base: Instant,
    /// The server's clock at `base`.
    offset_ns: AtomicI64,
}

impl ServerClock {
    pub(crate) fn new() -> Self {
        ServerClock { base: Instant::now(), offset_ns: AtomicI64::new(0) }
    }

    /// The server's clock shows `server_ns` now (or did when it answered: file times are never ahead of it).
    pub(crate) fn set(&self, server_ns: u64) {
        let server_ns = i64::try_from(server_ns).unwrap_or(i64::MAX);
        self.offset_ns.store(server_ns.saturating_sub(self.elapsed_ns()), Ordering::Relaxed);
    }

    /// Nanoseconds since the epoch.
    pub(crate) fn now_ns(&self) -> i64 {
        self.offset_ns.load(Ordering::Relaxed).saturating_add(self.elapsed_ns())
    }

    fn elapsed_ns(&self) -> i64 {
        i64::try_from(self.base.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_on_from_what_the_server_said() {
        let clock = ServerClock::new();
        clock.set(1_000_000_000_000);
        let first = clock.now_ns();
        assert!((1_000_000_000_000..1_001_000_000_000).contains(&first));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(clock.now_ns() >= first + 5_000_000);
    }
}
