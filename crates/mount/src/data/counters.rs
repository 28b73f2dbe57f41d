//! Which object counters may still be published: the server is told, so that what was stored in vain goes while the mount
//! runs, and what is hardly needed any more is repacked.

use super::lock;
use chronofs_core::{ObjectId, SessionId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// The counters of the session that writes.
#[derive(Debug)]
pub(super) struct Counters(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    session: SessionId,
    /// All that were handed out are lower.
    next: u64,
    /// The first of those that were handed out together and may be published.
    open: BTreeSet<u64>,
}

/// Ids that something may be published under, for as long as this is there.
#[derive(Debug)]
pub(super) struct InUse {
    counters: Arc<Counters>,
    session: SessionId,
    first: u64,
}

impl Counters {
    pub(super) fn new(session: SessionId, next: u64) -> Self {
        Counters(Mutex::new(Inner { session, next, open: BTreeSet::new() }))
    }

    /// A new session writes: nothing is published any more under ids of the one before.
    pub(super) fn begin(&self, session: SessionId, next: u64) {
        *lock(&self.0) = Inner { session, next, open: BTreeSet::new() };
    }

    /// `ids`, in order, were handed out. `None` if there are none.
    pub(super) fn use_of(self: &Arc<Self>, ids: &[ObjectId]) -> Option<InUse> {
        let (first, last) = (ids.first()?, ids.last()?);
        let mut inner = lock(&self.0);
        inner.open.insert(first.n);
        inner.next = last.n + 1;
        Some(InUse { counters: self.clone(), session: first.session, first: first.n })
    }

    /// The session, and below which counter nothing of it is published any more.
    pub(super) fn floor(&self) -> (SessionId, u64) {
        let inner = lock(&self.0);
        (inner.session, inner.open.first().copied().unwrap_or(inner.next))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut inner = lock(&self.counters.0);
        if inner.session == self.session {
            inner.open.remove(&self.first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(session: u64, counters: std::ops::Range<u64>) -> Vec<ObjectId> {
        counters.map(|n| ObjectId { incarnation: 1, session: SessionId(session), n }).collect()
    }

    #[test]
    fn the_floor_is_the_lowest_counter_that_may_be_published() {
        let counters = Arc::new(Counters::new(SessionId(7), 5));
        assert_eq!(counters.floor(), (SessionId(7), 5));
        let first = counters.use_of(&ids(7, 5..8));
        let second = counters.use_of(&ids(7, 8..9));
        assert!(counters.use_of(&[]).is_none());
        assert_eq!(counters.floor(), (SessionId(7), 5));
        drop(second);
        assert_eq!(counters.floor(), (SessionId(7), 5), "the first ones may be published still");
        let third = counters.use_of(&ids(7, 9..12));
        drop(first);
        assert_eq!(counters.floor(), (SessionId(7), 9));
        drop(third);
        assert_eq!(counters.floor(), (SessionId(7), 12));
    }

    #[test]
    fn ids_of_a_session_that_is_over_hold_nothing_of_the_next() {
        let counters = Arc::new(Counters::new(SessionId(7), 0));
        let old = counters.use_of(&ids(7, 0..3));
        counters.begin(SessionId(8), 0);
        let new = counters.use_of(&ids(8, 0..3));
        drop(old);
        assert_eq!(counters.floor(), (SessionId(8), 0));
        drop(new);
        assert_eq!(counters.floor(), (SessionId(8), 3));
    }
}
