//! Deleted volumes. One that the admin server says to be deleted is kept, and taken back if it says so; it is given up
//! only when that was said of its own id. A volume that is not mentioned stays as it is: unknown is not deleted.
//!
//! The rows of one that is given up go in the steps in which the past is forgotten, a bounded number at each tick. A sweep may
//! stop, be lost in a crash and start anywhere: there is no order in which they have to go.

use super::Machine;
use super::forget::{STEPS, STEPS_BESIDE};
use super::group::{Group, Then};
use super::volumes::VolumeState;
use crate::holds::who_keeps;
use bytes::Bytes;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{EngineError, Reads};
use chronofs_namespace::rows::Tally;
use chronofs_namespace::{SystemError, SystemReply, list_kept};
use chronofs_wire::admin::{AssignedVolume, VolumeReport};
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// After so long it is tried again to begin with a volume that something still needed.
const RETRY_NS: u64 = 1_000_000_000;
/// For so long somebody can see that a volume is to be given up, and that a clock is wrong.
const SEEN_NS: u64 = 3_600_000_000_000;
/// So many of those who need a volume are named.
const NAMED_MAX: usize = 3;

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
    /// Who needs it, in words.
    needed: Option<String>,
    /// A row cannot be taken away; the rest stays until the next start.
    damaged: bool,
    /// Rows that went since the server started.
    rows: u64,
    /// Since when it is said without a break that it may be given up, by the steady clock.
    told_ns: Option<u64>,
    /// Since when the wall clock says as well that its time is over, by the steady clock.
    over_ns: Option<u64>,
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
    /// Of one that is given up, who still needs it, if somebody does: nothing of it goes until they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<String>,
}

impl Leaving {
    /// With the commit `version`, or one before it, the volume was changed; perhaps it was taken back.
    pub(super) fn changed(&mut self, version: Version, returns: bool) {
        self.changed = self.changed.max(version);
        self.returned |= returns;
    }

    /// Whether the time of a volume is over that is `told` to be deleted since then and to be kept for so long, if it is:
    /// that has been said without a break for as long as it is to be kept; or for [`SEEN_NS`], in which the wall clock
    /// said all the time that it is over. That clock alone does not count: it may be set wrong, and decides for good.
    fn is_over(&mut self, told: Option<(Version, u64)>, wall_ns: u64, steady_ns: u64) -> bool {
        let by_clock = told.filter(|(since, after_ns)| since.0.saturating_add(*after_ns) <= wall_ns);
        self.told_ns = told.map(|_| self.told_ns.unwrap_or(steady_ns));
        self.over_ns = by_clock.map(|_| self.over_ns.unwrap_or(steady_ns));
        let lasts =
            |since: Option<u64>, ns: u64| since.is_some_and(|since| steady_ns.saturating_sub(since) >= ns);
        told.is_some_and(|(_, after_ns)| lasts(self.told_ns, after_ns)) || lasts(self.over_ns, SEEN_NS)
    }

    /// A step was taken.
    fn stepped(&mut self, next: Option<Bytes>, rows: u32) {
        self.needed = None;
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
            needed: leaving.needed.clone(),
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

/// Who needs a volume that is given up, in words: holds by the ids that people know.
fn needed_by<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Option<String> {
    let kept = list_kept(reads).ok()?.into_iter().filter(|(of, ..)| *of == index);
    let who: BTreeSet<String> = kept.map(|(.., row)| who_keeps(&row.note)).collect();
    let more = match who.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let who: Vec<String> = who.into_iter().take(NAMED_MAX).collect();
    Some(match who.is_empty() {
        true => "it is still mounted".to_owned(),
        false => format!(
            "instants of it are kept for {}{more}: let go of what nobody needs (chronofs configure list hold, chronofs snapshot \
             list)",
            who.join(", ")
        ),
    })
}

impl Machine {
    /// Gives up volumes whose time is over, by the word of the admin server and by this server's own clocks. An old word
    /// does not count: the volume may have been taken back since. Neither does one that somebody had no time to notice.
    pub(super) fn give_up(&mut self, group: &mut Group) -> Result<(), EngineError> {
        // Of a restore that nobody has accepted nothing is decided for good.
        let owns = self.owns_store(group.steady_ns) && self.config.restored.is_none();
        let assigned = self.assignment.iter().flat_map(|assignment| &assignment.volumes);
        let asked = assigned.filter(|volume| volume.deleted && owns);
        let asked: HashMap<Uuid, u64> =
            asked.filter_map(|volume| Some((volume.spec.id, volume.give_up_after_s?))).collect();
        let mut over = Vec::new();
        for volume in self.volumes.values_mut() {
            let id = volume.id();
            let kept = volume.row.deleted.filter(|_| !volume.row.is_given_up() && !volume.row.is_gone());
            let told = kept.zip(asked.get(&id).map(|after_s| after_s.saturating_mul(1_000_000_000)));
            if volume.leaving.is_over(told, group.now_ns, group.steady_ns) {
                over.push(id);
            }
        }
        for id in over {
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
                Ok(refused) => {
                    let needed = match refused {
                        Err(SystemError::StillNeeded(_)) => needed_by(&group.reads, index),
                        _ => None,
                    };
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.leaving.next_ns = group.steady_ns + RETRY_NS;
                        volume.leaving.needed = needed;
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

    /// A store was looked through twice, and has no object of this volume, which is given up.
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

    /// What the admin server has to know of a deleted volume, if anything. It knows what is durable.
    pub fn report_of_deleted(&self, volume: &VolumeState) -> Option<VolumeReport> {
        let assigned = self.assignment.iter().flat_map(|assignment| &assignment.volumes);
        let wanted = assigned.filter(|assigned| !assigned.deleted).any(|found| found.spec.id == volume.id());
        // What the admin server does about it cannot be taken back: a power cut must not bring anything back either.
        let durable = volume.leaving.changed <= self.durable;
        let gone = volume.row.is_gone() && durable;
        let given_up = volume.row.is_gone() || (volume.row.is_given_up() && durable);
        given_up.then(|| VolumeReport {
            id: volume.id(),
            born_ns: volume.row.born.0,
            earliest_ns: volume.row.born.0,
            used_bytes: 0,
            used_inodes: 0,
            sessions: 0,
            problem: match wanted {
                true => Some(
                    "it was deleted for good, so what it held goes or is gone; delete it here, too"
                        .to_owned(),
                ),
                false => volume.leaving.needed.clone(),
            },
            missing: false,
            given_up: true,
            gone,
            keys: None,
        })
    }
}
