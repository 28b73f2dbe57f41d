//! A block store beside the server: what any row names is there at every moment, and what nothing needs goes in the end.

use super::{MS, World};
use crate::common;
use chronofs_blocks::seal;
use chronofs_core::slice::{Place, Seal};
use chronofs_core::{ObjectId, SessionId, Version, VolumeIndex};
use chronofs_engine::Engine;
use chronofs_meta::machine::{DeletedObjects, Event, SharedView};
use chronofs_namespace::{HeldFrom, HeldSlice, Judged, gone_objects, held_slices, judge, poor_object};
use std::collections::BTreeSet;

const INDEX: VolumeIndex = VolumeIndex(1);

impl World {
    /// What the rows name, now and in the past.
    fn named(&self) -> BTreeSet<ObjectId> {
        let Some(server) = &self.server else { return BTreeSet::new() };
        let reads = SharedView(server.engine.view());
        let (mut named, mut from) = (BTreeSet::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let (page, next) = held_slices(&reads, INDEX, &start, 64).unwrap();
            for held in page {
                match &held.slice.place {
                    Place::Object(seal, at) => {
                        named.insert(seal.id.object);
                        self.check_slice(seal, seal.id.object, *at);
                    }
                    Place::Staged(_) => assert!(held.staged.is_some(), "staged bytes are gone: {held:?}"),
                    Place::Moved(seal, object, at) => {
                        named.insert(*object);
                        self.check_slice(seal, *object, *at);
                    }
                    Place::Hole | Place::Inline(..) => {}
                }
            }
            from = next;
        }
        named
    }

    fn check_slice(&self, seal: &Seal, object: ObjectId, at: u64) {
        let store = self.store.lock().unwrap();
        let (start, len) = (at as usize, seal.stored_len as usize);
        seal::open(seal, store.bytes[&object].slice(start..start + len)).expect("what was put is whole");
    }

    /// How many slices that clients put in objects lie in other ones.
    fn repacked(&self) -> usize {
        let reads = SharedView(self.server.as_ref().unwrap().engine.view());
        let (page, _) = held_slices(&reads, INDEX, &HeldFrom::default(), 10_000).unwrap();
        let store = self.store.lock().unwrap();
        let elsewhere = |held: &HeldSlice| matches!(&held.slice.place, Place::Moved(seal, ..) if store.was_born_in(seal.id.object));
        page.iter().filter(|held| elsewhere(held)).count()
    }

    /// Invariant 3. Rows that no protected instant needs may not dangle either: they go first.
    pub fn check_store(&self) {
        let named = self.named();
        let store = self.store.lock().unwrap();
        let lost: Vec<ObjectId> = named.into_iter().filter(|id| !store.objects.contains(id)).collect();
        assert!(lost.is_empty(), "rows name {lost:?}, which the store has deleted");
    }

    /// The store does one of the things it is to do, or is looked through.
    pub fn store_works(&mut self) {
        if self.store_random.one_in(3) {
            self.tell_packed();
        }
        if self.store_random.one_in(4) {
            let repacks = self.store_random.one_in(2);
            self.look_through(repacks);
            return;
        }
        let done = self.store.lock().unwrap().work(&mut self.store_random);
        if let Some(done) = done {
            self.with_server(vec![Event::Deleted(Box::new(done))]);
        }
        self.check_store();
    }

    pub fn tell_packed(&mut self) {
        let told = self.store.lock().unwrap().packed.pop_front();
        if let Some(told) = told {
            self.with_server(vec![told]);
            self.check_store();
        }
    }

    /// What the server does with a listing.
    pub fn look_through(&mut self, repacks: bool) {
        let page = self.store.lock().unwrap().list(&mut self.store_random);
        let Some(server) = &self.server else { return };
        let reads = SharedView(server.engine.view());
        let Some(volume) = chronofs_namespace::volume(&reads, INDEX).unwrap() else { return };
        let machine = &server.core.machine;
        let over_since = machine.collects_before(self.now_ns).unwrap_or(Version::ZERO);
        let (mut garbage, mut poor) = (Vec::new(), Vec::new());
        for id in page {
            match judge(&reads, INDEX, &volume, id, over_since).unwrap() {
                Judged::Garbage => garbage.push(id),
                Judged::Known => {
                    let size = self.store.lock().unwrap().bytes[&id].len() as u64;
                    poor.extend(poor_object(&reads, INDEX, id, size, 95).unwrap());
                }
                Judged::Open => {}
                // The session that put it was durable before it was told of.
                Judged::Quarantined(reason) => panic!("{id}: {reason}"),
            }
        }
        let gone = gone_objects(&reads, INDEX).unwrap();
        let (volume, asked) = (common::VOLUME, Vec::new());
        let gone = DeletedObjects { volume, asked, deleted: gone, failure: None };
        self.with_server(vec![Event::Garbage(volume, garbage), Event::Deleted(Box::new(gone))]);
        if repacks {
            self.with_server(vec![Event::Poor(volume, poor)]);
        }
    }

    /// Clients are gone for good; then the store holds what rows name, and no more.
    pub fn finish_store(&mut self) {
        self.store.lock().unwrap().honest = true;
        for n in 0..self.clients.len() {
            if let Some(conn) = self.clients[n].conn {
                self.with_server(vec![Event::Gone(conn)]);
            }
        }
        for round in 0..100 {
            self.now_ns += if round < 3 { 100_000 * MS } else { 100 * MS };
            self.sync();
            self.with_server(vec![Event::Tick]);
            self.tell_packed();
            self.look_through(round < 30);
            loop {
                let done = self.store.lock().unwrap().work(&mut self.store_random);
                let Some(done) = done else { break };
                self.with_server(vec![Event::Deleted(Box::new(done))]);
            }
        }
        self.repacked_in_the_end = self.repacked();
        let named = self.named();
        let store = self.store.lock().unwrap();
        self.packs_in_the_end = named.iter().filter(|id| id.session == SessionId::SERVER).count();
        assert_eq!(store.objects, named, "the store does not hold just what rows name");
        let reads = SharedView(self.server.as_ref().unwrap().engine.view());
        let tally = chronofs_namespace::tally(&reads, INDEX).unwrap();
        assert_eq!((tally.retired.count, tally.condemned.count), (0, 0), "{tally:?}");
        let counted = chronofs_namespace::list_objects(&reads, INDEX, None, usize::MAX).unwrap();
        assert_eq!(counted.len(), named.len(), "rows of objects that are gone: {counted:?}");
    }
}
