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

/// A random time to wait before try `attempt` + 1, from half of `first` on; the longest doubles with each try up to
/// `max`. Random, so that clients that failed together do not come back together.
pub(crate) fn jittered(first: Duration, attempt: u32, max: Duration) -> Duration {
    jittered_by(random_share(), first, attempt, max)
}

/// The same with a share from 0 to 1 that was drawn by somebody else.
pub(crate) fn jittered_by(share: f64, first: Duration, attempt: u32, max: Duration) -> Duration {
    let longest = first.saturating_mul(1 << attempt.min(16)).min(max);
    let shortest = (first / 2).min(longest);
    shortest + (longest - shortest).mul_f64(share)
}

/// From 0 to 1; without random numbers 1, so that it is waited the longest.
pub(crate) fn random_share() -> f64 {
    chronofs_wire::identity::random()
        .map_or(1.0, |drawn| f64::from(u32::from_le_bytes(drawn)) / f64::from(u32::MAX))
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
    fn waits_differ_and_grow_up_to_a_limit() {
        let wait = |attempt| jittered(Duration::from_millis(100), attempt, Duration::from_secs(2));
        for attempt in 1..40 {
            let longest = Duration::from_millis(100 * (1 << attempt.min(10))).min(Duration::from_secs(2));
            assert!((Duration::from_millis(50)..=longest).contains(&wait(attempt)));
        }
        assert!((0..9).map(|_| wait(9)).collect::<std::collections::BTreeSet<_>>().len() > 1);
    }

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
