//! Small slices leave the metadata: staged bytes of many are packed into one object of the volume's store.
//!
//! An object is named in the log first, and only when that is durable are bytes stored under the name: a name is never
//! used for two contents. Then further commits say where each slice lies and drop its staged bytes. Whatever fails in
//! between leaves slices staged, and perhaps an object that no row names; the next try is under another name.
//!
//! What is needed of objects of which little is needed goes the same way: they are found when the store is looked through.

use super::Machine;
use super::group::{Effect, Group, Then};
use super::pace::Pace;
use chronofs_core::ops::{MovedSlice, SystemRequest};
use chronofs_core::{ObjectId, SliceId, Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::rows::{Sum, Volume};
use chronofs_namespace::{PoorObject, SystemReply};
use std::collections::VecDeque;
use uuid::Uuid;

/// How long packing rests after it failed; twice as long after the next failure, up to a limit.
const RETRY_NS: u64 = 10_000_000_000;
const RETRY_DOUBLINGS_MAX: u32 = 5;
/// The most slices in an object.
pub const PACK_SLICES_MAX: usize = 8192;
/// How many objects are repacked into one at the most, and how many bytes are read for it.
const SOURCES_MAX: usize = 64;
const SOURCE_BYTES_MAX: u64 = 64 << 20;
/// How long repacking rests after each object, so that it takes little of what clients need.
const REPACK_REST_NS: u64 = 1_000_000_000;

/// How many slices are said to be moved at a tick: what it takes holds up everybody. Beside clients fewer, unless so many are
/// staged that clients stage them faster.
const MOVED: Pace = Pace { beside: MOVED_AT_ONCE as u64, full: 1024, one_in: 32 };
/// How many of them in one commit.
pub const MOVED_AT_ONCE: usize = 256;

/// Slices to be packed into an object.
#[derive(Clone, Debug)]
pub struct PackJob {
    /// The volume.
    pub volume: Uuid,
    /// Its place in keys.
    pub index: VolumeIndex,
    /// The object.
    pub object: ObjectId,
    /// Which slices.
    pub source: Source,
    /// Stored bytes to be taken at the most.
    pub bytes_max: usize,
}

/// What is packed.
#[derive(Clone, Debug)]
pub enum Source {
    /// Staged slices from a key on; empty: all.
    Staged(Vec<u8>),
    /// What is needed of these objects.
    Objects(Vec<PoorObject>),
}

/// What was stored.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The commit up to which rows were looked at for it.
    pub as_of: Version,
    /// What is to be said of it, a commit each.
    pub moves: Vec<Move>,
    /// Slices in it.
    pub slices: usize,
    /// Where staged slices that were not looked at begin, if there may be some.
    pub next: Option<Vec<u8>>,
    /// Objects that were to be taken and stay as they are, with the reason.
    pub left: Vec<(ObjectId, String)>,
}

/// Slices that lie in an object now.
#[derive(Clone, Debug)]
pub enum Move {
    /// They were staged: with their places.
    Staged(Vec<(SliceId, u64)>),
    /// They were in another object.
    Slices {
        /// That one.
        from: ObjectId,
        /// They.
        slices: Vec<MovedSlice>,
    },
}

/// What the server says of a volume's packing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PackingShown {
    /// Objects made since the start.
    pub objects: u64,
    /// Slices in them.
    pub slices: u64,
    /// Objects that were looked at to be repacked, since the start.
    pub repacked: u64,
    /// Objects of which little is needed, and that wait to be repacked.
    pub poor: u64,
    /// Why small slices stay in the metadata at the moment.
    pub problem: Option<String>,
}

/// How far the packing of a volume is. Not in the state: a restart begins anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    step: Step,
    /// Since when there are staged slices.
    since_ns: Option<u64>,
    /// The last object left some.
    more: bool,
    /// The key at which the next object begins.
    from: Vec<u8>,
    /// Objects to be repacked, those under way first.
    poor: VecDeque<PoorObject>,
    /// What is under way.
    taken: Taken,
    /// Until then repacking rests.
    repack_ns: u64,
    /// Failures in a row, and until when they make it wait.
    failures: u32,
    retry_ns: u64,
    /// For people.
    pub(super) shown: PackingShown,
}

#[derive(Clone, Debug, Default)]
enum Step {
    /// An object of an earlier start, or a failed one, may count as under way.
    #[default]
    Over,
    Idle,
    /// The object has a name, which is not durable yet.
    Named(ObjectId, Version, Source),
    /// It is being stored.
    Storing(ObjectId),
    /// It is stored, and so many of its slices are said to lie in it.
    Moving {
        object: ObjectId,
        packed: Packed,
        done: usize,
    },
    /// Rows cannot be read: nothing is packed until the next start.
    Stopped,
}

/// What an object is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Taken {
    #[default]
    Staged,
    /// So many of the objects of which little is needed.
    Poor(usize),
    /// Objects of the source of this clone.
    Foreign,
}

impl Taken {
    fn poor(self) -> usize {
        if let Taken::Poor(count) = self { count } else { 0 }
    }
}

/// What fits into one object.
#[derive(Default)]
pub(super) struct Room {
    count: usize,
    size: u64,
    named: u64,
    rows: u64,
}

impl Room {
    /// Whether this one fits, too; the first one does however large it is.
    pub(super) fn takes(&mut self, source: &PoorObject, named_max: u64) -> bool {
        self.count += 1;
        self.size = self.size.saturating_add(source.size);
        self.named = self.named.saturating_add(source.named);
        self.rows += u64::from(source.rows);
        let fits = self.size <= SOURCE_BYTES_MAX && self.named <= named_max;
        self.count == 1 || (fits && self.count <= SOURCES_MAX && self.rows <= PACK_SLICES_MAX as u64)
    }
}

/// What happened to the packing of a volume, once the commits are applied.
#[derive(Clone, Debug)]
pub(super) enum PackStep {
    Ended,
    Named(ObjectId, Version, Source, Taken),
    Begun(ObjectId),
    /// Of objects of the source of this clone so many are not needed any more, and so much was taken.
    Moved {
        done: usize,
        all: bool,
        copied: Sum,
    },
    Failed(String),
}

impl Packing {
    fn is_due(&mut self, staged: Sum, now_ns: u64, config: &super::Config) -> bool {
        if staged.count == 0 {
            (self.since_ns, self.more) = (None, false);
            return false;
        }
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        let old = now_ns.saturating_sub(since_ns) >= u64::from(config.pack_after_ms) * 1_000_000;
        now_ns >= self.retry_ns && (old || self.more || staged.bytes >= config.pack_bytes)
    }

    fn stepped(&mut self, step: PackStep, now_ns: u64) {
        match step {
            PackStep::Ended => self.step = Step::Idle,
            PackStep::Named(object, version, source, taken) => {
                self.taken = taken;
                self.step = Step::Named(object, version, source);
            }
            PackStep::Begun(object) => {
                self.step = Step::Storing(object);
                if self.taken == Taken::Staged {
                    // What is published from here on is not among what is taken.
                    self.since_ns = None;
                }
            }
            PackStep::Moved { done, all, .. } => {
                let Step::Moving { packed, done: before, .. } = &mut self.step else { return };
                if !all {
                    *before = done;
                    return;
                }
                self.shown.objects += u64::from(packed.slices > 0);
                self.shown.slices += packed.slices as u64;
                if self.taken == Taken::Staged {
                    self.more = packed.next.is_some();
                    self.from = packed.next.take().unwrap_or_default();
                } else {
                    self.shown.repacked += self.taken.poor() as u64;
                    self.poor.drain(..self.taken.poor().min(self.poor.len()));
                    self.repack_ns = now_ns + REPACK_REST_NS;
                }
                (self.failures, self.retry_ns, self.shown.problem) = (0, 0, None);
                self.step = Step::Idle;
            }
            PackStep::Failed(problem) => {
                // They may be the reason; the next look through the store finds them again.
                self.poor.drain(..self.taken.poor().min(self.poor.len()));
                self.retry_ns = now_ns + (RETRY_NS << self.failures.min(RETRY_DOUBLINGS_MAX));
                self.failures += 1;
                self.more |= self.taken == Taken::Staged;
                (self.step, self.shown.problem) = (Step::Over, Some(problem));
            }
        }
        self.shown.poor = self.poor.len() as u64;
    }

    /// The objects to be repacked next.
    fn sources(&self, bytes_max: u64) -> Vec<PoorObject> {
        let mut room = Room::default();
        self.poor.iter().take_while(|poor| room.takes(poor, bytes_max)).cloned().collect()
    }

    /// Whether nothing is repacked for now.
    fn rests(&self, now_ns: u64) -> bool {
        now_ns < self.repack_ns.max(self.retry_ns)
    }
}

impl Machine {
    /// Takes the packing of each volume a step further.
    pub(super) fn pack(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let indexes: Vec<VolumeIndex> = self.volumes.keys().copied().collect();
        for index in indexes {
            match self.pack_volume(group, index) {
                Ok(Some(step)) => group.thens.push(Then::PackStepped(index, step)),
                Ok(None) => {}
                // It was warned of. What stays in the metadata takes nothing but room.
                Err(EngineError::Damaged { .. }) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.packing.step = Step::Stopped;
                        let problem = "the metadata cannot be read where it has to be".to_owned();
                        volume.packing.shown.problem = Some(problem);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pack_volume(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
    ) -> Result<Option<PackStep>, EngineError> {
        let Some(volume) = self.volumes.get(&index) else { return Ok(None) };
        let counted = volume.row.flags & Volume::COUNTED != 0;
        // Another copy of this metadata, if it is the owner, gives the same names to other bytes.
        if volume.row.deleted.is_some() || !counted || !self.owns_store(group.steady_ns) {
            return Ok(None);
        }
        let id = volume.id();
        match &volume.packing.step {
            Step::Over => {
                let ended = self.system(group, &SystemRequest::EndPack { volume: id })?;
                Ok(ended.is_ok().then_some(PackStep::Ended))
            }
            Step::Idle => self.name_pack(group, index, id),
            Step::Named(object, version, source) if *version <= self.durable => {
                let (object, source) = (*object, source.clone());
                let bytes_max = self.config.pack_bytes as usize;
                let job = PackJob { volume: id, index, object, source, bytes_max };
                group.effects.push(Effect::Pack(Box::new(job)));
                Ok(Some(PackStep::Begun(object)))
            }
            Step::Moving { done, .. } => {
                let done = *done;
                self.move_slices(group, index, id, done).map(Some)
            }
            Step::Named(..) | Step::Storing(_) | Step::Stopped => Ok(None),
        }
    }

    /// Says of some slices where they lie, from the move `done` on.
    fn move_slices(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        volume: Uuid,
        mut done: usize,
    ) -> Result<PackStep, EngineError> {
        let staged = self.tally(group, index, "looking for staged slices")?.staged.count;
        let (at_pace, mut moved) = (self.at_pace(group, &MOVED, staged), 0);
        let mut copied = Sum::default();
        loop {
            let step = self.volumes.get(&index).map(|volume| &volume.packing.step);
            let Some(Step::Moving { object, packed, .. }) = step else { return Ok(PackStep::Ended) };
            let (object, last) = (*object, done + 1 >= packed.moves.len());
            let mut foreign = None;
            let request = match packed.moves.get(done) {
                Some(Move::Slices { from, slices }) => {
                    moved += slices.len() as u64;
                    foreign = Some(*from).filter(|from| from.incarnation < object.incarnation);
                    let (from, slices, as_of) = (*from, slices.clone(), packed.as_of);
                    SystemRequest::MoveSlices { volume, from, to: object, as_of, slices, last }
                }
                Some(Move::Staged(slices)) => {
                    moved += slices.len() as u64;
                    SystemRequest::MoveStaged { volume, object, slices: slices.clone(), last }
                }
                None => SystemRequest::EndPack { volume },
            };
            let before = self.named_of(group, index, foreign)?;
            if let Err(error) = self.system(group, &request)? {
                return Ok(PackStep::Failed(error.to_string()));
            }
            let after = self.named_of(group, index, foreign)?;
            copied.count += u64::from(before.count > 0 && after.count == 0);
            copied.bytes += before.bytes.saturating_sub(after.bytes);
            done += 1;
            if last || moved >= at_pace {
                return Ok(PackStep::Moved { done, all: last, copied });
            }
        }
    }

    /// How many rows name an object, and how many of its bytes.
    fn named_of(
        &self,
        group: &mut Group,
        index: VolumeIndex,
        object: Option<ObjectId>,
    ) -> Result<Sum, EngineError> {
        let Some(object) = object else { return Ok(Sum::default()) };
        match chronofs_namespace::object_refs(&group.reads, index, object) {
            Ok(refs) => {
                Ok(refs.map_or(Sum::default(), |refs| Sum { count: refs.rows.into(), bytes: refs.named }))
            }
            Err(stop) => {
                let what = "looking at an object that is copied";
                self.stopped(group, stop, what)?;
                Err(EngineError::Damaged { what: what.to_owned(), detail: String::new() })
            }
        }
    }

    fn name_pack(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        id: Uuid,
    ) -> Result<Option<PackStep>, EngineError> {
        let staged = self.tally(group, index, "looking for staged slices")?.staged;
        // A pin that is not known of needs objects where they are.
        let may_move = self.unread_pins(index, group.steady_ns).is_none();
        let Some(volume) = self.volumes.get_mut(&index) else { return Ok(None) };
        let served = volume.store.is_some() && volume.problem.is_none();
        let packing = &mut volume.packing;
        let (source, taken) = match packing.is_due(staged, group.steady_ns, &self.config) {
            _ if !served => return Ok(None),
            true => (Source::Staged(packing.from.clone()), Taken::Staged),
            false if !may_move || packing.rests(group.steady_ns) => return Ok(None),
            false => match packing.sources(self.config.pack_bytes) {
                poor if poor.is_empty() => {
                    (Source::Objects(self.foreign_sources(group, index)?), Taken::Foreign)
                }
                poor => {
                    let taken = Taken::Poor(poor.len());
                    (Source::Objects(poor), taken)
                }
            },
        };
        if matches!(&source, Source::Objects(sources) if sources.is_empty()) {
            return Ok(None);
        }
        match self.system(group, &SystemRequest::GrantPack { volume: id })? {
            Ok(SystemReply::Pack(object)) => {
                group.effects.push(Effect::Hurry);
                Ok(Some(PackStep::Named(object, self.last, source, taken)))
            }
            Ok(other) => Ok(Some(PackStep::Failed(format!("{other:?} is no name")))),
            Err(error) => Ok(Some(PackStep::Failed(error.to_string()))),
        }
    }

    /// An object was stored, or could not be. What follows from it comes with the ticks.
    pub(super) fn packed(&mut self, group: &mut Group, job: &PackJob, result: &Result<Packed, String>) {
        let Some(volume) = self.volumes.get_mut(&job.index) else { return };
        if !matches!(volume.packing.step, Step::Storing(object) if object == job.object) {
            return;
        }
        match result {
            Ok(packed) => {
                volume.packing.step = Step::Moving { object: job.object, packed: packed.clone(), done: 0 };
                if let Source::Objects(sources) = &job.source {
                    self.heard_of_copies(group, job, sources, packed);
                }
            }
            Err(problem) => {
                if volume.packing.failures == 0 {
                    group.effects.push(Effect::Warn(format!(
                        "slices of volume {} are not packed for now: {problem}; it is tried again",
                        volume.row.spec.name
                    )));
                }
                volume.packing.stepped(PackStep::Failed(problem.clone()), group.steady_ns);
            }
        }
    }

    /// Objects of a volume were found of which little is needed: all that there are.
    pub(super) fn poor_found(&mut self, volume: Uuid, poor: &[PoorObject]) {
        let Some(volume) = self.volumes.values_mut().find(|found| found.id() == volume) else { return };
        let packing = &mut volume.packing;
        // Those under way stay.
        let under_way =
            if matches!(packing.step, Step::Over | Step::Idle) { 0 } else { packing.taken.poor() };
        packing.poor.truncate(under_way);
        packing.poor.extend(poor.iter().cloned());
        packing.shown.poor = packing.poor.len() as u64;
    }

    pub(super) fn pack_stepped(&mut self, group: &Group, index: VolumeIndex, step: PackStep) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            if let PackStep::Moved { copied, .. } = &step {
                volume.copying.took(*copied, group.steady_ns);
            }
            volume.packing.stepped(step, group.steady_ns);
        }
    }
}
