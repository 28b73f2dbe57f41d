//! The server's clock as a client knows it: an offset to a clock of this machine that nobody sets and that runs on
//! while the machine sleeps, so that neither a jump of the local time nor a closed laptop changes anything.

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Time since this machine was started, sleep included. `Instant` stands still in it.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ServerClock {
    /// The server's clock when this machine was started.
    offset_ns: AtomicI64,
}

impl ServerClock {
    pub(crate) fn new() -> Self {
        ServerClock { offset_ns: AtomicI64::new(0) }
    }

    /// The server's clock shows `server_ns` now (or did when it answered: file times are never ahead of it).
    pub(crate) fn set(&self, server_ns: u64) {
        let server_ns = i64::try_from(server_ns).unwrap_or(i64::MAX);
        self.offset_ns.store(server_ns.saturating_sub(since_boot_ns()), Ordering::Relaxed);
    }

    /// Nanoseconds since the epoch.
    pub(crate) fn now_ns(&self) -> i64 {
        self.offset_ns.load(Ordering::Relaxed).saturating_add(since_boot_ns())
    }
}

fn since_boot_ns() -> i64 {
    i64::try_from(since_boot().as_nanos()).unwrap_or(i64::MAX)
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
