//! At some time a backup is made of what there is. In the end the server is lost, and put back from it in its place, more than
//! once: what the lost servers gave numbers to is never meant by anything else, all that the backup held is there, and nothing
//! goes until somebody accepts that.

use super::{MS, World};
use crate::common;
use crate::sim::client::{FromServer, SimClient};
use chronofs_core::{Ino, Retention, SessionId, Version, VolumeIndex};
use chronofs_engine::memory::Memory;
use chronofs_engine::sim::Random;
use chronofs_engine::{Batch, Change, Commit, Engine, Reads};
use chronofs_meta::core::Core;
use chronofs_meta::executor::run_read;
use chronofs_meta::machine::tag::{self, Tag};
use chronofs_meta::machine::{Call, Config, ConnId, Effect, Event, Found, Machine, PinsRead, SharedView};
use chronofs_namespace::{HeldFrom, held_slices, restored, rows};
use chronofs_wire::message::{ToClient, ToServer};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const INDEX: VolumeIndex = VolumeIndex(1);
/// So often a server is lost again.
const TIMES: u64 = 2;
const ROUNDS: usize = 40;

/// What a backup holds.
pub struct Backup {
    rows: Batch,
    cut: Version,
}

/// A server that was put back, and who works with it.
struct InPlace {
    engine: Arc<Memory>,
    core: Core,
    clients: Vec<SimClient>,
    now_ns: u64,
}

impl InPlace {
    fn start(backup: &Backup, draw: [u64; 2], now_ns: u64, clients: Vec<SimClient>) -> InPlace {
        let (engine, tag) = (Arc::new(Memory::default()), tag::encode(&Tag::System));
        let batch = backup.rows.clone();
        engine.apply(vec![Commit { version: backup.cut, tag: tag.clone(), batch }]).unwrap();
        let version = backup.cut.next(now_ns);
        let batch = restored(&SharedView(engine.view()), backup.cut, version, draw).unwrap();
        engine.apply(vec![Commit { version, tag, batch }]).unwrap();
        let config = Config {
            boot: now_ns,
            slice_life_ms: 200,
            pack_bytes: 400,
            pack_after_ms: 300,
            restored: Some("c5".to_owned()),
            ..Config::default()
        };
        let found = Found { last_commit: engine.applied(), ..Found::default() };
        let reads = SharedView(engine.view());
        let machine = Machine::new(config, &reads, engine.applied(), found, now_ns.into()).unwrap();
        let core = Core { machine, engine: engine.clone() };
        InPlace { engine, core, clients, now_ns }
    }

    fn run(&mut self, events: Vec<Event>) {
        let mut effects = Vec::new();
        self.core.run(self.now_ns, events, &mut |group| effects.extend(group.effects)).unwrap();
        for effect in effects {
            let (conn, told) = match effect {
                Effect::Send(conn, frame) => (conn, FromServer::Frame(frame)),
                Effect::Answer(conn, answer) => (conn, FromServer::Answer(answer)),
                Effect::Read(job) => {
                    let view = self.engine.view();
                    let (version, id, durable) = (view.version(), job.id, Version::ZERO);
                    let result = run_read(&job, view);
                    (job.conn, FromServer::Frame(ToClient::Return { id, version, durable, result }))
                }
                Effect::Delete(job) => panic!("nobody has accepted the restore: {job:?}"),
                _ => continue,
            };
            if let Some(client) = self.clients.iter_mut().find(|client| client.conn == Some(conn)) {
                client.inbox.push_back(told);
            }
        }
    }

    /// Everybody does something, and time passes.
    fn round(&mut self, random: &mut Random) {
        self.now_ns += 100 * MS;
        for n in 0..self.clients.len() {
            if self.clients[n].conn.is_none() {
                let conn = ConnId(1000 + n as u64);
                self.clients[n].conn = Some(conn);
                let hello = Box::new(self.clients[n].hello());
                self.run(vec![Event::Hello(conn, hello)]);
            }
            self.clients[n].act(random);
            let conn = self.clients[n].conn;
            let sent: Vec<ToServer> = self.clients[n].outbox.drain(..).collect();
            for (frame, conn) in sent.into_iter().zip(conn.into_iter().cycle()) {
                self.run(vec![match frame {
                    ToServer::Call { id, acked, caller, request } => {
                        Event::Call(conn, Call { id, acked, caller, request })
                    }
                    frame => Event::Frame(conn, frame),
                }]);
            }
        }
        let durable = self.engine.sync().unwrap();
        let pins = PinsRead { volume: common::VOLUME, began_ns: self.now_ns, found: Ok(Vec::new()) };
        self.run(vec![Event::Pins(Box::new(pins)), Event::Durable(durable), Event::Tick]);
        for client in &mut self.clients {
            while !client.inbox.is_empty() {
                client.take();
            }
        }
    }

    fn is_there(&self, ino: Ino) -> bool {
        let key = rows::INODE.live_key(INDEX, &ino.0.to_be_bytes());
        SharedView(self.engine.view()).get(&key).unwrap().is_some()
    }

    /// What rows of instants up to `cut` name, whatever came after.
    fn held(&self, cut: Version) -> BTreeSet<String> {
        let (mut all, mut from) = (BTreeSet::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let (page, next) = held_slices(&SharedView(self.engine.view()), INDEX, &start, 64).unwrap();
            let of_then = page.into_iter().filter(|held| held.since <= cut);
            all.extend(of_then.map(|held| {
                let seal = held.slice.place.seal().cloned();
                format!("{} {:?} {:?} {seal:?}", held.ino, held.key, held.since)
            }));
            from = next;
        }
        all
    }
}

impl World {
    /// A backup is made, now and then; the last one counts.
    pub fn back_up(&mut self) {
        if !self.place_random.one_in(25) {
            return;
        }
        let Some(server) = &self.server else { return };
        let volume = server.core.machine.volume(INDEX);
        if server.core.machine.figures().recovering || !volume.is_some_and(|volume| volume.row.is_live()) {
            return;
        }
        let view = server.core.engine.view();
        let rows = SharedView(view.clone()).scan(&[], &[0xff; 64], usize::MAX).unwrap();
        let rows = Batch(rows.into_iter().map(|(key, row)| Change::Put(key, row)).collect());
        self.backup = Some(Backup { rows, cut: view.version() });
    }

    /// The server is lost, and put back from the backup in its place.
    pub fn finish_in_place(&mut self) {
        let Some(backup) = self.backup.take() else { return };
        let mut given: BTreeSet<Ino> = self.made.keys().copied().collect();
        let mut sessions: BTreeSet<SessionId> = self.ever.iter().map(|(session, ..)| *session).collect();
        let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
        assignment.volumes[0].spec.retention = Retention::Forever;
        for n in 0..TIMES {
            self.now_ns += 1000 * MS;
            // Often the same incarnation is drawn as by the one before.
            let draw = [self.place_random.below(2), self.place_random.number()];
            let store = Arc::new(Mutex::new(self.store.lock().unwrap().copy()));
            let new = |c| SimClient::new(u128::from(1000 + 10 * n + c), false, false, false, store.clone());
            let mut server = InPlace::start(&backup, draw, self.now_ns, (0..2).map(new).collect());
            server.run(vec![Event::Assignment(Box::new(assignment.clone()))]);
            let there: BTreeSet<Ino> = given.iter().copied().filter(|ino| server.is_there(*ino)).collect();
            let held = server.held(backup.cut);
            for _ in 0..ROUNDS {
                server.round(&mut self.place_random);
            }
            assert_eq!(server.held(backup.cut), held, "what the backup held is not there any more");
            for client in &server.clients {
                let session = client.session.expect("it is welcomed");
                assert!(sessions.insert(session), "{session:?} was given before the server was lost");
                let made = client.creates.values().flatten().filter(|ino| !there.contains(ino));
                for ino in made.copied().collect::<BTreeSet<_>>() {
                    // Two clients may have found the same new file.
                    assert!(!given.contains(&ino), "{ino} was given before the server was lost");
                }
            }
            let made = server.clients.iter().flat_map(|client| client.creates.values().flatten());
            let before = given.len();
            given.extend(made.copied());
            self.made_in_place += given.len() - before;
            let faults = chronofs_namespace::verify(&SharedView(server.engine.view())).unwrap();
            assert!(faults.is_empty(), "{faults:?}");
        }
    }
}
