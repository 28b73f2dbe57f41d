//! Deleted volumes. One that the admin server says to be deleted is kept, and taken back if it says so; it is given up
//! only when that was said of its own id. A volume that is not mentioned stays as it is: unknown is not deleted.
//!
//! The rows of one that is given up go in the steps in which the past is forgotten, a bounded number at each tick. A sweep may
//! stop, be lost in a crash and start anywhere: there is no order in which they have to go.

use super::Machine;
use super::forget::{STEPS, STEPS_BESIDE};
use super::group::{Group, Then};
use super::volumes::VolumeState;
use bytes::Bytes;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{EngineError, Reads};
use chronofs_namespace::SystemReply;
use chronofs_namespace::rows::Tally;
use chronofs_wire::admin::{AssignedVolume, VolumeReport};
use uuid::Uuid;

/// After so long it is tried again to begin with a volume that something still needed.
const RETRY_NS: u64 = 1_000_000_000;

/// How far the rows of a volume that is given up are gone. Not in the state: a restart begins anew, and finds those that
/// are left.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving {
    /// Where to go on.
    at: Bytes,
    /// All rows of files are gone.
    swept: bool,
    /// The last commit that changed the volume: it has to be durable before anything goes.
    changed: Version,
    /// It was taken back: what lost its last open while it was deleted is to be looked for.
    pub(super) returned: bool,
    /// Until then something needs it.
    next_ns: u64,
    /// A row cannot be taken away; the rest stays until the next start.
    damaged: bool,
    /// Rows that went since the server started.
    rows: u64,
}

/// What the server says of a volume that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeavingShown {
    /// It is kept, and can be taken back.
    pub kept: bool,
    /// Rows dropped since the start.
    pub rows_dropped: u64,
    /// Of files there are none left.
    pub rows_gone: bool,
    /// The metadata cannot be read where it has to be: nothing more of it goes until the next start.
    pub stopped: bool,
}

impl Leaving {
    /// With the commit `version`, or one before it, the volume was changed; perhaps it was taken back.
    pub(super) fn changed(&mut self, version: Version, returns: bool) {
        self.changed = self.changed.max(version);
        self.returned |= returns;
    }

    /// A step was taken.
    fn stepped(&mut self, next: Option<Bytes>, rows: u32) {
        self.swept = next.is_none();
        self.at = next.unwrap_or_default();
        self.rows += u64::from(rows);
    }
}

impl VolumeState {
    /// Of a deleted volume, how far it is gone.
    pub fn leaving(&self) -> Option<LeavingShown> {
        let leaving = &self.leaving;
        self.row.deleted.map(|_| LeavingShown {
            kept: !self.row.is_given_up(),
            rows_dropped: leaving.rows,
            rows_gone: leaving.swept,
            stopped: leaving.damaged,
        })
    }
}

/// What an assignment changes at once of a volume that is deleted, there or here.
pub(super) fn assigned(volume: &VolumeState, assigned: &AssignedVolume) -> Option<SystemRequest> {
    let (id, row) = (volume.id(), &volume.row);
    if row.is_given_up() || row.is_gone() {
        return None;
    }
    match (row.is_live(), assigned.deleted) {
        (true, true) => Some(SystemRequest::DeleteVolume { id }),
        (false, false) => Some(SystemRequest::UndeleteVolume { id }),
        _ => None,
    }
}

impl Machine {
    /// Gives up volumes whose time is over, by the word of the admin server and by this server's own clock. An old word does
    /// not count: the volume may have been taken back since.
    pub(super) fn give_up(&mut self, group: &mut Group) -> Result<(), EngineError> {
        if !self.owns_store(group.steady_ns) {
            return Ok(());
        }
        let now = self.next_version(group);
        let over = |volume: &VolumeState, after_s: u64| {
            let kept = volume.row.deleted.filter(|_| !volume.row.is_given_up() && !volume.row.is_gone());
            kept.is_some_and(|since| since.0.saturating_add(after_s.saturating_mul(1_000_000_000)) <= now.0)
        };
        let assigned = self.assignment.iter().flat_map(|assignment| &assignment.volumes);
        let asked = assigned.filter(|volume| volume.deleted);
        let asked = asked.filter_map(|volume| Some((volume.spec.id, volume.give_up_after_s?)));
        let due = |&(id, after_s): &(Uuid, u64)| {
            self.volumes.values().any(|volume| volume.id() == id && over(volume, after_s))
        };
        for (id, _) in asked.filter(due).collect::<Vec<_>>() {
            if let Ok(SystemReply::Volume { index, volume }) =
                self.system(group, &SystemRequest::GiveUpVolume { id })?
            {
                group.thens.push(Then::VolumeChanged(index, volume));
            }
        }
        Ok(())
    }

    /// Takes a few steps in volumes that are given up.
    pub(super) fn drop_rows(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let (mut steps, limit) = if self.clients_work(group) { STEPS_BESIDE } else { STEPS };
        let indexes: Vec<VolumeIndex> = self.volumes.keys().copied().collect();
        for index in indexes {
            let Some(VolumeState { row, leaving, .. }) = self.volumes.get(&index) else { continue };
            let due = row.is_given_up() && !leaving.swept && !leaving.damaged;
            let due = due && leaving.changed <= self.durable && leaving.next_ns <= group.steady_ns;
            // A pin that lies in the block store alone needs it, too.
            if due && self.unread_pins(index, group.steady_ns).is_none() {
                self.drop_rows_of(group, index, (&mut steps, limit))?;
            }
        }
        Ok(())
    }

    fn drop_rows_of(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        (steps, limit): (&mut usize, u32),
    ) -> Result<(), EngineError> {
        let Some(volume) = self.volumes.get(&index) else { return Ok(()) };
        let (volume, mut from) = (volume.id(), volume.leaving.at.clone());
        while *steps > 0 {
            *steps -= 1;
            match self.system(group, &SystemRequest::DropRows { volume, from, limit }) {
                Ok(Ok(SystemReply::Expired { rows, next })) => {
                    group.thens.push(Then::Dropped { index, rows, next: next.clone() });
                    match next {
                        Some(next) => from = next,
                        None => return Ok(()),
                    }
                }
                Ok(_) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.leaving.next_ns = group.steady_ns + RETRY_NS;
                    }
                    return Ok(());
                }
                // It was warned of. Rows that are kept for too long take nothing but room.
                Err(EngineError::Damaged { .. }) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.leaving.damaged = true;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn dropped(&mut self, index: VolumeIndex, rows: u32, next: Option<Bytes>) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.leaving.stepped(next, rows);
        }
    }

    /// A store was looked through and has no object of this volume, which is given up.
    pub(super) fn none_found(&mut self, group: &mut Group, volume: Uuid) -> Result<(), EngineError> {
        let given_up = self.volumes.values().any(|found| found.id() == volume && found.row.is_given_up());
        if !given_up || group.full || self.is_recovering() {
            return Ok(());
        }
        if let Ok(SystemReply::Volume { index, volume }) =
            self.system(group, &SystemRequest::VolumeGone { id: volume })?
        {
            group.thens.push(Then::VolumeChanged(index, volume));
        }
        Ok(())
    }

    /// Whether a volume that is given up has nothing left that it knows of: a look through its store shows the rest.
    pub fn is_emptied<R: Reads>(&self, reads: &R) -> bool {
        let given_up =
            self.volumes.values().filter(|volume| volume.row.is_given_up() && volume.leaving.swept);
        let tallies = given_up.map(|volume| chronofs_namespace::tally(reads, volume.index));
        let empty = |tally: Tally| tally.held.count + tally.retired.count + tally.condemned.count == 0;
        tallies.flatten().any(empty)
    }

    /// What the admin server has to know of a deleted volume, if anything.
    pub fn report_of_deleted(&self, volume: &VolumeState) -> Option<VolumeReport> {
        let assigned = self.assignment.iter().flat_map(|assignment| &assignment.volumes);
        let wanted = assigned.filter(|assigned| !assigned.deleted).any(|found| found.spec.id == volume.id());
        let (gone, given_up) = (volume.row.is_gone(), volume.row.is_given_up());
        (gone || given_up).then(|| VolumeReport {
            id: volume.id(),
            born_ns: volume.row.born.0,
            earliest_ns: volume.row.born.0,
            used_bytes: 0,
            used_inodes: 0,
            sessions: 0,
            problem: wanted.then(|| {
                "it was deleted for good, so what it held goes or is gone; delete it here, too".to_owned()
            }),
            given_up: true,
            gone,
        })
    }
}
