//! In the end a clone is made of what there is. It copies what it needs, over a store that fails and through deaths of its server;
//! then what the source stored may go, and at every instant the clone shows what the source did.

use super::{MS, World};
use crate::common;
use crate::sim::store::SimStore;
use chronofs_blocks::seal;
use chronofs_core::slice::{Place, Seal};
use chronofs_core::{Ino, ObjectId, Retention, Version, VolumeIndex};
use chronofs_engine::memory::Memory;
use chronofs_engine::sim::Random;
use chronofs_engine::{Batch, Change, Commit, Engine, Reads};
use chronofs_meta::core::Core;
use chronofs_meta::machine::tag::{self, Tag};
use chronofs_meta::machine::{Config, Effect, Event, Found, Machine, PinsRead, SharedView};
use chronofs_namespace::{Foreign, HeldFrom, foreign_objects, held_slices, restored};
use chronofs_wire::admin::Assignment;
use std::collections::BTreeSet;
use std::sync::Arc;

const INDEX: VolumeIndex = VolumeIndex(1);

/// A slice and how long its row held; where it lies apart.
type Held = (Ino, u32, Version, Option<Version>, Seal);

struct SimClone {
    engine: Arc<Memory>,
    core: Core,
    store: SimStore,
    assignment: Assignment,
    now_ns: u64,
}

impl SimClone {
    fn start(engine: Arc<Memory>, store: SimStore, assignment: Assignment, now_ns: u64) -> SimClone {
        let config = Config {
            boot: now_ns,
            slice_life_ms: 200,
            pack_bytes: 400,
            pack_after_ms: 300,
            ..Config::default()
        };
        let found = Found { last_commit: engine.applied(), ..Found::default() };
        let reads = SharedView(engine.view());
        let machine = Machine::new(config, &reads, engine.applied(), found, now_ns.into()).unwrap();
        let core = Core { machine, engine: engine.clone() };
        let mut clone = SimClone { engine, core, store, assignment, now_ns };
        clone.run(vec![Event::Assignment(Box::new(clone.assignment.clone()))]);
        clone
    }

    fn run(&mut self, events: Vec<Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.run(self.now_ns, events, &mut |group| effects.extend(group.effects)).unwrap();
        effects
    }

    /// A tick, before which pins are read and all became durable.
    fn tick(&mut self) -> Vec<Effect> {
        let pins = PinsRead { volume: common::VOLUME, began_ns: self.now_ns, found: Ok(Vec::new()) };
        let durable = self.engine.sync().unwrap();
        self.run(vec![Event::Pins(Box::new(pins)), Event::Durable(durable), Event::Tick])
    }

    fn incarnation(&self) -> u16 {
        self.core.machine.volume(INDEX).unwrap().row.incarnation
    }

    /// All that rows name in objects, of any time, whose bytes are there; and in which objects.
    fn held(&self) -> (Vec<Held>, BTreeSet<ObjectId>) {
        let (mut all, mut objects, mut from) = (Vec::new(), BTreeSet::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let (page, next) = held_slices(&SharedView(self.engine.view()), INDEX, &start, 64).unwrap();
            for held in page {
                let (seal, object, at) = match held.slice.place {
                    Place::Object(seal, at) => (seal, seal.id.object, at as usize),
                    Place::Moved(seal, object, at) => (seal, object, at as usize),
                    Place::Staged(seal) => {
                        all.push((held.ino, held.key.block, held.since, held.until, seal));
                        continue;
                    }
                    Place::Hole | Place::Inline(..) => continue,
                };
                let bytes = self.store.bytes[&object].slice(at..at + seal.stored_len as usize);
                seal::open(&seal, bytes).expect("what was put is whole");
                all.push((held.ino, held.key.block, held.since, held.until, seal));
                objects.insert(object);
            }
            from = next;
        }
        (all, objects)
    }

    /// What it needs of its source's objects, and some of those that it cannot copy.
    fn foreign(&mut self) -> (Foreign, Vec<(String, String)>) {
        let foreign = foreign_objects(&SharedView(self.engine.view()), INDEX, self.incarnation()).unwrap();
        (foreign, self.core.machine.copying(INDEX, self.now_ns).unwrap().left)
    }

    /// A second passes, or half a minute.
    fn round(&mut self, random: &mut Random) {
        self.now_ns += if random.one_in(2) { 1000 * MS } else { 30_000 * MS };
        for effect in self.tick() {
            match effect {
                Effect::Pack(job) => self.store.pack(*job, self.engine.view(), random),
                // What the clone has made and needs no longer; never what the source stored.
                Effect::Delete(job) => {
                    assert!(job.objects.iter().all(|id| id.incarnation == self.incarnation()), "{job:?}");
                }
                _ => {}
            }
        }
        let told = self.store.packed.pop_front();
        if let Some(told) = told.filter(|_| self.store.honest || !random.one_in(8)) {
            self.run(vec![told]);
        }
    }
}

impl World {
    /// A clone of what there is now copies what it needs.
    pub fn finish_clone(&mut self) {
        let Some(server) = &self.server else { panic!("no server in the end") };
        let volume = server.core.machine.volumes().find(|volume| volume.index == INDEX);
        if !volume.is_some_and(|volume| volume.row.is_live()) {
            return;
        }
        let view = server.engine.view();
        let rows = SharedView(view.clone()).scan(&[], &[0xff; 64], usize::MAX).unwrap();
        let batch = Batch(rows.into_iter().map(|(key, row)| Change::Put(key, row)).collect());
        let (engine, tag) = (Arc::new(Memory::default()), tag::encode(&Tag::System));
        let cut = view.version();
        engine.apply(vec![Commit { version: cut, tag: tag.clone(), batch }]).unwrap();
        let draw = [self.store_random.below(1 << 20), self.store_random.below(1 << 40)];
        let version = cut.next(self.now_ns);
        let batch = restored(&SharedView(engine.view()), cut, version, draw).unwrap();
        engine.apply(vec![Commit { version, tag, batch }]).unwrap();
        let store = self.store.lock().unwrap().copy();
        let mut assignment = Assignment { copy_restored: true, ..self.assignment() };
        assignment.volumes[0].spec.retention = Retention::Forever;
        let mut clone = SimClone::start(engine, store, assignment, self.now_ns);
        clone.tick();
        let horizon = clone.core.machine.volume(INDEX).unwrap().row.horizon;
        let in_window = |held: Vec<Held>| -> Vec<Held> {
            held.into_iter().filter(|held| held.3.is_none_or(|until| until > horizon)).collect()
        };
        let (before, of_source) = clone.held();
        let before = in_window(before);
        for round in 0.. {
            clone.store.honest = round > 40;
            clone.round(&mut self.store_random);
            // An answer that did not arrive comes no more before the next start.
            if !clone.store.honest && (self.store_random.one_in(6) || round == 40) {
                clone.store.packed.clear();
                clone = SimClone::start(clone.engine, clone.store, clone.assignment, clone.now_ns);
            }
            let (foreign, left) = clone.foreign();
            if clone.store.honest && foreign.unnamed == 0 && foreign.named.count.min(10) == left.len() as u64
            {
                break;
            }
            assert!(round < 2_000, "it does not come to an end: {foreign:?} {left:?}");
        }
        let (after, objects) = clone.held();
        assert_eq!(in_window(after), before, "a clone shows something else than its source");
        // Clients here name slices where the index of their object does not say so; these stay.
        let (_, left) = clone.foreign();
        assert!(left.iter().all(|(_, why)| why.contains("its index does not say so")), "{left:?}");
        let faults = chronofs_namespace::verify(&SharedView(clone.engine.view())).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        // Without what was copied all is there still.
        let stays = objects.iter().filter(|id| of_source.contains(id)).count();
        clone.store.bytes.retain(|id, _| objects.contains(id) || !of_source.contains(id));
        assert_eq!(in_window(clone.held().0), before);
        self.copied_in_the_end = of_source.len() - stays;
    }
}
