//! Copying: a clone of a disk snapshot that is to outlive the snapshot at its source puts what it needs of the source's objects
//! into objects of its own, by the steps of repacking. Nothing of the source is changed.
//!
//! Which objects these are say the rows, so a restart goes on where it is needed. They are looked at one after the other; what
//! could not be taken, because it is damaged, is kept for a snapshot of the clone, or changed meanwhile, is looked at again in the
//! next pass. When a pass finds none that rows name, there will never be one again: nothing new is stored under
//! an earlier incarnation.

use super::Machine;
use super::group::{Effect, Group};
use super::pace::Lately;
use super::packing::{PackJob, Packed, Room};
use chronofs_blocks::object_name;
use chronofs_core::{ObjectId, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::rows::Sum;
use chronofs_namespace::{PoorObject, list_objects};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many rows of objects are looked at in a tick.
const PAGE: usize = 256;
/// How long copying rests between two passes; after one that took nothing twice as long, up to a limit.
const PASS_NS: u64 = 10_000_000_000;
const PASS_DOUBLINGS_MAX: u32 = 9;
const PASS_NS_MAX: u64 = 3_600_000_000_000;
/// So many objects that cannot be copied are remembered, and so many are shown.
const LEFT_MAX: usize = 1000;
const LEFT_SHOWN_MAX: usize = 10;

/// What the server says of a volume's copying.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyingShown {
    /// Objects of the source that nothing names any more because all that is needed of them was copied, since the start,
    /// and the bytes that were copied.
    pub copied: Sum,
    /// Bytes copied in a second, lately.
    pub bytes_per_second: u64,
    /// Some of the objects that could not be copied when they were last looked at, with the reason.
    pub left: Vec<(String, String)>,
    /// Why nothing is copied at the moment, if so.
    pub waits: Option<String>,
}

/// How far the copying of a volume is. Not in the state: a restart begins anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Copying {
    /// All up to this one were looked at in this pass.
    after: Option<ObjectId>,
    /// Rows name some of them,
    any: bool,
    /// and something of them was copied.
    took: bool,
    /// Passes in a row that took nothing.
    futile: u32,
    /// Until then it rests.
    next_ns: u64,
    /// A pass found nothing that rows name.
    done: bool,
    /// What could not be copied when it was last looked at, and why.
    left: BTreeMap<ObjectId, String>,
    copied: Sum,
    lately: Lately,
}

impl Copying {
    pub(super) fn took(&mut self, taken: Sum, steady_ns: u64) {
        self.took |= taken.bytes > 0;
        self.copied.count += taken.count;
        self.copied.bytes += taken.bytes;
        if taken.bytes > 0 {
            self.lately.add(steady_ns, taken.bytes);
        }
    }

    fn end_pass(&mut self, steady_ns: u64) {
        self.done = !self.any;
        self.futile = if self.took { 0 } else { self.futile + 1 };
        self.next_ns = steady_ns + (PASS_NS << self.futile.min(PASS_DOUBLINGS_MAX)).min(PASS_NS_MAX);
        if self.done {
            // Nothing needs them any more.
            self.left.clear();
        }
        (self.after, self.any, self.took) = (None, false, false);
    }
}

impl Machine {
    /// Whether somebody wants this clone to need nothing of its source.
    pub(super) fn copies(&self) -> bool {
        self.assignment.as_ref().is_some_and(|assignment| assignment.copy_restored)
    }

    /// The objects of its source that a volume copies next.
    pub(super) fn foreign_sources(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
    ) -> Result<Vec<PoorObject>, EngineError> {
        let (copies, bytes_max) = (self.copies(), self.config.pack_bytes);
        let Some(volume) = self.volumes.get_mut(&index) else { return Ok(Vec::new()) };
        let (own, copying) = (volume.row.incarnation, &mut volume.copying);
        if !copies {
            // Whoever has it begin again need not wait.
            (copying.futile, copying.next_ns) = (0, 0);
        }
        if !copies || copying.done || group.steady_ns < copying.next_ns {
            return Ok(Vec::new());
        }
        let page = match list_objects(&group.reads, index, copying.after, PAGE) {
            Ok(page) => page,
            Err(stop) => {
                let what = "looking for objects of the source of this clone";
                self.stopped(group, stop, what)?;
                return Err(EngineError::Damaged { what: what.to_owned(), detail: String::new() });
            }
        };
        let is_last = page.len() < PAGE || page.last().is_some_and(|(id, _)| id.incarnation >= own);
        let (mut sources, mut room) = (Vec::new(), Room::default());
        for (id, refs) in page.into_iter().take_while(|(id, _)| id.incarnation < own) {
            if refs.rows > 0 && refs.condemned.is_none() {
                let source = PoorObject { id, size: refs.bytes, named: refs.named, rows: refs.rows };
                if !room.takes(&source, bytes_max) {
                    break;
                }
                sources.push(source);
                copying.any = true;
            }
            copying.after = Some(id);
        }
        if sources.is_empty() && is_last {
            copying.end_pass(group.steady_ns);
        }
        Ok(sources)
    }

    /// What became of objects of the source that were to be copied.
    pub(super) fn heard_of_copies(
        &mut self,
        group: &mut Group,
        job: &PackJob,
        sources: &[PoorObject],
        packed: &Packed,
    ) {
        let Some(volume) = self.volumes.get_mut(&job.index) else { return };
        let left = &mut volume.copying.left;
        for source in sources.iter().filter(|source| source.id.incarnation < volume.row.incarnation) {
            match packed.left.iter().find(|(id, _)| *id == source.id) {
                None => drop(left.remove(&source.id)),
                Some((id, reason)) if left.get(id) != Some(reason) => {
                    // What is not remembered would be said again in each pass.
                    if left.len() >= LEFT_MAX && !left.contains_key(id) {
                        continue;
                    }
                    left.insert(*id, reason.clone());
                    group.effects.push(Effect::Warn(format!(
                        "volume {}: an object of the source cannot be copied now and stays as it is: {}: {reason}",
                        volume.row.spec.name,
                        object_name(job.volume, *id)
                    )));
                }
                Some(_) => {}
            }
        }
    }

    /// How the copying of a volume goes; none where nothing is to be copied.
    pub fn copying(&mut self, index: VolumeIndex, steady_ns: u64) -> Option<CopyingShown> {
        if !self.copies() {
            return None;
        }
        let volume = self.volumes.get(&index).filter(|volume| volume.row.incarnation > 0)?;
        let waits = if volume.copying.done {
            None
        } else if volume.row.deleted.is_some() {
            Some(
                "it is deleted: it is copied if it is undeleted, and needs nothing when it is gone"
                    .to_owned(),
            )
        } else if !self.owns_store(steady_ns) {
            Some("the admin server has not said lately that this server owns the metadata".to_owned())
        } else {
            let trouble = volume.problem.clone().or_else(|| volume.packing.shown.problem.clone());
            self.unread_pins(index, steady_ns).or(trouble)
        };
        let volume = self.volumes.get_mut(&index)?;
        let (id, copying) = (volume.id(), &mut volume.copying);
        let named = |(object, reason): (&ObjectId, &String)| (object_name(id, *object), reason.clone());
        Some(CopyingShown {
            copied: copying.copied,
            bytes_per_second: copying.lately.per_second(steady_ns),
            left: copying.left.iter().take(LEFT_SHOWN_MAX).map(named).collect(),
            waits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::SessionId;

    #[test]
    fn passes_that_copy_nothing_rest_ever_longer_up_to_an_hour() {
        let mut copying = Copying::default();
        let mut rest = || {
            copying.any = true;
            copying.end_pass(0);
            copying.next_ns
        };
        let rests: Vec<u64> = (0..20).map(|_| rest()).collect();
        assert_eq!((rests[0], rests[19]), (2 * PASS_NS, PASS_NS_MAX));
        assert!(rests.is_sorted());
        copying.took(Sum { count: 1, bytes: 1 }, 0);
        copying.end_pass(0);
        assert_eq!(copying.next_ns, PASS_NS);
    }

    #[test]
    fn what_nothing_needs_any_more_is_not_said_to_be_left() {
        let mut copying = Copying { any: true, ..Copying::default() };
        let id = ObjectId { incarnation: 0, session: SessionId(1), n: 1 };
        copying.left.insert(id, "damaged".to_owned());
        copying.end_pass(0);
        assert_eq!((copying.done, copying.left.len()), (false, 1));
        copying.end_pass(0);
        assert_eq!((copying.done, copying.left.len()), (true, 0));
    }
}
