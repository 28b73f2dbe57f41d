//! The block store of the simulation: it loses deletes, fails them, carries them out late, and lists what is gone. What is
//! packed for it arrives or not, whatever it says.

use bytes::Bytes;
use chronofs_core::ObjectId;
use chronofs_engine::View;
use chronofs_engine::sim::Random;
use chronofs_meta::machine::{DeleteJob, DeletedObjects, Event, PackJob, Packed, Source};
use chronofs_meta::pack::{Repacker, build_pack};
use chronofs_namespace::PoorObject;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

pub type SharedStore = Arc<Mutex<SimStore>>;

#[derive(Default)]
pub struct SimStore {
    pub objects: BTreeSet<ObjectId>,
    /// Deletes that are on their way, and whether somebody waits for the answer.
    jobs: Vec<(DeleteJob, bool)>,
    /// What was there at some time: a stale listing shows it.
    ever: BTreeSet<ObjectId>,
    /// It does what it is asked.
    pub honest: bool,
    pub deleted: usize,
    /// What was put, also when it is gone.
    pub bytes: BTreeMap<ObjectId, Bytes>,
    /// What the server is to be told of what it had packed.
    pub packed: VecDeque<Event>,
}

impl SimStore {
    /// Another one that holds the same.
    pub fn copy(&self) -> SimStore {
        let (objects, bytes) = (self.objects.clone(), self.bytes.clone());
        SimStore { objects, bytes, ..SimStore::default() }
    }

    pub fn put(&mut self, id: ObjectId, bytes: Bytes) {
        let old = self.bytes.insert(id, bytes);
        assert!(old.is_none(), "{id} is stored twice");
        self.objects.insert(id);
        self.ever.insert(id);
    }

    /// Whether the slice was put by a client, as part of an object.
    pub fn was_born_in(&self, object: ObjectId) -> bool {
        self.ever.contains(&object)
    }

    /// An object of staged slices is made and stored, or not.
    pub fn pack(&mut self, job: PackJob, view: Arc<dyn View>, random: &mut Random) {
        let built = match &job.source {
            Source::Staged(from) => build_pack(&job, from, view),
            Source::Objects(sources) => Ok(self.repack(&job, sources, view)),
        };
        let result = built.and_then(|(bytes, packed)| {
            let fails = !self.honest && random.one_in(4);
            if packed.slices > 0 && (!fails || random.one_in(2)) {
                self.put(job.object, bytes);
            }
            if fails { Err("503".to_owned()) } else { Ok(packed) }
        });
        self.packed.push_back(Event::Packed(Box::new(job), result));
    }

    fn repack(&self, job: &PackJob, sources: &[PoorObject], view: Arc<dyn View>) -> (Bytes, Packed) {
        let mut repacker = Repacker::new(job, view);
        for source in sources.iter().filter(|source| self.objects.contains(&source.id)) {
            // What is named elsewhere than it was put for stays where it is.
            drop(repacker.add(source, self.bytes[&source.id].clone()));
        }
        repacker.finish()
    }

    pub fn asked(&mut self, job: DeleteJob) {
        self.jobs.push((job, true));
    }

    /// Nobody waits any more, but what is on its way arrives, as a rule.
    pub fn server_gone(&mut self, random: &mut Random) {
        self.packed.clear();
        self.jobs.retain(|_| !random.one_in(3));
        self.jobs.iter_mut().for_each(|(_, waits)| *waits = false);
    }

    /// Carries out one of the deletes.
    pub fn work(&mut self, random: &mut Random) -> Option<DeletedObjects> {
        if self.jobs.is_empty() {
            return None;
        }
        let (job, waits) = self.jobs.remove(random.below(self.jobs.len() as u64) as usize);
        let (mut deleted, mut failure) = (Vec::new(), None);
        for &id in &job.objects {
            let (gone, told) = match if self.honest { 99 } else { random.below(10) } {
                // It says that it did, and did not.
                0 => (false, true),
                1 => (false, false),
                // It did, and says that it could not.
                2 => (true, false),
                _ => (true, true),
            };
            if gone {
                self.deleted += usize::from(self.objects.remove(&id));
            }
            match told {
                true => deleted.push(id),
                false => failure = Some("503".to_owned()),
            }
        }
        waits.then_some(DeletedObjects { volume: job.volume, asked: job.objects, deleted, failure })
    }

    /// A page of a listing: it may leave out what is there and show what is gone.
    pub fn list(&mut self, random: &mut Random) -> Vec<ObjectId> {
        if self.honest {
            return self.objects.iter().copied().collect();
        }
        let from = if random.one_in(2) { &self.ever } else { &self.objects };
        from.iter().copied().filter(|_| !random.one_in(4)).collect()
    }
}
