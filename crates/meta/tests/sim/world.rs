//! The world of the simulation: time, disk, server, clients, and what must hold.

mod copied;
mod in_place;
mod keys;
mod leave;
mod past;
mod pins;
mod store;

use super::client::{FromServer, SimClient};
use super::engine::{Record, RecordingEngine, assert_is_model};
use super::store::SharedStore;
use crate::common;
use chronofs_blocks::Pin;
use chronofs_core::{Ino, Retention, SessionId, Version};
use chronofs_engine::embedded::MemMedium;
use chronofs_engine::sim::{Fault, Random, SimDisk};
use chronofs_engine::{Commit, Engine};
use chronofs_meta::core::Core;
use chronofs_meta::executor::run_read;
use chronofs_meta::machine::tag::{self, Brief, Tag};
use chronofs_meta::machine::{
    Call, Config, ConnId, Effect, Event, Found, Machine, Now, PinsRead, SharedView,
};
use chronofs_wire::message::{ToClient, ToServer};
use in_place::Backup;
use keys::Operators;
use leave::Fate;
use past::Lease;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const START_NS: u64 = 1_800_000_000_000_000_000;
const MS: u64 = 1_000_000;

struct Server {
    core: Core,
    engine: Arc<RecordingEngine>,
}

pub struct World {
    random: Random,
    now_ns: u64,
    disk: SimDisk,
    medium: MemMedium,
    record: Record,
    server: Option<Server>,
    maybe_lost: bool,
    boots: u64,
    next_conn: u64,
    clients: Vec<SimClient>,
    /// The last commit that a sync of the engine vouched for.
    durable: Version,
    /// Calls with the versions they were committed at, lost or not. One that comes again after its commit was lost may
    /// find nothing to do.
    ever: BTreeSet<(SessionId, u64, Version)>,
    /// Inodes with the call that made each first, lost or not.
    made: BTreeMap<Ino, (SessionId, u64)>,
    /// How long a server waits for what was lost: in some worlds so short that clients come late.
    window_ms: u32,
    /// The server has written a mark since it started.
    marked: bool,
    /// Calls that were replayed after the window, and after a mark.
    pub late_after_mark: usize,
    /// For what has to do with the past alone.
    past_random: Random,
    retention: Retention,
    /// What the admin server says of the volume.
    fate: Fate,
    leases: Vec<Lease>,
    pub store: SharedStore,
    /// Clients write a lot, and what nobody names goes soon.
    busy: bool,
    /// Objects that were deleted while things failed.
    pub deleted_meanwhile: usize,
    /// Objects of packed slices that are needed in the end.
    pub packs_in_the_end: usize,
    /// Objects that a clone has copied.
    pub copied_in_the_end: usize,
    /// Slices that lie in other objects than they were put in.
    pub repacked_in_the_end: usize,
    store_random: Random,
    /// Replays take several groups, and things fail between them.
    small_groups: bool,
    /// Starts that found replays applied in part.
    pub unfinished: usize,
    pub operators: Operators,
    /// How far the wall clock is ahead of what time it is.
    ahead_ns: u64,
    /// For pins of lost timelines, while there may be any; and one that lies in the store.
    strays: Option<Random>,
    stray: Option<Pin>,
    /// Events decided while one of an instant lay there that the commits of the start have passed.
    pub starts_on_old_copies: usize,
    /// For backups, and what is done with them.
    place_random: Random,
    backup: Option<Backup>,
    /// Inodes that were made on servers which were put back in place.
    pub made_in_place: usize,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let private = random.one_in(2);
        let window_ms = if random.one_in(3) { 50 } else { 10_000 };
        let (store, mut store_random) = (SharedStore::default(), Random::new(seed.rotate_left(17) ^ 0x5704e));
        let busy = window_ms >= 1000 && store_random.one_in(2);
        let new = |n| SimClient::new(u128::from(n) + 1, private, window_ms < 1000, busy, store.clone());
        let clients = (0..1 + random.below(3)).map(new).collect();
        World {
            store,
            deleted_meanwhile: 0,
            packs_in_the_end: 0,
            copied_in_the_end: 0,
            repacked_in_the_end: 0,
            busy,
            store_random,
            disk: SimDisk::new(random.number()),
            random,
            now_ns: START_NS,
            medium: MemMedium::default(),
            record: Record::default(),
            server: None,
            maybe_lost: false,
            boots: 0,
            next_conn: 1,
            clients,
            durable: Version::ZERO,
            ever: BTreeSet::new(),
            made: BTreeMap::new(),
            window_ms,
            marked: false,
            late_after_mark: 0,
            past_random: Random::new(!seed),
            retention: Retention::Forever,
            fate: Fate::Lives,
            leases: Vec::new(),
            small_groups: Random::new(seed.rotate_left(29) ^ 0x6709).one_in(2),
            unfinished: 0,
            operators: Operators::new(seed.rotate_left(41) ^ 0x6e75),
            ahead_ns: 0,
            strays: Some(Random::new(seed.rotate_left(53) ^ 0x57a7)),
            stray: None,
            starts_on_old_copies: 0,
            place_random: Random::new(seed.rotate_left(11) ^ 0x1eaf),
            backup: None,
            made_in_place: 0,
        }
    }

    pub fn run(&mut self) {
        self.draw_retention();
        self.restart();
        let steps = (60 + self.random.below(200)) * if self.busy { 4 } else { 1 };
        for _ in 0..steps {
            self.now_ns += self.random.below(5 * MS);
            let n = self.random.below(self.clients.len() as u64) as usize;
            match self.random.below(100) {
                0..=29 => self.clients[n].act(&mut self.random),
                30..=59 => self.deliver_to_server(),
                60..=84 => self.clients[n].take(),
                85..=88 => self.connect(n),
                89 => self.drop_connection(n),
                90..=93 => self.sync(),
                95 if self.looks_back() => self.past(),
                94 | 95 => self.tick(),
                96 => self.maintain(),
                97 => self.fault(),
                98 => self.kill(),
                _ => self.cut_power(),
            }
            if self.busy && self.store_random.one_in(6) {
                self.now_ns += self.store_random.below(60 * MS);
                self.with_server(vec![Event::Tick]);
                self.sync();
            }
            if self.store_random.one_in(if self.busy { 3 } else { 8 }) {
                self.store_works();
            }
            self.operators_work();
            self.back_up();
            if self.server.is_none() && self.random.one_in(3) {
                self.restart();
            }
        }
    }

    fn with_server(&mut self, mut events: Vec<Event>) {
        let Some(server) = &mut self.server else { return };
        // Pins are read now and then, mostly.
        if matches!(events[..], [.., Event::Tick]) && !self.store_random.one_in(5) {
            let found = Ok(self.stray.iter().cloned().collect());
            let read = PinsRead { volume: common::VOLUME, began_ns: self.now_ns, found };
            events.insert(0, Event::Pins(Box::new(read)));
        }
        let mut decided = Vec::new();
        let now = Now { wall_ns: self.now_ns + self.ahead_ns, steady_ns: self.now_ns };
        let result = server.core.run(now, events, &mut |group| decided.push(group));
        let applied = server.engine.applied();
        match result {
            Ok(()) => {}
            // The process ends, as the real one does. What was given out before is out.
            Err(error) => {
                // A second full disk while the first is cleaned up after is one too many, too.
                let injected = self.disk.is_off() || error.to_string().contains("no storage space");
                assert!(injected, "the server ends: {error}");
                self.server = None;
            }
        }
        self.note_commits(applied);
        for effect in decided.into_iter().flat_map(|group| group.effects) {
            self.carry_out(effect);
        }
        if self.server.is_none() {
            self.server_gone();
        }
        self.check_stray();
    }

    /// Looks at what was committed before anybody hears of it. Of what was not applied nobody ever does.
    fn note_commits(&mut self, applied: Version) {
        for commit in self.record.lock().unwrap().iter().rev().take(300) {
            let Tag::Call { session, id, reply } = tag::decode(commit.version, &commit.tag).unwrap() else {
                continue;
            };
            self.ever.insert((session, id, commit.version));
            let of = |client: &&SimClient| client.session == Some(session);
            let create = self.clients.iter().find(of).and_then(|client| client.creates.get(&id));
            if let (Some(known), Brief::Attr(ino) | Brief::Opened(ino)) = (create, reply)
                && commit.version <= applied
            {
                let first = *self.made.entry(ino).or_insert((session, id));
                // Who found the file before it was lost may make it again, with its number.
                let again = first == (session, id) || *known == Some(ino);
                assert!(again, "{ino} of call {first:?} was given to call {id} of {session:?} too");
            }
        }
    }

    fn client_of(&mut self, conn: ConnId) -> Option<&mut SimClient> {
        self.clients.iter_mut().find(|client| client.conn == Some(conn))
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send(conn, frame) => {
                if let Some(client) = self.client_of(conn) {
                    client.inbox.push_back(FromServer::Frame(frame));
                }
            }
            Effect::Answer(conn, answer) => {
                self.past_answered(conn, &answer);
                if let Some(client) = self.client_of(conn) {
                    client.inbox.push_back(FromServer::Answer(answer));
                }
            }
            Effect::Close(conn) => {
                if let Some(client) = self.client_of(conn) {
                    client.disconnected();
                }
            }
            Effect::Read(job) => {
                let Some(server) = &self.server else { return };
                let view = server.core.engine.view();
                let version = view.version();
                let result = run_read(&job, view);
                let durable = Version::ZERO;
                let frame = ToClient::Return { id: job.id, version, durable, result };
                self.carry_out(Effect::Send(job.conn, frame));
            }
            Effect::SendSigned(conn, signed) => self.carry_out(Effect::Send(conn, signed.answer)),
            Effect::Mark(version) => {
                let Some(server) = &self.server else { return };
                self.marked = true;
                let done = server.core.engine.sync().and_then(|_| server.core.engine.mark(version));
                if done.is_err() {
                    self.server = None;
                }
            }
            Effect::Delete(job) => {
                assert_eq!(self.stray, None, "a lost timeline may need {job:?}");
                self.store.lock().unwrap().asked(job);
            }
            Effect::Pack(job) => {
                let Some(server) = &self.server else { return };
                let view = server.core.engine.view();
                self.store.lock().unwrap().pack(*job, view, &mut self.store_random);
            }
            Effect::Keyed(id, answer) => self.key_answered(id, answer),
            Effect::Object(_) | Effect::AskAdmin(_) | Effect::Hurry | Effect::Warn(_) => {}
        }
    }

    fn connect(&mut self, n: usize) {
        let conn = ConnId(self.next_conn);
        let client = &mut self.clients[n];
        if client.conn.is_some() || self.server.is_none() {
            return;
        }
        self.next_conn += 1;
        client.conn = Some(conn);
        client.inbox.clear();
        client.outbox.clear();
        let hello = Box::new(client.hello());
        self.with_server(vec![Event::Hello(conn, hello)]);
    }

    fn drop_connection(&mut self, n: usize) {
        let client = &mut self.clients[n];
        let Some(conn) = client.conn else { return };
        client.disconnected();
        // What had arrived is still read, sometimes.
        if self.random.one_in(2) {
            client.inbox.clear();
        } else {
            while !client.inbox.is_empty() {
                client.take();
            }
            client.disconnected();
        }
        self.with_server(vec![Event::Gone(conn)]);
    }

    fn deliver_to_server(&mut self) {
        let mut events = Vec::new();
        let serving = |server: &Server| !server.core.machine.figures().recovering;
        let late = self.marked && self.server.as_ref().is_some_and(serving);
        for client in &mut self.clients {
            let Some(conn) = client.conn else { continue };
            for _ in 0..self.random.below(6) {
                match client.outbox.pop_front() {
                    Some(ToServer::Call { id, acked, caller, request }) => {
                        events.push(Event::Call(conn, Call { id, acked, caller, request }));
                    }
                    Some(frame) => {
                        if let (ToServer::Replay { calls, .. }, true) = (&frame, late) {
                            self.late_after_mark += calls.len();
                        }
                        events.push(Event::Frame(conn, frame));
                    }
                    None => break,
                }
            }
        }
        self.with_server(events);
    }

    fn sync(&mut self) {
        let Some(server) = &self.server else { return };
        let recovering = server.core.machine.figures().recovering;
        match server.engine.sync() {
            Ok(version) => {
                // What was lost is applied again, and durable: only now the next start may think nothing is.
                self.maybe_lost &= recovering;
                let commits = self.record.lock().unwrap();
                let vouched = commits.iter().rev().find(|commit| commit.version <= version);
                self.durable = vouched.map_or(Version::ZERO, |commit| commit.version);
                drop(commits);
                self.with_server(vec![Event::Durable(version)]);
            }
            Err(_) => self.kill(),
        }
    }

    fn tick(&mut self) {
        let most_ms = if self.looks_back() && self.past_random.one_in(4) { 2000 } else { 300 };
        self.now_ns += self.random.below(most_ms * MS);
        self.with_server(vec![Event::Tick]);
    }

    fn past(&mut self) {
        match self.past_random.below(4) {
            0 | 1 => self.mount_past(),
            2 => self.unmount_past(),
            _ => self.check_past(),
        }
    }

    fn maintain(&mut self) {
        let Some(server) = &self.server else { return };
        let failed = server.engine.maintain().is_err();
        self.medium.complete_one();
        if failed {
            self.kill();
        }
    }

    fn fault(&mut self) {
        let fault = if self.random.one_in(2) { Fault::NoSpace } else { Fault::PowerCut };
        self.disk.fail_at(1 + self.random.below(6), fault);
    }

    /// The process is gone; the disk has what the kernel has.
    fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            // What it would still do at its end has no effect.
            let is_cut = self.disk.is_off();
            self.disk.power_off();
            drop(server);
            if !is_cut {
                self.disk.thaw();
            }
        }
        self.server_gone();
    }

    fn cut_power(&mut self) {
        self.disk.power_off();
        self.kill();
    }

    fn server_gone(&mut self) {
        self.operators.server_gone();
        for client in &mut self.clients {
            if self.random.one_in(2) {
                client.inbox.clear();
            }
            while !client.inbox.is_empty() {
                client.take();
            }
            client.disconnected();
        }
        self.past_server_gone();
        self.store.lock().unwrap().server_gone(&mut self.store_random);
        self.medium.crash();
        if self.disk.is_off() {
            self.disk.power_on();
            self.maybe_lost = true;
        }
    }

    fn restart(&mut self) {
        if self.server.is_some() {
            return;
        }
        self.now_ns += self.random.below(500 * MS);
        self.disk.clear_faults();
        self.boots += 1;
        let engine = match RecordingEngine::open(&self.disk, &self.medium, &self.record) {
            Ok(engine) => Arc::new(engine),
            Err(error) => panic!("the engine does not open: {error}"),
        };
        let last_commit = engine.last_commit();
        self.lose_timeline(last_commit);
        {
            let mut record = self.record.lock().unwrap();
            record.retain(|commit| commit.version <= last_commit);
            let survived = record.last().map_or(Version::ZERO, |commit| commit.version);
            assert_eq!(survived, last_commit, "a commit that nobody made survived");
            assert!(last_commit >= self.durable, "what was durable is lost");
            assert_is_model(&*engine.view(), &record);
        }
        self.check_durable();
        self.check_promises();
        let unfinished = |commit: &Commit| match tag::decode(commit.version, &commit.tag).unwrap() {
            Tag::Replays(unfinished) => Some(unfinished.is_some()),
            _ => None,
        };
        let found = self.record.lock().unwrap().iter().rev().find_map(unfinished);
        self.unfinished += usize::from(found == Some(true));
        self.marked = false;
        let config = Config {
            boot: self.boots,
            mark_after_commits: if self.window_ms < 1000 { 2 } else { 40 },
            replay_window_ms: if self.busy { 40_000 } else { self.window_ms },
            horizon_step_ms: 300,
            replay_group_bytes: if self.small_groups { 400 } else { Config::default().replay_group_bytes },
            slice_life_ms: if self.busy { 20 } else { 200 },
            pack_bytes: 400,
            key_bytes_max: keys::BYTES_MAX,
            pack_after_ms: if self.busy { 50 } else { 300 },
            ..Config::default()
        };
        let found = Found { recovered: engine.recovered(), maybe_lost: self.maybe_lost, last_commit };
        let reads = SharedView(engine.view());
        let machine = Machine::new(config, &reads, engine.applied(), found, self.now_ns.into()).unwrap();
        let core = Core { machine, engine: engine.clone() };
        self.server = Some(Server { core, engine });
        let assignment = self.assignment();
        self.with_server(vec![Event::Assignment(Box::new(assignment)), Event::Tick]);
        self.check_past();
        self.check_store();
    }

    /// What clients were told to be durable is there, at its version.
    fn check_durable(&self) {
        let commits = self.commits();
        let again = self.made_again();
        for client in &self.clients {
            let Some(session) = client.session else { continue };
            let told = client.durable.max(client.synced);
            for (&id, &version) in &client.acknowledged {
                if version <= told
                    && self.ever.contains(&(session, id, version))
                    && !client.parked.contains(&id)
                {
                    assert!(
                        commits.contains_key(&(session, id)) || again.contains(&(session, id)),
                        "call {id} of {session:?} was durable and is lost"
                    );
                }
            }
        }
    }

    /// Surviving commits of calls with how often they are there.
    fn commits(&self) -> BTreeMap<(SessionId, u64), u32> {
        let mut commits = BTreeMap::new();
        for commit in self.record.lock().unwrap().iter() {
            if let Tag::Call { session, id, .. } = tag::decode(commit.version, &commit.tag).unwrap() {
                *commits.entry((session, id)).or_default() += 1;
            }
        }
        commits
    }

    /// Creates whose files are there by the call of another, who had found them before they were lost and was back first.
    fn made_again(&self) -> BTreeSet<(SessionId, u64)> {
        let mut there = BTreeSet::new();
        for commit in self.record.lock().unwrap().iter() {
            if let Tag::Call { reply: Brief::Attr(ino) | Brief::Opened(ino), .. } =
                tag::decode(commit.version, &commit.tag).unwrap()
            {
                there.insert(ino);
            }
        }
        let of = |client: &SimClient| {
            let session = client.session;
            let here = |ino: &Option<Ino>| ino.is_some_and(|ino| there.contains(&ino));
            let creates = client.creates.iter().filter(move |(_, ino)| here(ino));
            creates.filter_map(move |(&id, _)| Some((session?, id))).collect::<Vec<_>>()
        };
        self.clients.iter().flat_map(of).collect()
    }

    /// Nothing fails any more: everybody comes back, everything is answered, and all is checked.
    pub fn finish(&mut self) {
        self.deleted_meanwhile = self.store.lock().unwrap().deleted;
        (self.strays, self.stray) = (None, None);
        self.disk.clear_faults();
        for _ in 0..400 {
            if self.server.is_none() {
                self.restart();
            }
            self.now_ns += 50 * MS;
            for n in 0..self.clients.len() {
                self.connect(n);
            }
            self.deliver_to_server();
            self.sync();
            self.with_server(vec![Event::Tick]);
            for client in &mut self.clients {
                while !client.inbox.is_empty() {
                    client.take();
                }
            }
            let quiet = |client: &SimClient| {
                client.welcomed && client.outstanding.is_empty() && client.outbox.is_empty()
            };
            if self.clients.iter().all(quiet) {
                break;
            }
        }
        for client in &self.clients {
            let figures = self.server.as_ref().map(|server| server.core.machine.figures());
            assert!(
                client.welcomed,
                "client {} ({:?}) was not admitted in the end: {figures:?}",
                client.number, client.conn
            );
            assert!(client.outstanding.is_empty(), "not answered: {:?}", client.outstanding);
        }
        self.check_durable();
        let (commits, again) = (self.commits(), self.made_again());
        for client in &self.clients {
            let Some(session) = client.session else { continue };
            for (&id, &version) in &client.acknowledged {
                let excused = client.parked.contains(&id) || again.contains(&(session, id));
                if self.ever.contains(&(session, id, version)) && !excused {
                    assert_eq!(commits.get(&(session, id)), Some(&1), "call {id} of {session:?}");
                }
            }
        }
        assert!(commits.values().all(|&times| times == 1), "a call was applied twice");
        self.finish_keys();
        self.finish_in_place();
        if self.store_random.one_in(8) {
            self.finish_clone();
        }
        self.finish_past();
        self.finish_store();
        self.finish_leave();
        let Some(server) = &self.server else { panic!("no server in the end") };
        let view = server.engine.view();
        assert_is_model(&*view, &self.record.lock().unwrap());
        let faults = chronofs_namespace::verify(&SharedView(view)).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }
}
