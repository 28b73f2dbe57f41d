//! In the end the volume is deleted: it keeps all while it may come back, whatever fails, and then goes to the last row and
//! object, whatever fails.

use super::{MS, World};
use crate::common;
use bytes::Bytes;
use chronofs_core::VolumeIndex;
use chronofs_engine::Engine;
use chronofs_meta::machine::{Event, SharedView};
use chronofs_namespace::rows::VERSIONED;
use chronofs_wire::admin::Assignment;

const INDEX: VolumeIndex = VolumeIndex(1);
const YEAR_NS: u64 = 365 * 24 * 3600 * 1000 * MS;

/// What the admin server says of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Lives,
    Kept,
    /// Its time is over, by the clock of the admin server.
    Due,
    GivenUp,
}

impl World {
    pub fn assignment(&self) -> Assignment {
        let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
        assignment.revision = 1;
        let volume = &mut assignment.volumes[0];
        volume.spec.retention = self.retention;
        volume.deleted = self.fate != Fate::Lives;
        volume.give_up_after_s = match self.fate {
            Fate::Lives | Fate::Kept => None,
            Fate::Due => Some(7200),
            Fate::GivenUp => Some(0),
        };
        assignment
    }

    fn decide(&mut self, fate: Fate) {
        self.fate = fate;
        let told = Event::Assignment(Box::new(self.assignment()));
        self.with_server(vec![told, Event::Tick]);
    }

    /// Rows of the volume but its own, live and past.
    fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let Some(server) = &self.server else { return Vec::new() };
        let all = server.engine.view().scan(&[], &[0xff], usize::MAX).unwrap();
        let belongs = |key: &[u8]| {
            let key = key.strip_prefix(&[0x80]).unwrap_or(key);
            key.get(1..5) == Some(&INDEX.0.to_be_bytes())
        };
        all.into_iter().filter(|(key, _)| belongs(key)).collect()
    }

    /// Things go on and fail for a while.
    fn trouble(&mut self) {
        for _ in 0..10 + self.store_random.below(30) {
            self.now_ns += self.store_random.below(100 * MS);
            if self.fate == Fate::Due && self.store_random.one_in(3) {
                // The clock is set, wrong or right.
                self.ahead_ns = YEAR_NS - self.ahead_ns;
            }
            match self.store_random.below(20) {
                0 => self.kill(),
                1 => self.cut_power(),
                2 => self.fault(),
                3 => self.maintain(),
                4..=7 => self.sync(),
                8..=11 => self.store_works(),
                12 if self.rows_of_files() > 0 => {
                    // A listing left out what there is.
                    self.with_server(vec![Event::NoneFound(common::VOLUME)]);
                    assert!(self.server.is_none() || self.rows_of_files() > 0);
                }
                _ => self.with_server(vec![Event::Tick]),
            }
            if self.server.is_none() {
                self.restart();
            }
        }
        self.disk.clear_faults();
        self.ahead_ns = 0;
        self.restart();
    }

    fn rows_of_files(&self) -> usize {
        let versioned = |key: &[u8]| VERSIONED.iter().any(|table| table.parse(INDEX, key).is_some());
        self.rows().iter().filter(|(key, _)| versioned(key)).count()
    }

    fn calm(&mut self) {
        for _ in 0..3 {
            self.sync();
            self.with_server(vec![Event::Tick]);
        }
    }

    /// After [`World::finish_store`]: nobody is there any more.
    pub fn finish_leave(&mut self) {
        self.store.lock().unwrap().honest = false;
        self.decide(Fate::Kept);
        self.calm();
        let (before, objects) = (self.rows(), self.store.lock().unwrap().objects.clone());
        self.trouble();
        assert_eq!(self.rows(), before, "a deleted volume keeps all while it may come back");
        assert_eq!(self.store.lock().unwrap().objects, objects);
        self.check_past();
        if self.store_random.one_in(2) {
            self.decide(Fate::Lives);
            self.trouble();
            self.check_past();
            self.decide(Fate::Kept);
        }
        // What is not durable, a power cut takes back.
        self.calm();
        let before = self.rows();
        self.decide(Fate::Due);
        self.trouble();
        assert_eq!(self.rows(), before, "a clock alone gives up nothing");
        if self.store_random.one_in(2) {
            // It is taken back at the last moment.
            self.decide(Fate::Lives);
            self.calm();
            self.check_past();
            self.decide(Fate::Kept);
        }
        self.decide(Fate::GivenUp);
        self.trouble();
        self.store.lock().unwrap().honest = true;
        for round in 0..60 {
            self.now_ns += if round < 3 { 100_000 * MS } else { 100 * MS };
            self.calm();
            self.tell_packed();
            self.look_through(false);
            loop {
                let done = self.store.lock().unwrap().work(&mut self.store_random);
                let Some(done) = done else { break };
                self.with_server(vec![Event::Deleted(Box::new(done))]);
            }
        }
        assert_eq!(self.store.lock().unwrap().objects.len(), 0, "objects of a deleted volume are left");
        self.with_server(vec![Event::NoneFound(common::VOLUME)]);
        assert_eq!(self.rows(), []);
        let reads = SharedView(self.server.as_ref().unwrap().engine.view());
        let row = chronofs_namespace::volume(&reads, INDEX).unwrap().unwrap();
        assert!(row.is_gone(), "{row:?}");
    }
}
