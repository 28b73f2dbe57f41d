//! Collecting: objects and staged slices that no row names any more go, a bounded step at a tick.
//!
//! What the state machine condemned is handed out for deletion once that commit is durable. The list of condemned
//! objects is in the state, so nothing of this is lost in a crash: what was handed out is handed out again, and
//! deleting an object twice is harmless.

use super::Machine;
use super::group::{DeleteJob, Effect, Group, Then};
use super::pace::{Lately, Pace};
use chronofs_core::ops::SystemRequest;
use chronofs_core::{ObjectId, Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::rows::{Sum, Tally};
use chronofs_namespace::{SystemError, SystemReply, list_condemned, list_kept};
use std::collections::{BTreeSet, VecDeque};
use uuid::Uuid;

/// How much is condemned in one commit, of one volume at a tick: up to 2,560 a second, beside clients 160 or a hundredth
/// of what is retired. That is ten minutes' worth and more, so what may go is condemned as fast as it comes.
const CONDEMNED: Pace = Pace { beside: 16, full: 256, one_in: 1024 };
/// How many objects are handed out for deletion and not reported back, of one volume.
const IN_FLIGHT_MAX: usize = 512;
/// How many of them at a tick: up to 1,280 a second, beside clients 80 or a hundredth of what is condemned.
const HANDED_OUT: Pace = Pace { beside: 8, full: 128, one_in: 1024 };
/// A volume where nothing was to be done is looked at again after so long.
const IDLE_NS: u64 = 1_000_000_000;
/// After a failure of the store nothing is deleted for so long; twice as long after the next, up to 32 s: when it is back,
/// it goes on soon.
const RETRY_NS: u64 = 2_000_000_000;
const RETRY_DOUBLINGS_MAX: u32 = 4;
/// For so long it counts that the admin server has said who owns the store. It says so every 20 s.
const OWNER_NS: u64 = 60_000_000_000;

/// What became of objects that were handed out for deletion.
#[derive(Clone, Debug)]
pub struct DeletedObjects {
    /// Their volume.
    pub volume: Uuid,
    /// All that were handed out together.
    pub asked: Vec<ObjectId>,
    /// Those that are not in the store any more.
    pub deleted: Vec<ObjectId>,
    /// Why the others are.
    pub failure: Option<String>,
}

/// How the collection of one volume stands. Not in the state: a restart begins anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Collecting {
    /// Handed out for deletion.
    in_flight: BTreeSet<ObjectId>,
    /// The last of them, and from when on those up to it are looked at again.
    handed_to: Option<ObjectId>,
    anew_ns: Option<u64>,
    /// Failures of the store in a row, and until when they make it wait.
    failures: u32,
    retry_ns: u64,
    /// Until then there is nothing to look for.
    next_ns: u64,
    /// All that was retired before is condemned.
    pub(super) condemned_to: Version,
    /// Objects that were deleted.
    lately: Lately,
    /// For people.
    pub(super) shown: CollectionShown,
}

/// What the server says of a volume's collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CollectionShown {
    /// Objects deleted since the start.
    pub deleted: u64,
    /// Their stored bytes, as far as rows ever told.
    #[serde(default)]
    pub deleted_bytes: u64,
    /// Objects deleted in a second, lately.
    #[serde(default)]
    pub deleted_per_second: u64,
    /// More could go now, and goes slowly because clients are at work.
    #[serde(default)]
    pub slowed: bool,
    /// Staged slices removed since the start.
    pub staged: u64,
    /// So much was retired at once that it waits for a word: `chronofs meta gc --release-brake`.
    pub braked: bool,
    /// More than half of the files were removed within an hour; the instant before is held: `chronofs configure list hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_at: Option<String>,
    /// Why the store does not delete at the moment.
    pub problem: Option<String>,
    /// Why nothing is forgotten or deleted at the moment, if it is the pins in the block store that are in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// The metadata cannot be read where it has to be: nothing is collected until the next start.
    pub stopped: bool,
}

/// Which version was the last one how long ago, by the steady clock: what was unnamed before a version that is old
/// enough is unnamed for so long, whatever became of the wall clock. Begins anew at every start.
#[derive(Debug, Default)]
pub(super) struct Ages {
    samples: VecDeque<(u64, Version)>,
}

impl Ages {
    fn note(&mut self, steady_ns: u64, last: Version, life_ns: u64) {
        if self.samples.back().is_none_or(|&(at, _)| steady_ns >= at + life_ns / 32) {
            self.samples.push_back((steady_ns, last));
        }
        while self.samples.get(1).is_some_and(|&(at, _)| at + life_ns <= steady_ns) {
            self.samples.pop_front();
        }
    }

    /// The newest version that is known to be `life_ns` old.
    fn before(&self, steady_ns: u64, life_ns: u64) -> Option<Version> {
        self.samples.front().filter(|&&(at, _)| at + life_ns <= steady_ns).map(|&(_, version)| version)
    }
}

impl Machine {
    fn life_ns(&self) -> u64 {
        u64::from(self.config.slice_life_ms) * 1_000_000
    }

    /// Whether the admin server said lately that this start owns the store. Another copy of the same metadata, or an
    /// owner that was followed by another, would delete what the owner's rows name: its own have not heard of them.
    pub fn owns_store(&self, steady_ns: u64) -> bool {
        !self.config.asks_admin || self.owns_until_ns.is_some_and(|until| steady_ns < until)
    }

    pub(super) fn heard_of_owner(&mut self, group: &Group, owns: bool) {
        self.owns_until_ns = owns.then_some(group.steady_ns + OWNER_NS);
    }

    /// What was retired, or which session was over, up to here may be collected. `None` before the server has run for
    /// that long, and while it does not know that it owns the store.
    pub fn collects_before(&self, steady_ns: u64) -> Option<Version> {
        let before = self.ages.before(steady_ns, self.life_ns());
        before.filter(|_| self.owns_store(steady_ns))
    }

    /// Why nothing that lies in the block store of a volume may be deleted now, if so.
    pub fn deletes_nothing(&self, index: VolumeIndex, steady_ns: u64) -> Option<String> {
        if self.is_recovering() {
            return Some("mounts are still asked for what a power cut took".to_owned());
        }
        if !self.owns_store(steady_ns) {
            return Some(
                "the admin server has not confirmed lately that this server owns the metadata".to_owned(),
            );
        }
        self.unread_pins(index, steady_ns)
    }

    /// Condemns what is retired for long enough, and hands out what is condemned for good.
    pub(super) fn collect(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let life_ns = self.life_ns();
        self.ages.note(group.steady_ns, self.last, life_ns);
        let indexes: Vec<VolumeIndex> = self.volumes.keys().copied().collect();
        for index in indexes {
            let Some(volume) = self.volumes.get_mut(&index) else { continue };
            let Collecting { next_ns, shown, lately, .. } = &mut volume.collecting;
            shown.deleted_per_second = lately.per_second(group.steady_ns);
            if !volume.row.is_collected() || shown.stopped || group.steady_ns < *next_ns {
                continue;
            }
            let waits = self.unread_pins(index, group.steady_ns);
            let may = waits.is_none();
            if let Some(volume) = self.volumes.get_mut(&index) {
                let shown = &mut volume.collecting.shown;
                (shown.waits, shown.slowed) = (waits, shown.slowed && may);
            }
            if !may {
                continue;
            }
            match self.collect_volume(group, index) {
                Ok(()) => {}
                // It was warned of. What is kept for too long takes nothing but room.
                Err(EngineError::Damaged { .. }) => {
                    if let Some(volume) = self.volumes.get_mut(&index) {
                        volume.collecting.shown.stopped = true;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn collect_volume(&mut self, group: &mut Group, index: VolumeIndex) -> Result<(), EngineError> {
        let Some(id) = self.volumes.get(&index).map(|volume| volume.id()) else { return Ok(()) };
        let tally = self.tally(group, index, "looking for retired objects")?;
        let (mut busy, mut slowed) = (false, false);
        if let Some(before) = self.collects_before(group.steady_ns) {
            // What fell is noted when it is seen.
            let brakes = tally.flags & Tally::BRAKED != 0;
            let brake = if brakes { self.config.brake_from } else { u64::MAX };
            let limit = self.at_pace(group, &CONDEMNED, tally.retired.count) as u32;
            let from = self.volumes.get(&index).map_or(Version(0), |volume| volume.collecting.condemned_to);
            let request = SystemRequest::Condemn { volume: id, from, before, limit, brake };
            if let Ok(SystemReply::Condemned { objects, staged, braked, next }) =
                self.system(group, &request)?
            {
                busy = objects + staged > 0;
                slowed = objects + staged >= limit && u64::from(limit) < CONDEMNED.full;
                group.thens.push(Then::Condemned { index, staged, braked, fell: false, next });
            }
        }
        let condemned = tally.condemned.count;
        let handed_out = self.hand_out(group, index, condemned)?;
        busy |= handed_out;
        let at_pace = self.at_pace(group, &HANDED_OUT, condemned);
        slowed |= handed_out && condemned > at_pace && at_pace < HANDED_OUT.full;
        let wait_ns = if busy { 0 } else { IDLE_NS.min(self.life_ns() / 8) };
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.collecting.next_ns = group.steady_ns + wait_ns;
            volume.collecting.shown.slowed = slowed;
        }
        Ok(())
    }

    /// What there is of a volume. Whoever needs it does no more for the volume if it cannot be read.
    pub(super) fn tally(
        &self,
        group: &mut Group,
        index: VolumeIndex,
        what: &str,
    ) -> Result<Tally, EngineError> {
        match chronofs_namespace::tally(&group.reads, index) {
            Ok(tally) => Ok(tally),
            Err(stop) => {
                self.stopped(group, stop, what)?;
                Err(EngineError::Damaged { what: what.to_owned(), detail: String::new() })
            }
        }
    }

    /// Hands out what is condemned, each time what comes after that of the last time: the rows before it are mostly
    /// deleted, and reading over those takes its time. From time to time it is begun anew, for what was left there.
    /// Objects that the source of a restore stored are its own, also when nothing here needs them any more: what is
    /// condemned of them is let go without being deleted. Whether there was anything.
    fn hand_out(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        condemned: u64,
    ) -> Result<bool, EngineError> {
        let (durable, anew_after_ns) = (self.durable, IDLE_NS.min(self.life_ns() / 8));
        let owns = self.owns_store(group.steady_ns);
        let limit = self.at_pace(group, &HANDED_OUT, condemned) as usize;
        let Some(volume) = self.volumes.get_mut(&index) else { return Ok(false) };
        let (id, own) = (volume.id(), volume.row.incarnation);
        let collecting = &mut volume.collecting;
        let room = IN_FLIGHT_MAX.saturating_sub(collecting.in_flight.len()).min(limit);
        if room == 0 || group.steady_ns < collecting.retry_ns || !owns {
            return Ok(false);
        }
        if collecting.anew_ns.is_some_and(|anew_ns| anew_ns <= group.steady_ns) {
            (collecting.handed_to, collecting.anew_ns) = (None, None);
        }
        let most = room + collecting.in_flight.len();
        let listed = match list_condemned(&group.reads, index, collecting.handed_to, most) {
            Ok(listed) => listed,
            Err(stop) => {
                let what = "looking for condemned objects";
                self.stopped(group, stop, what)?;
                return Err(EngineError::Damaged { what: what.to_owned(), detail: String::new() });
            }
        };
        if listed.len() < most {
            collecting.anew_ns.get_or_insert(group.steady_ns + anew_after_ns);
        }
        let in_flight = &collecting.in_flight;
        let ready = listed.into_iter().filter(|(id, row)| row.since <= durable && !in_flight.contains(id));
        let (objects, foreign): (Vec<_>, Vec<_>) =
            ready.map(|(id, _)| id).take(room).partition(|id| id.incarnation == own);
        let any = !objects.is_empty() || !foreign.is_empty();
        if !objects.is_empty() {
            group.thens.push(Then::HandedOut(index, objects));
        }
        if !foreign.is_empty() {
            drop(self.system(group, &SystemRequest::Deleted { volume: id, objects: foreign })?);
        }
        Ok(any)
    }

    /// Objects are handed out for deletion, now that nothing of the group can fail.
    pub(super) fn handed_out(&mut self, group: &mut Group, index: VolumeIndex, objects: Vec<ObjectId>) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.collecting.handed_to = objects.last().copied().or(volume.collecting.handed_to);
            volume.collecting.in_flight.extend(&objects);
            group.effects.push(Effect::Delete(DeleteJob { volume: volume.id(), objects }));
        }
    }

    pub(super) fn condemned(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        (staged, braked, next): (u32, bool, Version),
        fell: bool,
    ) {
        let Some(volume) = self.volumes.get_mut(&index) else { return };
        volume.collecting.condemned_to = next;
        if fell {
            // It is noted in the rows whether it brakes.
            volume.falls_of_held.close();
        }
        let shown = &mut volume.collecting.shown;
        shown.staged += u64::from(staged);
        if braked && !shown.braked {
            group.effects.push(Effect::Warn(format!(
                "volume {}: more than half of its objects and staged slices lost their last name in a short time; they \
                 are not deleted. If that is meant: chronofs meta gc --release-brake",
                volume.row.spec.name
            )));
        }
        shown.braked = braked;
    }

    /// The store has deleted objects, or not. What cannot be committed now is handed out again.
    pub(super) fn objects_deleted(
        &mut self,
        group: &mut Group,
        done: &DeletedObjects,
    ) -> Result<(), EngineError> {
        let Some(volume) = self.volumes.values_mut().find(|volume| volume.id() == done.volume) else {
            return Ok(());
        };
        let index = volume.index;
        let collecting = &mut volume.collecting;
        for object in &done.asked {
            collecting.in_flight.remove(object);
        }
        match &done.failure {
            Some(failure) => {
                let wait_ns = RETRY_NS << collecting.failures.min(RETRY_DOUBLINGS_MAX);
                collecting.failures += 1;
                collecting.retry_ns = group.steady_ns + wait_ns;
                if collecting.shown.problem.is_none() {
                    let name = &volume.row.spec.name;
                    group.effects.push(Effect::Warn(format!(
                        "volume {name}: objects that nothing needs any more cannot be deleted: {failure}; it is tried \
                         again"
                    )));
                }
                collecting.shown.problem = Some(failure.clone());
            }
            None if !done.asked.is_empty() => {
                (collecting.failures, collecting.shown.problem) = (0, None);
            }
            None => {}
        }
        if group.full || self.is_recovering() || done.deleted.is_empty() {
            return Ok(());
        }
        match self.commit_deleted(group, index, done) {
            Err(EngineError::Damaged { .. }) => self.stop_collecting(index),
            result => return result,
        }
        Ok(())
    }

    fn commit_deleted(
        &mut self,
        group: &mut Group,
        index: VolumeIndex,
        done: &DeletedObjects,
    ) -> Result<(), EngineError> {
        // Of those that are gone some were said to be before, and their rows went only now.
        let what = "looking for condemned objects";
        let before = self.tally(group, index, what)?.condemned;
        let request = SystemRequest::Deleted { volume: done.volume, objects: done.deleted.clone() };
        if self.system(group, &request)?.is_ok() {
            let left = self.tally(group, index, what)?.condemned;
            let count = before.count.saturating_sub(left.count);
            let bytes = before.bytes.saturating_sub(left.bytes);
            group.thens.push(Then::ObjectsGone(index, Sum { count, bytes }));
        }
        Ok(())
    }

    pub(super) fn objects_gone(&mut self, group: &Group, index: VolumeIndex, gone: Sum) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            let Collecting { lately, shown, .. } = &mut volume.collecting;
            lately.add(group.steady_ns, gone.count);
            shown.deleted += gone.count;
            shown.deleted_bytes += gone.bytes;
        }
    }

    /// Objects were found in a store that no row names and that sessions which are over were granted.
    pub(super) fn garbage_found(
        &mut self,
        group: &mut Group,
        volume: Uuid,
        objects: &[ObjectId],
    ) -> Result<(), EngineError> {
        let Some(over_since) = self.collects_before(group.steady_ns) else { return Ok(()) };
        let found = self.volumes.values().find(|found| found.id() == volume && found.row.is_collected());
        let Some(index) = found.map(|volume| volume.index) else { return Ok(()) };
        if group.full || self.is_recovering() || self.unread_pins(index, group.steady_ns).is_some() {
            return Ok(());
        }
        let request = SystemRequest::CondemnGarbage { volume, objects: objects.to_vec(), over_since };
        match self.system(group, &request) {
            Ok(_) => Ok(()),
            Err(EngineError::Damaged { .. }) => {
                self.stop_collecting(index);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn stop_collecting(&mut self, index: VolumeIndex) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.collecting.shown.stopped = true;
        }
    }

    /// All that is retired by now may go, in every volume, however much it is.
    pub fn release_brakes(&mut self, group: &mut Group) -> Result<Result<(), SystemError>, EngineError> {
        if let Some(refused) = self.keeps_nothing(group) {
            return Ok(Err(refused));
        }
        let live = self.volumes.values().filter(|volume| volume.row.deleted.is_none());
        let ids: Vec<Uuid> = live.map(|volume| volume.id()).collect();
        for volume in ids {
            drop(self.system(group, &SystemRequest::ReleaseBrake { volume })?);
        }
        self.volumes.values_mut().for_each(|volume| volume.falls_of_held.close());
        Ok(Ok(()))
    }

    /// Why nothing can be kept or released now, if so.
    fn keeps_nothing(&self, group: &Group) -> Option<SystemError> {
        let collects = self.is_recovering().then_some(SystemError::NotNow);
        collects.or(group.full.then_some(SystemError::NoRoom))
    }

    /// Keeps the instants `at..=to` of a volume readable until they are released, or, as a hold, until `ends`.
    pub fn keep_instants(
        &mut self,
        group: &mut Group,
        (volume, id): (Uuid, Uuid),
        (at, to): (Version, Version),
        ends: Option<Version>,
        note: &str,
    ) -> Result<Result<(), SystemError>, EngineError> {
        if let Some(refused) = self.keeps_nothing(group) {
            return Ok(Err(refused));
        }
        let request = SystemRequest::Keep { volume, id, at, to, ends, note: note.to_owned(), found: false };
        Ok(self.system(group, &request)?.map(drop))
    }

    /// Keeps all that a volume has of its past, under the first of two ids, and all that comes, under the second, until they
    /// are released or `ends` has come. Gives the span of the first: what was asked for before has the same.
    pub fn keep_past(
        &mut self,
        group: &mut Group,
        (volume, ids): (Uuid, [Uuid; 2]),
        ends: Version,
        note: &str,
    ) -> Result<Result<(Version, Version), SystemError>, EngineError> {
        if let Some(refused) = self.keeps_nothing(group) {
            return Ok(Err(refused));
        }
        let request = SystemRequest::KeepPast { volume, ids, ends, note: note.to_owned() };
        Ok(match self.system(group, &request)? {
            Ok(SystemReply::Kept(at, to)) => Ok((at, to)),
            Ok(_) => Err(SystemError::UnknownVolume(volume)),
            Err(refused) => Err(refused),
        })
    }

    /// These instants need not be kept for this any more.
    pub fn release_instants(
        &mut self,
        group: &mut Group,
        volume: Uuid,
        id: Uuid,
    ) -> Result<Result<(), SystemError>, EngineError> {
        if let Some(refused) = self.keeps_nothing(group) {
            return Ok(Err(refused));
        }
        let released = self.system(group, &SystemRequest::Release { volume, id })?.map(drop);
        if let (Ok(()), Some(volume)) =
            (&released, self.volumes.values_mut().find(|found| found.id() == volume))
        {
            volume.pins.released(group.steady_ns);
            group.thens.push(Then::Released(volume.index));
        }
        Ok(released)
    }

    pub(super) fn hold_ended(&mut self, index: VolumeIndex) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.forgetting.lease_ended(self.last);
        }
    }

    /// Releases holds whose time is over.
    pub(super) fn end_holds(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let now = self.next_version(group);
        let kept = match list_kept(&group.reads) {
            Ok(kept) => kept,
            // They go on being kept, and whoever needs the list to forget stops there.
            Err(stop) => return self.stopped(group, stop, "looking for holds that are over").map(drop),
        };
        for (index, id, row) in kept {
            let over = row.ends.is_some_and(|ends| ends <= now);
            let Some(volume) = self.volumes.get(&index) else { continue };
            if over && self.system(group, &SystemRequest::Release { volume: volume.id(), id })?.is_ok() {
                group.thens.push(Then::Released(index));
            }
        }
        Ok(())
    }
}
