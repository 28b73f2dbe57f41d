//! How often things happen: counters looked at every second, and their difference over the last ten.

use chronofs_wire::status::Rates;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// So many looks are kept.
const LOOKS: usize = 11;

/// Counters that only rise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    /// Requests that read.
    pub(crate) reads: u64,
    /// Requests that change something.
    pub(crate) writes: u64,
    /// Commits.
    pub(crate) commits: u64,
}

/// The last looks.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<VecDeque<(u64, Counts)>>);

impl Looks {
    /// The counters as they are at `now_ns` of a clock that only rises.
    pub(crate) fn note(&self, now_ns: u64, counts: Counts) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.push_back((now_ns, counts));
        while looks.len() > LOOKS {
            looks.pop_front();
        }
    }

    /// How often each thing happened, a second.
    pub(crate) fn rates(&self) -> Rates {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((from_ns, from)), Some((to_ns, to))) = (looks.front(), looks.back()) else {
            return Rates::default();
        };
        let seconds = to_ns.saturating_sub(*from_ns) as f64 / 1e9;
        let rate = |from: u64, to: u64| match seconds > 0.0 {
            true => to.saturating_sub(from) as f64 / seconds,
            false => 0.0,
        };
        Rates {
            reads: rate(from.reads, to.reads),
            writes: rate(from.writes, to.writes),
            commits: rate(from.commits, to.commits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_ten_seconds() {
        let looks = Looks::default();
        assert_eq!(looks.rates(), Rates::default());
        looks.note(5, Counts { reads: 9, ..Counts::default() });
        assert_eq!(looks.rates(), Rates::default(), "one look tells nothing");
        for second in 1..=30u64 {
            // Much in the first seconds, 3 a second later.
            let reads = if second < 10 { second * 1000 } else { 10_000 + second * 3 };
            looks.note(second * 1_000_000_000, Counts { reads, writes: second, commits: 7 });
        }
        assert_eq!(looks.rates(), Rates { reads: 3.0, writes: 1.0, commits: 0.0 });
    }
}
