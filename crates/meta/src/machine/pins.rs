//! Pins that lie in a block store: beside the pins in the state, they say what may not be forgotten and deleted.
//!
//! As a rule both say the same, since a pin is made in the state first. One that lies in the store alone is of metadata
//! that is lost: it is taken into the state, and obeyed from then on. A pin that is in the state alone is obeyed as it is;
//! that a listing does not show it says nothing. What lies there is read anew now and then. As long as that was not done
//! since the start, is too long ago, or brought anything that cannot be read or is not known, nothing of the volume is
//! forgotten, condemned or deleted.

use super::Machine;
use super::group::{Group, Then};
use super::volumes::VolumeState;
use chronofs_blocks::Pin;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::{KeptInstant, list_kept};
use uuid::Uuid;

/// What was read of the pins of a volume in its block store.
#[derive(Clone, Debug)]
pub struct PinsRead {
    /// The volume.
    pub volume: Uuid,
    /// When the reading began, by the steady clock.
    pub began_ns: u64,
    /// All of the volume's pins, or why it is not known whether these are all.
    pub found: Result<Vec<Pin>, String>,
}

/// What is known of them. Not in the state: a restart begins anew.
#[derive(Clone, Debug, Default)]
pub(super) struct PinsKnown {
    /// When they were last read whole, and understood.
    read_ns: Option<u64>,
    /// Why they were not since.
    problem: Option<String>,
    /// What had survived at the first start since which they were not read, if so: as the state says.
    unproven: Option<Version>,
    /// When the last reading began that was heard of.
    heard_ns: u64,
    /// When one was last released.
    released_ns: Option<u64>,
}

impl PinsKnown {
    /// Of a volume that was made by this commit.
    pub(super) fn new(born: Version) -> Self {
        PinsKnown { unproven: Some(born), ..PinsKnown::default() }
    }

    pub(super) fn released(&mut self, steady_ns: u64) {
        self.released_ns = Some(steady_ns);
    }
}

/// What is damaged is a reason to wait; anything else is the end of the server.
fn told(problem: Result<Option<String>, EngineError>) -> Result<Option<String>, EngineError> {
    match problem {
        Err(EngineError::Damaged { what, detail }) => Ok(Some(format!("{what}: {detail}"))),
        problem => problem,
    }
}

impl Machine {
    /// Why nothing of the volume may be forgotten or deleted now, if so.
    pub(super) fn unread_pins(&self, index: VolumeIndex, steady_ns: u64) -> Option<String> {
        let known = &self.volumes.get(&index)?.pins;
        if let Some(from) = &self.config.restored {
            return Some(format!("restored from {from}, which nobody has accepted: chronofs restore accept"));
        }
        let age_ns_max = u64::from(self.config.pins_age_ms) * 1_000_000;
        if let Some(problem) = &known.problem {
            return Some(problem.clone());
        }
        match known.read_ns {
            None => Some("the pins in its block store are not read yet".to_owned()),
            Some(read_ns) if steady_ns.saturating_sub(read_ns) > age_ns_max => {
                let minutes = steady_ns.saturating_sub(read_ns) / 60_000_000_000;
                Some(format!("the pins in its block store were last read {minutes} minutes ago"))
            }
            Some(_) => None,
        }
    }

    /// The restore is as it should be: forgetting and deleting go on.
    pub fn accept_restore(&mut self) {
        self.config.restored = None;
    }

    /// When the reading began that says what is pinned of a volume, by the steady clock. `None` if another one is needed.
    /// Of a volume that is deleted nothing is needed until it is given up.
    pub fn pins_read_ns(&self, volume: Uuid) -> Option<u64> {
        let found = self.volumes.values().find(|found| found.id() == volume && found.row.is_collected());
        let Some(volume) = found else { return Some(u64::MAX) };
        volume.pins.read_ns.filter(|_| volume.pins.problem.is_none())
    }

    /// The pins of a volume were read, or not. What the state does not have is taken into it.
    pub(super) fn pins_read(&mut self, group: &mut Group, read: &PinsRead) -> Result<(), EngineError> {
        let Some(volume) = self.volumes.values_mut().find(|volume| volume.id() == read.volume) else {
            return Ok(());
        };
        if volume.pins.released_ns.is_some_and(|released_ns| read.began_ns <= released_ns) {
            // It may have found what was released meanwhile, and would bring that back. The next one counts.
            return Ok(());
        }
        if read.began_ns < volume.pins.heard_ns {
            // One that took longer than another that began after it: that one knows better.
            return Ok(());
        }
        volume.pins.heard_ns = read.began_ns;
        let index = volume.index;
        let pins = match &read.found {
            Ok(pins) => pins,
            Err(problem) => {
                volume.pins.problem = Some(problem.clone());
                volume.collecting.shown.waits = Some(problem.clone());
                return Ok(());
            }
        };
        if group.full || self.is_recovering() {
            return Ok(());
        }
        let kept = match list_kept(&group.reads) {
            Ok(kept) => kept,
            Err(stop) => return self.stopped(group, stop, "looking for pins").map(drop),
        };
        let mut problem = None;
        for pin in pins {
            problem = problem.or(told(self.take_pin(group, index, pin, &kept))?);
        }
        if problem.is_none() {
            problem = told(self.note_proven(group, index))?;
        }
        group.thens.push(Then::PinsRead(index, read.began_ns, problem));
        Ok(())
    }

    /// Writes down, in the first commits of a start, that the pins are not read yet, and what the start goes on from.
    ///
    /// Metadata that is an old copy is betrayed by a pin that it has no row for, of an instant that it never reached. What it
    /// reached says only what it was started on: its own commits are of today, however old the copy is. And a
    /// second start finds those.
    pub(super) fn note_start(&mut self, group: &mut Group) -> Result<(), EngineError> {
        if self.start_noted || group.full {
            return Ok(());
        }
        let survived = self.recovered;
        let unknown = |volume: &&VolumeState| !volume.row.is_gone() && volume.pins.unproven.is_none();
        let each = self.volumes.values().filter(unknown).map(|volume| (volume.index, volume.id()));
        for (index, volume) in each.collect::<Vec<_>>() {
            let request = SystemRequest::NoteUnproven { volume, survived: Some(survived) };
            if self.system(group, &request)?.is_ok() {
                group.thens.push(Then::Unproven(index, Some(survived)));
            }
        }
        group.thens.push(Then::StartNoted);
        Ok(())
    }

    pub(super) fn set_unproven(&mut self, index: VolumeIndex, survived: Option<Version>) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.pins.unproven = survived;
        }
    }

    /// The pins are read, and none is of a lost timeline.
    fn note_proven(&mut self, group: &mut Group, index: VolumeIndex) -> Result<Option<String>, EngineError> {
        let unproven = self.volumes.get(&index).filter(|volume| volume.pins.unproven.is_some());
        let Some(volume) = unproven.map(VolumeState::id) else { return Ok(None) };
        let noted = self.system(group, &SystemRequest::NoteUnproven { volume, survived: None })?;
        if noted.is_ok() {
            group.thens.push(Then::Unproven(index, None));
        }
        Ok(noted.err().map(|error| error.to_string()))
    }

    /// Sees to it that a pin of the store is obeyed. Gives why it cannot be, if so.
    fn take_pin(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        pin: &Pin,
        kept: &[KeptInstant],
    ) -> Result<Option<String>, EngineError> {
        let Some(volume) = self.volumes.get(&index) else { return Ok(None) };
        let incarnation = volume.row.incarnation;
        let over = pin.ends.is_some_and(|ends| ends <= self.next_version(group));
        if pin.incarnation < incarnation || over {
            // Objects of earlier incarnations are never deleted by this one.
            return Ok(None);
        }
        // Whose it is says where it can be ended, also where no row is left to find it by.
        let name = format!("{} ({}: {})", pin.name(), pin.owner, pin.reason);
        // Incarnations are drawn, so one of a time that is lost may be as high as the one of now, or higher. What it had stored
        // is never deleted by this one, and what this one has stored no pin of before it can mean: it is in nobody's way.
        let before = volume.row.put_back().is_some_and(|began| pin.to < began);
        let gone = volume.row.gaps.iter().any(|(cut, began)| *cut < pin.to && pin.to < *began);
        let is_lost = before && (pin.incarnation > incarnation || gone);
        let known = kept.iter().find(|(of, id, _)| (*of, *id) == (index, pin.id));
        if known.is_none() && is_lost {
            return Ok(None);
        }
        // What was pinned in this timeline has a row, or had one and was released.
        let had = volume.row.born..=volume.pins.unproven.unwrap_or(self.recovered);
        if pin.incarnation > incarnation || (known.is_none() && !had.contains(&pin.to)) {
            return Ok(Some(format!(
                "{name} keeps what this metadata never had (incarnation {}, up to {}): it is an old copy",
                pin.incarnation, pin.to
            )));
        }
        if let Some((.., row)) = known {
            if (row.at, row.to) != (pin.from, pin.to) {
                return Ok(Some(format!("{name} keeps other instants than the metadata says")));
            }
            let ends = |ends: Option<Version>| ends.unwrap_or(Version::MAX);
            if ends(row.ends) >= ends(pin.ends) {
                return Ok(None);
            }
        }
        let request = SystemRequest::Keep {
            volume: pin.volume,
            id: pin.id,
            at: pin.from,
            to: pin.to,
            ends: pin.ends,
            note: format!("{}: {}", pin.owner, pin.reason),
            found: true,
        };
        let kept = self.system(group, &request)?;
        Ok(kept.err().map(|error| format!("{name} cannot be obeyed: {error}")))
    }

    pub(super) fn pins_known(&mut self, index: VolumeIndex, read_ns: u64, problem: Option<String>) {
        let Some(volume) = self.volumes.get_mut(&index) else { return };
        if problem.is_none() {
            volume.pins.read_ns = volume.pins.read_ns.max(Some(read_ns));
        }
        // Whoever asked for it is to see it at once, and not at the next tick.
        volume.collecting.shown.waits.clone_from(&problem);
        volume.pins.problem = problem;
    }
}
