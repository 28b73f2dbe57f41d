//! What may not be forgotten: the instants of a volume that somebody can still ask for.

use crate::rows::{Session, Volume};
use chronofs_core::{SessionId, Version, VolumeIndex};

/// Instants from `from` to `to`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Interval {
    /// The first.
    pub from: Version,
    /// The last.
    pub to: Version,
}

impl Interval {
    /// Whether a row that held from `since` until before `until` shows at one of the instants.
    pub fn meets(self, since: Version, until: Version) -> bool {
        since <= self.to && self.from < until
    }
}

/// The protected intervals of a volume: all from its horizon on, and each instant that a session leases. A session
/// counts until it is ended, not until its time runs out. Sorted, disjoint.
pub fn protected_intervals(
    index: VolumeIndex,
    volume: &Volume,
    sessions: &[(SessionId, Session)],
) -> Vec<Interval> {
    let leases = sessions.iter().filter(|(_, session)| session.volume == index);
    let leases = leases.filter_map(|(_, session)| session.at).map(|at| Interval { from: at, to: at });
    let window = Interval { from: volume.horizon, to: Version::MAX };
    union(leases.chain([window]).collect())
}

/// The union of intervals, sorted, disjoint and not touching.
pub fn union(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut united: Vec<Interval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        match united.last_mut() {
            Some(last) if interval.from.0 <= last.to.0.saturating_add(1) => {
                last.to = last.to.max(interval.to)
            }
            _ => united.push(interval),
        }
    }
    united
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(from: u64, to: u64) -> Interval {
        Interval { from: Version(from), to: Version(to) }
    }

    #[test]
    fn a_union_is_sorted_and_disjoint() {
        let given = vec![interval(50, 60), interval(7, 7), interval(1, 5), interval(6, 6), interval(55, 70)];
        assert_eq!(union(given), [interval(1, 7), interval(50, 70)]);
        assert_eq!(union(vec![interval(9, u64::MAX), interval(u64::MAX, u64::MAX)]), [interval(9, u64::MAX)]);
        assert_eq!(union(Vec::new()), []);
    }

    #[test]
    fn a_row_is_met_from_its_first_instant_to_before_its_last() {
        let lease = interval(10, 10);
        assert!(lease.meets(Version(10), Version(11)));
        assert!(lease.meets(Version(1), Version(11)));
        assert!(!lease.meets(Version(1), Version(10)));
        assert!(!lease.meets(Version(11), Version(12)));
    }
}
