//! Operators at work on the key space, beside the clients. What they were told is committed is there ever after, and what
//! they read is what the commits up to its version make, all of them durable.

use super::World;
use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::sim::Random;
use chronofs_engine::{Change, Engine};
use chronofs_meta::machine::{Event, SharedView, verify_keys};
use chronofs_wire::question::{Blob, KeyOp, KeyRefused, KeyReply};
use std::collections::BTreeMap;

const KEYS: [&[u8]; 5] = [b"", b"a", b"ab", b"b", b"\xff"];
const PREFIX: [u8; 5] = [0x41, 0, 0, 0, 0];
/// So little that it is reached.
pub const BYTES_MAX: u64 = 150;

/// A change that was answered: its version, its key and what it was set to.
type Promise = (Version, Bytes, Option<Bytes>);

pub struct Operators {
    random: Random,
    next: u64,
    asked: BTreeMap<u64, KeyOp>,
    promised: Vec<Promise>,
    /// Changes and reads that were answered, and refusals for want of space.
    pub done: [usize; 3],
}

impl Operators {
    pub fn new(seed: u64) -> Self {
        Operators {
            random: Random::new(seed),
            next: 0,
            asked: BTreeMap::new(),
            promised: Vec::new(),
            done: [0; 3],
        }
    }

    fn draw(&mut self) -> Event {
        let key = Blob::from(KEYS[self.random.below(KEYS.len() as u64) as usize]);
        let op = match self.random.below(5) {
            0 | 1 => {
                let value = vec![self.next as u8; self.random.below(60) as usize];
                KeyOp::Set { key, value: Blob(value.into()) }
            }
            2 => KeyOp::Clear { key },
            3 => KeyOp::Get { key },
            _ => KeyOp::GetRange { begin: key, end: None, limit: 9 },
        };
        self.next += 1;
        self.asked.insert(self.next, op.clone());
        Event::Keys(self.next, op)
    }

    /// Who waits for an answer does not get one.
    pub fn server_gone(&mut self) {
        self.asked.clear();
    }
}

fn place(key: &Blob) -> Bytes {
    [&PREFIX[..], &key.0[..]].concat().into()
}

impl World {
    pub fn operators_work(&mut self) {
        if self.server.is_some() && self.operators.random.one_in(6) {
            let event = self.operators.draw();
            self.with_server(vec![event]);
        }
    }

    pub fn key_answered(&mut self, id: u64, answer: Result<KeyReply, KeyRefused>) {
        let Some(op) = self.operators.asked.remove(&id) else { panic!("answered twice: {id}") };
        let reply = match answer {
            Ok(reply) => reply,
            Err(KeyRefused::SpaceFull(_)) => {
                self.operators.done[2] += 1;
                return;
            }
            Err(KeyRefused::Replaying | KeyRefused::DiskFull) => return,
            Err(refused) => panic!("{op:?}: {refused}"),
        };
        let version = Version(reply.version());
        let Some(server) = &self.server else { panic!("an answer of no server") };
        let durable = server.engine.durable();
        let safe = self.record.lock().unwrap().iter().all(|c| c.version > version || c.version <= durable);
        assert!(safe, "{op:?} was answered at {version} and rests on what is not durable");
        match (&op, reply) {
            (KeyOp::Set { key, value }, KeyReply::Committed { .. }) => {
                self.operators.promised.push((version, key.0.clone(), Some(value.0.clone())));
                self.operators.done[0] += 1;
            }
            (KeyOp::Clear { key }, KeyReply::Committed { .. }) => {
                self.operators.promised.push((version, key.0.clone(), None));
                self.operators.done[0] += 1;
            }
            (KeyOp::Get { key }, KeyReply::Value { value, .. }) => {
                let found = self.pairs_at(version).remove(&key.0);
                assert_eq!(value.map(|value| value.0), found, "{key:?} at {version}");
                self.operators.done[1] += 1;
            }
            (KeyOp::GetRange { begin, .. }, KeyReply::Range { pairs, more, .. }) => {
                let found: Vec<_> = pairs.into_iter().map(|pair| (pair.key.0, pair.value.0)).collect();
                let expected: Vec<_> = self.pairs_at(version).split_off(&begin.0).into_iter().collect();
                assert!(!more && found == expected, "{found:?} is not {expected:?} at {version}");
                self.operators.done[1] += 1;
            }
            (op, reply) => panic!("{op:?} was answered with {reply:?}"),
        }
        self.check_promises();
    }

    /// The pairs that the commits up to `version` make; values as they were set, by what was promised or read.
    fn pairs_at(&self, version: Version) -> BTreeMap<Bytes, Bytes> {
        let mut pairs = BTreeMap::new();
        for commit in self.record.lock().unwrap().iter().filter(|commit| commit.version <= version) {
            for change in &commit.batch.0 {
                match change {
                    Change::Put(place, row) if place.starts_with(&PREFIX) => {
                        pairs.insert(place.slice(PREFIX.len()..), value_in(row));
                    }
                    Change::Delete(place) if place.starts_with(&PREFIX) => {
                        pairs.remove(&place[PREFIX.len()..]);
                    }
                    _ => {}
                }
            }
        }
        pairs
    }

    /// Every change that was answered as committed is in the log, at its version.
    pub fn check_promises(&self) {
        let record = self.record.lock().unwrap();
        for (version, key, value) in &self.operators.promised {
            let at = record.binary_search_by_key(version, |commit| commit.version);
            let commit =
                at.map(|at| &record[at]).unwrap_or_else(|_| panic!("the commit at {version} is lost"));
            let place = place(&Blob(key.clone()));
            let kept = commit.batch.0.iter().any(|change| match (change, value) {
                (Change::Put(of, row), Some(value)) => *of == place && value_in(row) == value,
                (Change::Delete(of), None) => *of == place,
                _ => false,
            });
            assert!(kept, "the commit at {version} is not the one of {key:?}");
        }
    }

    pub fn finish_keys(&mut self) {
        self.operators.random = Random::new(1);
        for _ in 0..20 {
            let event = self.operators.draw();
            self.with_server(vec![event]);
            self.sync();
        }
        assert!(self.operators.asked.is_empty(), "not answered: {:?}", self.operators.asked);
        self.check_promises();
        let Some(server) = &self.server else { panic!("no server in the end") };
        let faults = verify_keys(&SharedView(server.engine.view())).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

/// The value in a row of a pair: behind format, flags and version stand its length and its bytes.
fn value_in(row: &Bytes) -> Bytes {
    let (flags, since, value): (u16, Version, Bytes) = postcard::from_bytes(&row[1..]).unwrap();
    assert!(row[0] == 1 && flags == 0 && since > Version::ZERO);
    value
}
