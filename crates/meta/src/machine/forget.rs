//! Forgetting: what no protected instant can see goes, in sweeps through the past of each volume, a bounded step at
//! a time.
//!
//! A sweep is due when the horizon of a volume has moved, or a mounted past is gone. It begins when that is durable.

use super::group::{Group, Then};
use super::{Machine, VolumeState};
use bytes::Bytes;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::SystemReply;

/// In how many commits the past is looked at at a tick, and how many rows in each: 20,480 rows a second.
pub(super) const STEPS: (usize, u32) = (4, 512);
/// Beside clients, while no sweep has to hurry: 2,560 rows a second.
pub(super) const STEPS_BESIDE: (usize, u32) = (1, 256);

/// How the forgetting of one volume stands. Not in the state: after a restart a sweep begins anew.
#[derive(Clone, Debug)]
pub(super) struct Forgetting {
    /// The engine's key at which the sweep that is under way goes on.
    at: Option<Bytes>,
    /// The horizon as of the beginning of the last sweep.
    swept: Version,
    /// A lease ended since the last sweep began.
    lease_ended: bool,
    /// The last commit by which fewer instants are protected.
    shrunk: Version,
    /// The past has a row that cannot be read; nothing more is forgotten.
    damaged: bool,
    /// Rows forgotten since the server started.
    pub(super) rows: u64,
}

impl Default for Forgetting {
    fn default() -> Self {
        // Leases may have ended before the server started.
        Forgetting {
            at: None,
            swept: Version::ZERO,
            lease_ended: true,
            shrunk: Version::ZERO,
            damaged: false,
            rows: 0,
        }
    }
}

impl Forgetting {
    /// With the commit `version`, or one before it, a lease ended.
    pub(super) fn lease_ended(&mut self, version: Version) {
        self.lease_ended = true;
        self.shrunk(version);
    }

    /// With the commit `version`, or one before it, fewer instants are protected.
    pub(super) fn shrunk(&mut self, version: Version) {
        self.shrunk = self.shrunk.max(version);
    }

    /// A step was taken.
    pub(super) fn stepped(&mut self, next: Option<Bytes>, rows: u32) {
        self.at = next;
        self.rows += u64::from(rows);
    }

    /// The horizon has moved again while the sweep is under way.
    fn is_late(&self, horizon: Version) -> bool {
        self.at.is_some() && horizon > self.swept
    }

    /// Where to go on, if all that fewer instants are protected by is durable.
    fn next(&mut self, horizon: Version, last: Version, durable: Version) -> Option<Bytes> {
        if self.at.is_none() && (self.lease_ended || horizon > self.swept) {
            (self.at, self.swept, self.lease_ended) = (Some(Bytes::new()), horizon, false);
            self.shrunk(last);
        }
        self.at.clone().filter(|_| durable >= self.shrunk)
    }
}

/// Whether anything of the volume's past is to go. Up to its birth, all of its life is protected.
fn forgets(volume: &VolumeState) -> bool {
    let has_lost = volume.row.horizon > volume.row.born;
    has_lost && volume.row.deleted.is_none() && !volume.forgetting.damaged
}

impl Machine {
    /// Takes a few steps of the sweeps that are under way, and begins those that are due.
    pub(super) fn forget(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let shrinks = |then: &Then| {
            matches!(
                then,
                Then::SessionOver(_) | Then::HorizonMoved(..) | Then::VolumeChanged(..) | Then::Released(_)
            )
        };
        if group.thens.iter().any(shrinks) {
            // The group sees already what is not durable.
            return Ok(());
        }
        let (mut steps, rows) =
            if self.clients_work(group) && !self.must_hurry() { STEPS_BESIDE } else { STEPS };
        // Volumes take turns, so that one with a long past does not hold up the others.
        self.forget_turn = self.forget_turn.wrapping_add(1);
        let mut indexes: Vec<VolumeIndex> = self.volumes.keys().copied().collect();
        if !indexes.is_empty() {
            let first = self.forget_turn % indexes.len();
            indexes.rotate_left(first);
        }
        for index in indexes {
            if self.unread_pins(index, group.steady_ns).is_some() {
                continue;
            }
            let (last, durable) = (self.last, self.durable);
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            if !forgets(volume) {
                continue;
            }
            if let Some(from) = volume.forgetting.next(volume.row.horizon, last, durable) {
                self.sweep(group, index, from, (&mut steps, rows))?;
            }
        }
        Ok(())
    }

    /// What lies before this in a volume's past is out of reach.
    pub(super) fn horizon_moved(&mut self, index: VolumeIndex, horizon: Version) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.row.horizon = horizon;
            volume.forgetting.shrunk(self.last);
        }
    }

    /// Whether a sweep is not over and the next one is due: what is out of reach would become more and more.
    fn must_hurry(&self) -> bool {
        let late = |volume: &VolumeState| volume.forgetting.is_late(volume.row.horizon);
        self.volumes.values().filter(|volume| forgets(volume)).any(late)
    }

    fn sweep(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        mut from: Bytes,
        (steps, limit): (&mut usize, u32),
    ) -> Result<(), EngineError> {
        while *steps > 0 {
            let Some(volume) = self.volumes.get(&index) else { return Ok(()) };
            *steps -= 1;
            let request = SystemRequest::Expire { volume: volume.id(), from, limit };
            match self.system(group, &request) {
                Ok(Ok(SystemReply::Expired { rows, next })) => {
                    group.forgotten += u64::from(rows);
                    group.thens.push(Then::Forgot { index, rows, next: next.clone() });
                    match next {
                        Some(next) => from = next,
                        None => return Ok(()),
                    }
                }
                Ok(_) => return Ok(()),
                // It was warned of. Rows that are kept for too long take nothing but room.
                Err(EngineError::Damaged { .. }) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.forgetting.damaged = true;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
