//! The pace of what goes on beside the clients: collecting, forgetting, packing.
//!
//! While clients work, only a little of it is done at a tick, so that they hardly notice; more the more of it waits, so
//! that what waits stays bounded on a server that is never idle; and all that goes when nobody is held up by it.

use super::Machine;
use super::group::Group;
use std::collections::VecDeque;

/// So long after their last call clients count as being at work.
const QUIET_NS: u64 = 500_000_000;

/// How much of something is done at a tick.
pub(super) struct Pace {
    /// Beside clients, at the least.
    pub(super) beside: u64,
    /// At the most.
    pub(super) full: u64,
    /// One in so many of those that wait, where that is between the two.
    pub(super) one_in: u64,
}

impl Pace {
    fn at(&self, clients_work: bool, waiting: u64) -> u64 {
        if clients_work { (waiting / self.one_in).clamp(self.beside, self.full) } else { self.full }
    }
}

/// So long is lately, and what is counted together in it.
const LATELY_S: u64 = 10;
const SLOT_NS: u64 = 1_000_000_000;

/// What was done lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately {
    /// Since when, and how much.
    slots: VecDeque<(u64, u64)>,
}

impl Lately {
    pub(super) fn add(&mut self, steady_ns: u64, count: u64) {
        match self.slots.back_mut() {
            Some((since_ns, sum)) if steady_ns < *since_ns + SLOT_NS => *sum += count,
            _ => self.slots.push_back((steady_ns, count)),
        }
    }

    /// In a second of the last ten on average, rounded up: 0 means nothing.
    pub(super) fn per_second(&mut self, steady_ns: u64) -> u64 {
        while self.slots.front().is_some_and(|(since_ns, _)| since_ns + LATELY_S * SLOT_NS <= steady_ns) {
            self.slots.pop_front();
        }
        self.slots.iter().map(|(_, sum)| sum).sum::<u64>().div_ceil(LATELY_S)
    }
}

impl Machine {
    /// A client's call is decided.
    pub(super) fn note_call(&mut self, group: &Group) {
        self.called_ns = Some(group.steady_ns);
    }

    /// Whether clients would notice what is done at this tick.
    pub(super) fn clients_work(&self, group: &Group) -> bool {
        self.called_ns.is_some_and(|called_ns| group.steady_ns < called_ns + QUIET_NS)
    }

    /// How much of what waits is done at this tick.
    pub(super) fn at_pace(&self, group: &Group, pace: &Pace, waiting: u64) -> u64 {
        pace.at(self.clients_work(group), waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_clients_it_is_little_until_much_waits_and_else_all_that_goes() {
        let pace = Pace { beside: 8, full: 128, one_in: 1024 };
        for (clients_work, waiting, done) in [
            (false, 0, 128),
            (false, 1 << 30, 128),
            (true, 0, 8),
            (true, 8 << 10, 8),
            (true, 9 << 10, 9),
            (true, 100 << 10, 100),
            (true, 1 << 30, 128),
        ] {
            assert_eq!(pace.at(clients_work, waiting), done, "{clients_work} {waiting}");
        }
    }

    #[test]
    fn what_was_done_is_shown_for_ten_seconds_and_takes_no_more_room_than_that() {
        let mut lately = Lately::default();
        for tenth in 0..1000 {
            lately.add(tenth * SLOT_NS / 10, 8);
            let shown = lately.per_second(tenth * SLOT_NS / 10);
            assert!(tenth < 200 || (72..=80).contains(&shown), "{shown} after {tenth} tenths");
        }
        assert!(lately.slots.len() <= 10);
        let end_ns = 999 * SLOT_NS / 10;
        assert!((1..80).contains(&lately.per_second(end_ns + 5 * SLOT_NS)));
        assert_eq!(lately.per_second(end_ns + 10 * SLOT_NS), 0);
        lately.add(end_ns + 11 * SLOT_NS, 1);
        assert_eq!(lately.per_second(end_ns + 11 * SLOT_NS), 1, "something is not nothing");
    }
}
