//! Whether a way to the store is open: one that failed is left alone for a while, then tried by one request.

use crate::data::lock;
use std::sync::Mutex;
use std::time::Duration;

/// How long a way is left alone after it failed the first time, and at the most.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Closed {
    until: Duration,
    pause: Duration,
    /// One request is on its way to see.
    trying: bool,
}

/// See the module. Times are handed in.
#[derive(Debug, Default)]
pub(super) struct Way(Mutex<Option<Closed>>);

impl Way {
    /// Whether a request may go this way now. Of those that come when a pause is over, the first may.
    pub(super) fn may_pass(&self, now: Duration) -> bool {
        match &mut *lock(&self.0) {
            None => true,
            Some(closed) if closed.until > now => false,
            Some(closed) => {
                (closed.until, closed.trying) = (now + closed.pause, true);
                true
            }
        }
    }

    /// A request failed. Whether that is news.
    pub(super) fn failed(&self, now: Duration) -> bool {
        let mut state = lock(&self.0);
        let pause = match &*state {
            // Others were under way when the first failed.
            Some(closed) if !closed.trying => return false,
            Some(closed) => (closed.pause * 2).min(PAUSE_MAX),
            None => PAUSE_FIRST,
        };
        state.replace(Closed { until: now + pause, pause, trying: false }).is_none()
    }

    /// A request went through. Whether that is news.
    pub(super) fn worked(&self) -> bool {
        lock(&self.0).take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_way_that_failed_is_tried_again_by_one_request_after_ever_longer_pauses() {
        let way = Way::default();
        assert!(way.may_pass(at(0)) && way.may_pass(at(0)));
        assert!(way.failed(at(0)));
        assert!(!way.failed(at(0)), "others that were under way");
        assert!(!way.may_pass(at(4)));
        assert!(way.may_pass(at(5)) && !way.may_pass(at(5)));
        let (mut now, mut tries) = (5, Vec::new());
        for _ in 0..8 {
            assert!(!way.failed(at(now)), "no news");
            let next = (now..).find(|second| way.may_pass(at(*second))).unwrap();
            tries.push(next - now);
            now = next;
        }
        assert_eq!(tries, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(way.worked() && !way.worked());
        assert!(way.may_pass(at(now)) && way.may_pass(at(now)));
    }
}
