//! The object counters that a session was granted: where new ids come from.

use chronofs_core::{ObjectId, SessionId};

/// A range of object ids of one session, handed out in order and never twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    incarnation: u16,
    session: SessionId,
    next: u64,
    end: u64,
}

impl Grant {
    /// The counters `range.0..range.1` of `session` under `incarnation`.
    pub fn new(incarnation: u16, session: SessionId, range: (u64, u64)) -> Self {
        Grant { incarnation, session, next: range.0, end: range.1 }
    }

    /// Whose they are.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The next counter that is handed out.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The next `count` ids, or `None` if fewer are left: ask the server for more.
    pub fn take(&mut self, count: usize) -> Option<Vec<ObjectId>> {
        let end = self.next.checked_add(count as u64).filter(|end| *end <= self.end)?;
        let first = std::mem::replace(&mut self.next, end);
        Some(
            (first..end)
                .map(|n| ObjectId { incarnation: self.incarnation, session: self.session, n })
                .collect(),
        )
    }

    /// Goes on with a further range of the same session. What was left of the old one stays unused.
    pub fn extend(&mut self, range: (u64, u64)) {
        // A range that comes a second time must not hand its ids out a second time.
        self.next = range.0.max(self.next);
        self.end = range.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(ids: Option<Vec<ObjectId>>) -> Option<Vec<u64>> {
        ids.map(|ids| ids.iter().map(|id| id.n).collect())
    }

    #[test]
    fn ids_are_handed_out_once_and_run_out() {
        let mut grant = Grant::new(1, SessionId(9), (5, 8));
        assert_eq!(counters(grant.take(2)), Some(vec![5, 6]));
        assert_eq!(grant.take(2), None);
        assert_eq!(counters(grant.take(1)), Some(vec![7]));
        assert_eq!(grant.take(1), None);
        grant.extend((100, 102));
        assert_eq!(counters(grant.take(2)), Some(vec![100, 101]));
    }

    #[test]
    fn a_range_given_twice_does_not_give_its_ids_twice() {
        let mut grant = Grant::new(1, SessionId(9), (5, 8));
        assert_eq!(counters(grant.take(2)), Some(vec![5, 6]));
        grant.extend((5, 8));
        assert_eq!(counters(grant.take(1)), Some(vec![7]));
        assert_eq!(grant.take(1), None);
    }
}
