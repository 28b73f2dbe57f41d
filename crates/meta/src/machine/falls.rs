//! Sudden falls: more than half of the files of a volume removed within an hour. Whoever did that, by mistake or on purpose,
//! the instant before is held, until an operator lets it go, so that the window does not pass it by.
//!
//! Files are counted once a second while the server runs; what fell before a restart is not known after it. What was
//! overwritten and not removed does not show here.
//!
//! What is held of objects and staged slices is counted in the same way, and the brake of the collection looks only at what fell: what
//! loses its last name as steadily as other things get one is no accident, however much it is at a time.

use super::Machine;
use super::group::{Effect, Group, Then};
use crate::holds::{brake_note, brake_of};
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::{KeptInstant, SystemReply, instants, list_kept};
use std::collections::VecDeque;

/// How often files are counted,
const EVERY_NS: u64 = 1_000_000_000;
/// and for how long a count is compared with.
const WITHIN_NS: u64 = 3_600_000_000_000;
/// So many falls of a volume are held: each keeps bytes until somebody looks at it. Of further ones there is a word only.
const HELD_MAX: usize = 4;

/// Counts of a volume's files.
#[derive(Clone, Debug, Default)]
pub(super) struct Falls {
    /// Each higher than all that follow; the newest of those that are alike.
    counts: VecDeque<Count>,
    /// When they were counted last, or passed over.
    counted_ns: Option<u64>,
    /// It is not held yet, nor refused: the commit may fail, for want of room. Of several the first.
    open: Option<Fall>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    steady_ns: u64,
    at: Version,
    files: u64,
}

/// From so many files at an instant to so many now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fall {
    before: Version,
    from: u64,
    to: u64,
}

impl Falls {
    fn is_due(&self, steady_ns: u64) -> bool {
        self.counted_ns.is_none_or(|counted_ns| steady_ns >= counted_ns + EVERY_NS)
    }

    /// There are so many files as of the instant `at`; none before `earliest` can be had. Gives a fall by more than half, and by
    /// `least` at least, again and again until it is [closed](Falls::close); the next one is counted from here.
    fn count(&mut self, count: Count, earliest: Version, least: u64) -> Option<Fall> {
        self.counted_ns = Some(count.steady_ns);
        while self.counts.back().is_some_and(|known| known.files <= count.files) {
            self.counts.pop_back();
        }
        let old = |known: &Count| known.steady_ns + WITHIN_NS < count.steady_ns || known.at < earliest;
        while self.counts.front().is_some_and(old) {
            self.counts.pop_front();
        }
        self.counts.push_back(count);
        let first = *self.counts.front()?;
        let fall = Fall { before: first.at, from: first.files, to: count.files };
        let fallen = first.files - count.files;
        if fallen >= least.max(1) && count.files < fallen {
            self.counts = VecDeque::from([count]);
            self.open.get_or_insert(fall);
        }
        self.open
    }

    /// There is no past of the volume to go back to now, or its files cannot be counted.
    fn passed_over(&mut self, steady_ns: u64) {
        self.counted_ns = Some(steady_ns);
    }

    /// The fall that was told of is held, or cannot be.
    pub(super) fn close(&mut self) {
        self.open = None;
    }
}

impl Machine {
    /// Holds the instant before a sudden fall, and shows what is held so: of every volume that is there, also of one that is deleted
    /// or keeps no past any more.
    pub(super) fn watch_falls(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let there = self.volumes.values().filter(|volume| !volume.row.is_gone());
        let due = there.filter(|volume| volume.falls.is_due(group.steady_ns));
        let due: Vec<(VolumeIndex, bool)> = due
            .map(|volume| (volume.index, volume.row.is_live() && volume.row.history_since.is_some()))
            .collect();
        if due.is_empty() || group.full {
            return Ok(());
        }
        let kept = match list_kept(&group.reads) {
            Ok(kept) => kept,
            Err(stop) => return self.stopped(group, stop, "looking for holds").map(drop),
        };
        for (index, counts) in due {
            let held = held_by_brake(index, &kept);
            // What cannot be read is no fall; it is told to whoever needs it.
            let used =
                counts.then(|| chronofs_namespace::usage(&group.reads, index).ok().flatten()).flatten();
            let tally = chronofs_namespace::tally(&group.reads, index).ok();
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            volume.collecting.shown.held_at = held.iter().min().map(ToString::to_string);
            if let Some(tally) = tally {
                let count = Count { steady_ns: group.steady_ns, at: self.last, files: tally.held.count };
                if volume.falls_of_held.count(count, Version::ZERO, self.config.brake_from).is_some() {
                    self.brake(group, index)?;
                }
            }
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            let Some(used) = used else {
                volume.falls.passed_over(group.steady_ns);
                continue;
            };
            let files = used.used_inodes;
            let now = self.next_version(group);
            let count = Count { steady_ns: group.steady_ns, at: self.last, files };
            let least = self.config.brake_from;
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            if let Some(fall) = volume.falls.count(count, instants(&volume.row, now).0, least) {
                self.hold_before(group, index, fall, held.len())?;
            }
        }
        Ok(())
    }

    /// Notes at once that what fell is to wait for a word, if it is more than what is left: the collection may not begin for a while,
    /// and a start that comes before that knows nothing of the fall. Nothing is condemned here.
    fn brake(&mut self, group: &mut Group, index: VolumeIndex) -> Result<(), EngineError> {
        let Some(volume) = self.volumes.get(&index) else { return Ok(()) };
        let (id, next, never) = (volume.id(), volume.collecting.condemned_to, Version::ZERO);
        let brake = self.config.brake_from;
        let request = SystemRequest::Condemn { volume: id, from: never, before: never, limit: 0, brake };
        if let Ok(SystemReply::Condemned { braked, .. }) = self.system(group, &request)? {
            group.thens.push(Then::Condemned { index, staged: 0, braked, fell: true, next });
        }
        Ok(())
    }

    fn hold_before(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        fall: Fall,
        held: usize,
    ) -> Result<(), EngineError> {
        let Fall { before, from, to } = fall;
        let Some(state) = self.volumes.get(&index) else { return Ok(()) };
        let (volume, name, incarnation) = (state.id(), state.row.spec.name.clone(), state.row.incarnation);
        let fell =
            format!("volume {name}: of {from} files {} were removed within an hour", from.saturating_sub(to));
        group.thens.push(Then::FallTold(index));
        if held >= HELD_MAX {
            group.effects.push(Effect::Warn(format!(
                "{fell}; the instant before, {before}, is not held beyond the window, since {held} before earlier falls are: hold \
                 it (chronofs configure create hold --volume {name} --at {before}), and let those go that nobody needs"
            )));
            return Ok(());
        }
        let (id, row, note) = brake_note(volume, incarnation, before, (from, to));
        let request =
            SystemRequest::Keep { volume, id: row, at: before, to: before, ends: None, note, found: false };
        let told = match self.system(group, &request)? {
            Ok(_) => {
                if let Some(volume) = self.volumes.get_mut(&index) {
                    volume.collecting.shown.held_at.get_or_insert(before.to_string());
                }
                format!(
                    "{fell}; the instant before, {before}, is held beyond the window until somebody lets it go: chronofs \
                     configure delete hold {id}"
                )
            }
            Err(error) => format!("{fell}; the instant before, {before}, cannot be held: {error}"),
        };
        group.effects.push(Effect::Warn(told));
        Ok(())
    }

    /// What was said and committed of a fall holds.
    pub(super) fn fall_told(&mut self, index: VolumeIndex) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.falls.close();
        }
    }
}

/// The instants that brakes hold of a volume.
fn held_by_brake(index: VolumeIndex, kept: &[KeptInstant]) -> Vec<Version> {
    let ours = kept.iter().filter(|(of, _, row)| *of == index && brake_of(&row.note).is_some());
    ours.map(|(.., row)| row.at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(falls: &mut Falls, second: u64, files: u64) -> Option<Fall> {
        let count = Count { steady_ns: second * EVERY_NS, at: Version(second), files };
        falls.count(count, Version(0), 10)
    }

    #[test]
    fn the_instant_before_a_fall_is_the_last_at_which_nothing_had_gone() {
        let mut falls = Falls::default();
        for (second, files) in [(1, 90), (2, 100), (3, 100), (4, 70), (5, 50)] {
            assert_eq!(counted(&mut falls, second, files), None);
        }
        let fall = Fall { before: Version(3), from: 100, to: 49 };
        assert_eq!(counted(&mut falls, 6, 49), Some(fall));
        falls.close();
        assert_eq!(counted(&mut falls, 7, 25), None, "counted from there");
        assert_eq!(counted(&mut falls, 8, 24), Some(Fall { before: Version(6), from: 49, to: 24 }));
    }

    #[test]
    fn a_fall_that_could_not_be_committed_is_told_until_it_is() {
        let mut falls = Falls::default();
        assert_eq!(counted(&mut falls, 1, 100), None);
        let fall = Some(Fall { before: Version(1), from: 100, to: 40 });
        assert_eq!(counted(&mut falls, 2, 40), fall);
        assert_eq!(counted(&mut falls, 3, 10), fall, "the first");
        assert_eq!(counted(&mut falls, 9000, 10), fall);
        falls.close();
        assert_eq!(counted(&mut falls, 9001, 10), None);
    }

    #[test]
    fn few_files_and_slow_falls_are_no_reason() {
        let mut falls = Falls::default();
        assert_eq!(counted(&mut falls, 1, 10), None);
        assert_eq!(counted(&mut falls, 2, 1), None, "nine are few");
        let mut falls = Falls::default();
        for n in 0..100u64 {
            assert_eq!(counted(&mut falls, n * 70, 1000 - n * 4), None, "half takes longer than an hour");
        }
    }

    #[test]
    fn an_instant_that_cannot_be_had_any_more_is_not_gone_back_to() {
        let mut falls = Falls::default();
        assert_eq!(counted(&mut falls, 1, 100), None);
        assert_eq!(counted(&mut falls, 2, 60), None);
        let count = Count { steady_ns: 3 * EVERY_NS, at: Version(3), files: 40 };
        assert_eq!(falls.count(count, Version(2), 10), None);
        let count = Count { steady_ns: 4 * EVERY_NS, at: Version(4), files: 20 };
        let fall = Fall { before: Version(2), from: 60, to: 20 };
        assert_eq!(falls.count(count, Version(2), 10), Some(fall));
    }
}
