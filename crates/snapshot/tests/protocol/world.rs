//! The world around the protocol: see `main.rs`.

mod check;
mod member;

use crate::model::{Image, Op, Random, Store};
use chronofs_snapshot::protocol::State;
use chronofs_snapshot::protocol::{
    Attempt, Coordinator, Do, Ended, Fault, Held, Intent, Member, Node, Now, Order, Poll, Record, Request,
    Step, Told, What,
};
use chronofs_snapshot::{Role, SnapshotCode, SnapshotUid};
use std::collections::{BTreeMap, BTreeSet};

const START_NS: u64 = 1_800_000_000_000_000_000;
/// The one that images the coordinator's own database.
const ADMIN: usize = 0;
/// The one of whose log the log server keeps a copy.
const COPIED: &str = "meta-0";

/// A fault in the protocol or around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutant {
    OrderSwapped,
    HoldNotTaken,
    EpochNotChecked,
    StragglerNotFenced,
    LeaseEndNotNoticed,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wrong::Set(what) => write!(f, "a set is wrong: {what}"),
            Wrong::Stuck(what) => write!(f, "stuck: {what}"),
        }
    }
}

enum Event {
    Work(usize),
    Poll(usize),
    /// To the coordinator.
    Asked(usize, Poll),
    /// To a server.
    Answered(usize, u64, Vec<Order>),
    /// A step of this life of a server ends.
    Ended(usize, u64, Box<Intent>, Step),
    Start(usize),
    /// A snapshot has gone on for so long that its client gives up.
    Impatient(SnapshotUid),
    /// The log is let go, and the member does not know.
    HoldEnds(usize, u64),
    Tick,
    Trouble,
    Up(usize, u64),
    CoordinatorUp,
}

struct Server {
    id: String,
    roles: Vec<Role>,
    /// Another server has taken its store over.
    superseded: bool,
    up: bool,
    /// Which start this is.
    life: u64,
    member: Member,
    store: Store,
    holds: BTreeSet<u64>,
    images: BTreeMap<(u64, Role), (Image, bool)>,
    running: BTreeSet<(u64, Role)>,
    /// What is kept for sets, also over restarts.
    kept: BTreeSet<Attempt>,
    complete: BTreeSet<Attempt>,
}

pub(crate) struct World {
    random: Random,
    mutant: Option<Mutant>,
    /// Stores are made of real parts, which cost more.
    real: bool,
    now_ms: u64,
    version: u64,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    saved: BTreeMap<SnapshotUid, Record>,
    coordinator: Option<Coordinator>,
    servers: Vec<Server>,
    /// What programs made.
    out: BTreeMap<(SnapshotUid, String, Role), (u64, Image)>,
    /// The last version of each store when a snapshot began.
    begun: BTreeMap<SnapshotUid, BTreeMap<String, u64>>,
    quiet: bool,
    seen: BTreeMap<String, u64>,
    digest: u64,
    wrong: Option<Wrong>,
}

/// What was found.
#[derive(Clone, Debug)]
pub(crate) enum Wrong {
    /// A set is not what it was said to be.
    Set(String),
    /// Something does not go on, or stays.
    Stuck(String),
}

impl World {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, real: bool) -> World {
        let mut world = World {
            random: Random(seed),
            mutant,
            real,
            now_ms: 0,
            version: 0,
            events: BTreeMap::new(),
            sequence: 0,
            saved: BTreeMap::new(),
            coordinator: Some(Coordinator::new(Vec::new(), Now { steady_ms: 0, wall_ns: START_NS }).0),
            servers: Vec::new(),
            out: BTreeMap::new(),
            begun: BTreeMap::new(),
            quiet: false,
            seen: BTreeMap::new(),
            digest: seed,
            wrong: None,
        };
        world.add_server("admin", vec![Role::Coord], 1, Store::new(None));
        for n in 0..1 + world.random.below(3) {
            let store = Store::new(real.then_some(seed ^ n));
            world.add_server(&format!("meta-{n}"), vec![Role::Storage, Role::Tlog], 1, store);
        }
        if world.random.one_in(2) {
            world.add_server("far", vec![Role::Tlog], 1, Store::new(None));
        }
        world
    }

    pub(crate) fn seen(&self) -> impl Iterator<Item = (String, u64)> {
        self.seen.clone().into_iter()
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    fn add_server(&mut self, id: &str, roles: Vec<Role>, epoch: u64, store: Store) {
        let n = self.servers.len();
        self.servers.push(Server {
            id: id.to_owned(),
            roles,
            superseded: false,
            up: true,
            life: 0,
            member: Member::new(epoch),
            store,
            holds: BTreeSet::new(),
            images: BTreeMap::new(),
            running: BTreeSet::new(),
            kept: BTreeSet::new(),
            complete: BTreeSet::new(),
        });
        self.after(1, Event::Work(n));
        self.after(2, Event::Poll(n));
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ms + ms, self.sequence), event);
    }

    fn now(&self) -> Now {
        Now { steady_ms: self.now_ms, wall_ns: START_NS + self.now_ms * 1_000_000 }
    }

    fn note(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
        let hash = what.bytes().fold(self.now_ms, |hash, byte| hash.rotate_left(5) ^ u64::from(byte));
        self.digest = (self.digest ^ hash).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
    }

    /// What happened, and in which phase of a snapshot.
    fn note_in_phase(&mut self, what: &str) {
        let phase = self.coordinator.as_ref().and_then(Coordinator::under_way).map(|(_, phase, _)| phase);
        self.note(&phase.map_or_else(|| what.to_owned(), |phase| format!("{what} in {phase:?}")));
    }

    /// How long something takes: mostly moments, at times minutes.
    fn delay(&mut self) -> u64 {
        let most = match self.random.below(20) {
            _ if self.quiet => 50,
            0 => 150_000,
            1..4 => 25_000,
            _ => 200,
        };
        self.random.below(most)
    }

    /// Everything, with faults and then without; an error says what was wrong.
    pub(crate) fn run(&mut self) -> Result<(), Wrong> {
        let snapshots = 1 + self.random.below(4) as usize;
        let mut at = 0;
        for n in 0..snapshots {
            at += self.random.below(60_000);
            self.after(at, Event::Start(n));
        }
        self.after(1, Event::Tick);
        let trouble = self.random.below(40_000);
        self.after(trouble, Event::Trouble);
        self.run_until(at + 200_000)?;
        self.calm()?;
        let begun = self.now_ms;
        let uid = self.uid(99);
        if let Some(running) = self.saved.values().find(|record| record.state == State::Running) {
            let uid = running.intent.attempt.uid.clone();
            let now = self.now();
            let aborted = self.coordinator.as_mut().and_then(|coordinator| coordinator.abort(now, &uid));
            self.save(aborted);
        }
        self.start(&uid);
        loop {
            self.run_until(self.now_ms + 100)?;
            let Some(record) = self.saved.get(&uid) else {
                return Err(Wrong::Stuck("the last snapshot did not begin".to_owned()));
            };
            match record.state {
                State::Complete => break,
                State::Running if self.now_ms < begun + 20_000 => {}
                _ => {
                    let age = self.now_ms - begun;
                    return Err(Wrong::Stuck(format!("the last snapshot is {record:?} after {age} ms")));
                }
            }
        }
        self.run_until(self.now_ms + 10_000)?;
        self.nothing_is_left().map_err(Wrong::Stuck)
    }

    /// No more faults; everybody is up, and what is on its way arrives.
    fn calm(&mut self) -> Result<(), Wrong> {
        self.quiet = true;
        if self.coordinator.is_none() {
            self.coordinator_up();
        }
        for n in 0..self.servers.len() {
            if !self.servers[n].up {
                let life = self.servers[n].life;
                self.server_up(n, life);
            }
        }
        // The longest that anything was delayed by.
        self.run_until(self.now_ms + 160_000)
    }

    fn run_until(&mut self, until: u64) -> Result<(), Wrong> {
        while let Some((&(at, n), _)) = self.events.first_key_value() {
            if at > until {
                break;
            }
            self.now_ms = at;
            let event = self.events.remove(&(at, n)).unwrap();
            self.happen(event);
            if let Some(wrong) = self.wrong.take() {
                return Err(wrong);
            }
        }
        self.now_ms = until;
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Work(n) => self.work(n),
            Event::Poll(n) => self.ask(n),
            Event::Asked(n, poll) => self.asked(n, poll),
            Event::Answered(n, life, orders) => self.answered(n, life, orders),
            Event::Ended(n, life, intent, step) => self.ended(n, life, &intent, step),
            Event::Start(n) => {
                let uid = self.uid(n as u8);
                self.start(&uid);
            }
            Event::Impatient(uid) => self.abort(&uid),
            Event::Tick => {
                let now = self.now();
                let failed = self.coordinator.as_mut().and_then(|coordinator| coordinator.tick(now));
                self.save(failed);
                self.after(1000, Event::Tick);
            }
            Event::HoldEnds(n, number) => drop(self.servers[n].holds.remove(&number)),
            Event::Trouble => self.trouble(),
            Event::Up(n, life) => self.server_up(n, life),
            Event::CoordinatorUp => self.coordinator_up(),
        }
    }

    // ---- stores

    fn work(&mut self, n: usize) {
        let next = 50 + self.random.below(800);
        let busy = self.coordinator.as_ref().is_some_and(|coordinator| coordinator.under_way().is_some());
        let times = match (self.real, busy) {
            (false, _) => 1,
            (true, true) => 6,
            // What happens now is in no image.
            (true, false) => 60,
        };
        self.after(next * times, Event::Work(n));
        let server = &mut self.servers[n];
        let lease_runs = self.mutant != Some(Mutant::LeaseEndNotNoticed);
        let todo = if lease_runs { server.member.tick(self.now_ms) } else { Vec::new() };
        if server.up && n != ADMIN {
            server.store.hold(!server.holds.is_empty());
            if !server.superseded {
                self.version += 1;
                server.store.commit(self.version, Op::random(&mut self.random));
            }
            match self.random.below(4) {
                0 => server.store.sync(),
                1 => server.store.flush(),
                2 => server.store.drop_log(!server.holds.is_empty()),
                _ => {}
            }
        }
        self.carry_out(n, todo);
    }

    // ---- messages

    fn ask(&mut self, n: usize) {
        let server = &self.servers[n];
        let busy = server.member.attempt().is_some();
        let poll = Poll {
            node: server.id.clone(),
            epoch: server.member.epoch(),
            holding: server.holding(),
            doing: server.member.doing(),
            said: server.member.said(),
            readers: Some(BTreeMap::new()),
        };
        if server.up {
            self.send(|poll| Event::Asked(n, poll), poll);
        }
        let next = match busy {
            _ if self.quiet => 200,
            true => 400,
            false => 2_000,
        };
        self.after(next, Event::Poll(n));
    }

    fn send<T: Clone>(&mut self, event: impl Fn(T) -> Event, message: T) {
        if !self.quiet && self.random.one_in(20) {
            return;
        }
        if !self.quiet && self.random.one_in(12) {
            let late = self.delay();
            self.after(1 + late, event(message.clone()));
        }
        let delay = if self.random.one_in(15) { self.delay() } else { self.random.below(20) };
        self.after(1 + delay, event(message));
    }

    fn asked(&mut self, n: usize, mut poll: Poll) {
        let now = self.now();
        let running = self.saved.values().find(|record| record.state == State::Running);
        let running = running.map(|record| record.intent.clone());
        if let Some(intent) = running {
            if let (Some(Mutant::EpochNotChecked), Some(node)) = (self.mutant, intent.node(&poll.node)) {
                poll.epoch = node.epoch;
            }
            if self.mutant == Some(Mutant::StragglerNotFenced) {
                poll.said.iter_mut().for_each(|said| said.number = intent.attempt.number);
            }
        }
        let Some(coordinator) = &mut self.coordinator else { return };
        let (orders, save) = coordinator.poll(now, &poll);
        self.save(save);
        let life = self.servers[n].life;
        if !orders.is_empty() {
            self.send(|orders| Event::Answered(n, life, orders), orders);
        }
    }

    fn uid(&self, n: u8) -> SnapshotUid {
        SnapshotUid::from_bytes([n + 1; 16])
    }

    fn start(&mut self, uid: &SnapshotUid) {
        let nodes: Vec<Node> = self.nodes();
        let lasts = self.lasts();
        let now = self.now();
        let Some(coordinator) = &mut self.coordinator else { return };
        let request = Request {
            uid: uid.clone(),
            program: "/bin/snap".to_owned(),
            arguments: Vec::new(),
            keep_until_ns: None,
            run_ms: 60_000,
            // Of a server that is up a question comes through every few seconds; one that is down may be for longer.
            silent_ms: 45_000,
            cluster: "cluster".to_owned(),
        };
        match coordinator.start(now, request.clone(), nodes.clone()) {
            Ok((record, new)) => {
                assert!(new);
                self.begun.insert(uid.clone(), lasts);
                self.save(Some(record));
                let coordinator = self.coordinator.as_mut().unwrap();
                let again = coordinator.start(now, request.clone(), nodes.clone()).map(|(_, new)| new);
                let other = Request { program: "/bin/other".to_owned(), ..request };
                let duplicate = coordinator.start(now, other, nodes).map_err(|refusal| refusal.code);
                if again != Ok(false) || duplicate.err() != Some(SnapshotCode::Duplicate) {
                    self.wrong = Some(Wrong::Stuck("the same UID again is answered wrong".to_owned()));
                }
                if !self.quiet && self.random.one_in(3) {
                    let patience = self.random.below(90_000);
                    self.after(patience, Event::Impatient(uid.clone()));
                }
            }
            Err(refusal) => self.note(&refusal.code.number().to_string()),
        }
    }

    fn abort(&mut self, uid: &SnapshotUid) {
        let under_way = self.coordinator.as_ref().and_then(Coordinator::under_way);
        if under_way.is_some_and(|(of, ..)| of == uid) {
            self.note_in_phase("a client leaves");
        }
        let now = self.now();
        let aborted = self.coordinator.as_mut().and_then(|coordinator| coordinator.abort(now, uid));
        self.save(aborted);
    }

    /// What the configuration knows: of each store the newest server.
    fn nodes(&self) -> Vec<Node> {
        let owners = self.servers.iter().filter(|server| !server.superseded);
        let node = |server: &Server| Node {
            id: server.id.clone(),
            name: server.id.clone(),
            address: format!("{}:1", server.id),
            epoch: server.member.epoch(),
            roles: server.roles.clone(),
            copies: if server.id == "far" { vec![COPIED.to_owned()] } else { Vec::new() },
        };
        owners.map(node).collect()
    }

    fn lasts(&self) -> BTreeMap<String, u64> {
        let owners = self.servers.iter().filter(|server| !server.superseded);
        owners.map(|server| (server.id.clone(), server.store.last())).collect()
    }

    // ---- faults

    fn trouble(&mut self) {
        if self.quiet {
            return;
        }
        let next = self.random.below(90_000);
        self.after(next, Event::Trouble);
        let n = self.random.below(self.servers.len() as u64) as usize;
        match self.random.below(5) {
            0 if self.coordinator.is_some() => {
                self.note_in_phase("the coordinator goes down");
                self.coordinator = None;
                let back = self.random.below(30_000);
                self.after(back, Event::CoordinatorUp);
            }
            1 if n != ADMIN && !self.servers[n].superseded => {
                self.note("a store is taken over");
                let mut store = self.servers[n].store.clone();
                // By another machine, with what was durable here. The old one does not know.
                store.lose_power();
                self.servers[n].superseded = true;
                let (id, roles) = (self.servers[n].id.clone(), self.servers[n].roles.clone());
                let epoch = self.servers[n].member.epoch() + 1;
                self.add_server(&id, roles, epoch, store);
                self.tell_members();
            }
            what if self.servers[n].up => {
                self.note_in_phase(if what == 2 { "a server loses power" } else { "a server is killed" });
                let server = &mut self.servers[n];
                (server.up, server.life) = (false, server.life + 1);
                if what == 2 {
                    server.store.lose_power();
                }
                let (back, life) = (self.random.below(60_000), self.servers[n].life);
                self.after(back, Event::Up(n, life));
            }
            _ => {}
        }
    }

    fn server_up(&mut self, n: usize, life: u64) {
        let server = &mut self.servers[n];
        if server.up || server.life != life {
            return;
        }
        // Who was superseded learns that it is, and serves nothing any more; here it stays as it was.
        let epoch = server.member.epoch() + u64::from(!server.superseded);
        server.up = true;
        server.store.restart();
        server.member = Member::new(epoch);
        server.holds.clear();
        server.running.clear();
        server.images.clear();
        server.complete.clear();
        self.tell_members();
    }

    fn tell_members(&mut self) {
        if self.mutant == Some(Mutant::EpochNotChecked) {
            return;
        }
        let (now, nodes) = (self.now(), self.nodes());
        let failed = self.coordinator.as_mut().and_then(|coordinator| coordinator.members(now, &nodes));
        self.save(failed);
    }

    fn coordinator_up(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        let (coordinator, closed) = Coordinator::new(self.saved.values().cloned().collect(), self.now());
        self.coordinator = Some(coordinator);
        closed.into_iter().for_each(|record| self.save(Some(record)));
    }

    // ---- what must hold

    /// Nothing happens between deciding and saving but a crash, which is one before deciding.
    fn save(&mut self, record: Option<Record>) {
        let Some(record) = record else { return };
        match record.state {
            State::Complete => {
                self.note("complete");
                self.wrong = self.wrong.take().or(self.check(&record).err().map(Wrong::Set));
            }
            State::Failed => self.note(&record.code.unwrap().number().to_string()),
            State::Aborted => self.note("aborted"),
            _ => {}
        }
        self.saved.insert(record.intent.attempt.uid.clone(), record);
    }
}
