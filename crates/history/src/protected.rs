//! Which instants must stay readable: the retention window, leases of mounted pasts, and later pins and holds.

use chronofs_core::Version;

/// A set of instants, as closed intervals that are sorted and neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Protected {
    intervals: Vec<(Version, Version)>,
}

impl Protected {
    /// Nothing is protected.
    pub fn new() -> Self {
        Protected::default()
    }

    /// Protects `first` to `last`, both included. Nothing if `first` is above `last`.
    pub fn add(&mut self, first: Version, last: Version) {
        if first > last {
            return;
        }
        // What overlaps or touches the new interval: it ends at or after the instant before it and starts at or
        // before the instant after it.
        let start = self.intervals.partition_point(|&(_, end)| end.0.saturating_add(1) < first.0);
        let end = self.intervals.partition_point(|&(begin, _)| begin.0 <= last.0.saturating_add(1));
        let mut joined = (first, last);
        for &(begin, end) in &self.intervals[start..end] {
            joined = (joined.0.min(begin), joined.1.max(end));
        }
        self.intervals.splice(start..end, [joined]);
    }

    /// Whether `at` is protected.
    pub fn contains(&self, at: Version) -> bool {
        let next = self.intervals.partition_point(|&(_, end)| end < at);
        self.intervals.get(next).is_some_and(|&(begin, _)| begin <= at)
    }

    /// Whether all instants from `first` to `last` are protected, both included.
    pub fn covers(&self, first: Version, last: Version) -> bool {
        let next = self.intervals.partition_point(|&(_, end)| end < first);
        self.intervals.get(next).is_some_and(|&(begin, end)| begin <= first && last <= end)
    }

    /// Whether an instant of the life [since, until) is protected.
    pub fn intersects(&self, since: Version, until: Version) -> bool {
        let next = self.intervals.partition_point(|&(_, end)| end < since);
        since < until && self.intervals.get(next).is_some_and(|&(begin, _)| begin < until)
    }

    /// The intervals, first to last, both ends included.
    pub fn intervals(&self) -> impl Iterator<Item = (Version, Version)> {
        self.intervals.iter().copied()
    }
}

impl FromIterator<(Version, Version)> for Protected {
    fn from_iter<I: IntoIterator<Item = (Version, Version)>>(intervals: I) -> Self {
        let mut protected = Protected::new();
        intervals.into_iter().for_each(|(first, last)| protected.add(first, last));
        protected
    }
}
