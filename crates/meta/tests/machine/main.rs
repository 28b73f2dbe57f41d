//! The machine by behaviour, on the engine in memory: recovery, opens, sharing, life times.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod bounds;
mod collect;
#[path = "../common/mod.rs"]
mod common;
mod copying;
mod damaged;
mod encrypted;
mod falls;
mod forget;
mod keys;
mod late;
mod leave;
mod look;
mod pack;
mod past;
mod pins;
mod reclaim;
mod restored;
mod rights;
mod signing;

use chronofs_blocks::Pin;
use chronofs_core::ops::{Reply, Request};
use chronofs_core::slice::{NewSlice, Place, Slice};
use chronofs_core::{Caller, Errno, Ino, SessionId, Version};
use chronofs_engine::memory::Memory;
use chronofs_engine::{Batch, Change, Commit, Engine, EngineError, Recovered, View};
use chronofs_meta::core::Core;
use chronofs_meta::machine::{
    Call, Config, ConnId, Effect, Event, Found, Machine, Now, PinsRead, SharedView,
};
use chronofs_wire::admin::Assignment;
use chronofs_wire::message::{Hello, ToClient, ToServer, Welcome};
use common::{attr, create, hello, name, replayed};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const START_NS: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

struct Server {
    core: Core,
    now_ns: u64,
    /// The pins that are read from the block store before each tick, if that is done.
    pins: Option<Result<Vec<Pin>, String>>,
}

impl Server {
    fn start(engine: Arc<dyn Engine>, now_ns: u64, maybe_lost: bool) -> Server {
        Server::start_with(engine, now_ns, maybe_lost, false)
    }

    fn start_with(engine: Arc<dyn Engine>, now_ns: u64, maybe_lost: bool, asks_admin: bool) -> Server {
        let config = Config { boot: now_ns, asks_admin, ..Config::default() };
        Server::start_as(engine, now_ns, maybe_lost, config)
    }

    fn start_sized(engine: Arc<dyn Engine>, key_bytes_max: u64) -> Server {
        Server::start_as(engine, START_NS, false, Config { key_bytes_max, ..Config::default() })
    }

    fn start_as(engine: Arc<dyn Engine>, now_ns: u64, maybe_lost: bool, config: Config) -> Server {
        let assignment = common::assignment(std::path::Path::new("/nowhere"));
        Server::start_assigned(engine, now_ns, maybe_lost, config, assignment)
    }

    fn start_assigned(
        engine: Arc<dyn Engine>,
        now_ns: u64,
        maybe_lost: bool,
        config: Config,
        assignment: Assignment,
    ) -> Server {
        let found = Found { recovered: Vec::<Recovered>::new(), maybe_lost, last_commit: engine.applied() };
        let machine =
            Machine::new(config, &SharedView(engine.view()), engine.applied(), found, now_ns.into()).unwrap();
        let mut server = Server { core: Core { machine, engine }, now_ns, pins: Some(Ok(Vec::new())) };
        server.run(Event::Assignment(Box::new(assignment)));
        server.run(Event::Tick);
        server
    }

    fn run(&mut self, event: Event) -> Vec<Effect> {
        self.now_ns += 1_000;
        let mut effects = Vec::new();
        let mut events = Vec::new();
        if matches!(event, Event::Tick)
            && let Some(found) = self.pins.clone()
        {
            let read = PinsRead { volume: common::VOLUME, began_ns: self.now_ns, found };
            events.push(Event::Pins(Box::new(read)));
        }
        events.push(event);
        self.core.run(self.now_ns, events, &mut |group| effects.extend(group.effects)).unwrap();
        effects
    }

    /// Starts again, on the same state, with a block store of which nothing is known yet.
    fn forget_pins(&mut self) {
        self.pins = None;
        self.start_again(Config::default());
    }

    /// Starts again, on the same state.
    fn start_again(&mut self, config: Config) {
        let (engine, now_ns) = (self.core.engine.clone(), self.now_ns);
        engine.sync().unwrap();
        let found = Found { last_commit: engine.applied(), ..Found::default() };
        let config = Config { boot: now_ns, ..config };
        let reads = SharedView(engine.view());
        self.core.machine = Machine::new(config, &reads, engine.applied(), found, now_ns.into()).unwrap();
        self.run(Event::Assignment(Box::new(common::assignment(std::path::Path::new("/nowhere")))));
    }

    fn durable(&mut self) -> Vec<Effect> {
        let version = self.core.engine.sync().unwrap();
        self.run(Event::Durable(version))
    }

    fn open(&mut self, conn: u64, hello: Hello) -> Option<Box<Welcome>> {
        let mut effects = self.run(Event::Hello(ConnId(conn), Box::new(hello)));
        effects.extend(self.durable());
        welcome(effects)
    }

    fn call(&mut self, conn: u64, id: u64, request: Request) -> (Version, Result<Reply, Errno>) {
        let call = Call { id, acked: 0, caller: Caller::ROOT, request };
        let effects = self.run(Event::Call(ConnId(conn), call));
        returned(effects, id).expect("an answer")
    }

    /// A tenth of a second with a call of the client behind `conn`.
    fn busy_tick(&mut self, conn: u64) -> Vec<Effect> {
        self.now_ns += SECOND / 10;
        self.call(conn, self.now_ns, Request::GetAttr { ino: Ino::ROOT }).1.unwrap();
        self.durable();
        self.run(Event::Tick)
    }

    fn frame(&mut self, conn: u64, frame: ToServer) -> Vec<Effect> {
        self.run(Event::Frame(ConnId(conn), frame))
    }
}

fn welcome(effects: Vec<Effect>) -> Option<Box<Welcome>> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Answer(_, answer) => Some(answer.expect("a welcome")),
        _ => None,
    })
}

fn returned(effects: Vec<Effect>, wanted: u64) -> Option<(Version, Result<Reply, Errno>)> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Send(_, ToClient::Return { id, version, result, .. }) if id == wanted => {
            Some((version, result))
        }
        _ => None,
    })
}

fn resume(client: u128, session: SessionId, seen: Version) -> Hello {
    Hello { resume: Some(session), seen, ..hello(client) }
}

#[test]
fn a_call_that_comes_again_is_answered_and_not_done_again() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let first = server.call(1, 1, create(Ino::ROOT, "a", false));
    let version = server.core.engine.applied();
    assert_eq!(server.call(1, 1, create(Ino::ROOT, "a", false)), first);
    assert_eq!(server.core.engine.applied(), version);
}

#[test]
fn lost_calls_are_applied_in_the_order_of_their_versions_before_anything_new() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    assert!(server.open(2, hello(2)).is_none());
    server.frame(1, ToServer::SharedAck);
    let two = welcome(server.durable()).unwrap().session;
    let base = engine.applied().0;

    let mut server = Server::start(engine, START_NS + SECOND, true);
    let seen = Version(base + 40);
    assert!(server.open(3, resume(1, one, seen)).unwrap().replay);
    assert!(server.open(4, resume(2, two, seen)).unwrap().replay);
    // The directory is the second session's and the file in it the first's: neither alone tells the order.
    let late = Call { id: 9, acked: 0, caller: Caller::ROOT, request: create(Ino::ROOT, "d", false) };
    assert!(returned(server.run(Event::Call(ConnId(3), late)), 9).is_none());
    let (dir, file) = (Ino(10), Ino(12));
    let in_dir = replayed(5, Version(base + 20), create(dir, "f", false), Some(file));
    server.frame(3, ToServer::Replay { calls: vec![in_dir], end: true });
    let mut make_dir = create(Ino::ROOT, "d", false);
    if let Request::Create { node, .. } = &mut make_dir {
        *node = chronofs_core::ops::NewNode::Dir;
    }
    let make_dir = replayed(5, Version(base + 10), make_dir, Some(dir));
    let effects = server.frame(4, ToServer::Replay { calls: vec![make_dir], end: true });
    let held = returned(effects, 9).expect("the held call is answered when the window is over");
    assert_eq!(held.1, Err(Errno::EEXIST));
    let found = server.call(3, 10, Request::Lookup { parent: dir, name: name("f") });
    assert_eq!(attr(found.1.unwrap()).ino, file);
    assert_eq!(server.core.machine.figures().parked, 0);
}

#[test]
fn what_rests_on_a_session_that_does_not_come_back_is_parked_and_reported() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    let base = engine.applied().0;
    let mut server = Server::start(engine, START_NS + SECOND, true);
    server.open(2, resume(1, one, Version(base + 40))).unwrap();
    let orphaned = replayed(5, Version(base + 20), create(Ino(77), "f", false), Some(Ino(78)));
    let follows = replayed(6, Version(base + 21), Request::Unlink { parent: Ino(78), name: name("x") }, None);
    let effects = server.frame(2, ToServer::Replay { calls: vec![orphaned, follows], end: true });
    let parked = effects.iter().find_map(|effect| match effect {
        Effect::Send(_, ToClient::Parked { calls }) => {
            Some(calls.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        }
        _ => None,
    });
    assert_eq!(parked, Some(vec![5, 6]));
    assert_eq!(server.core.machine.figures().parked, 2);
}

#[test]
fn a_silent_session_does_not_hold_up_others_for_longer_than_its_caches_last() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    assert!(!server.open(1, hello(1)).unwrap().shared);
    server.run(Event::Gone(ConnId(1)));
    assert!(server.open(2, hello(2)).is_none());
    server.now_ns += 4 * SECOND;
    assert!(welcome(server.run(Event::Tick)).is_none());
    server.now_ns += 2 * SECOND;
    server.run(Event::Tick);
    assert!(welcome(server.durable()).expect("admitted").shared);
}

#[test]
fn a_session_that_is_silent_for_its_life_ends_and_the_other_may_cache() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    server.open(2, hello(2));
    server.frame(1, ToServer::SharedAck);
    server.durable();
    server.run(Event::Gone(ConnId(1)));
    server.now_ns += 59 * SECOND;
    server.frame(2, ToServer::Renew { floor: 0 });
    server.now_ns += 2 * SECOND;
    let effects = server.run(Event::Tick);
    let told =
        |effect: &Effect| matches!(effect, Effect::Send(ConnId(2), ToClient::Shared { shared: false }));
    assert!(effects.iter().any(told), "{effects:?}");
    let effects = server.run(Event::Hello(ConnId(3), Box::new(resume(1, one, Version::ZERO))));
    let over = |effect: &Effect| matches!(effect, Effect::Answer(_, Err(_)));
    assert!(effects.iter().any(over), "{effects:?}");
}

#[test]
fn a_clock_that_leaps_ends_no_session_that_is_connected() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    server.now_ns += 3600 * SECOND;
    server.run(Event::Tick);
    server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap();
    assert_eq!(server.core.machine.figures().sessions, 1);
}

#[test]
fn orphans_do_not_wait_behind_the_many_files_that_are_closed_and_stay() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let inos: Vec<Ino> = (0..600)
        .map(|n| attr(server.call(1, n + 1, create(Ino::ROOT, &format!("f{n}"), true)).1.unwrap()).ino)
        .collect();
    let orphan = inos[599];
    server.call(1, 700, Request::Unlink { parent: Ino::ROOT, name: name("f599") }).1.unwrap();
    for (n, &ino) in (0..).zip(&inos) {
        server.call(1, 1000 + n, Request::Close { ino, count: 1 }).1.unwrap();
    }
    server.run(Event::Tick);
    assert!(server.call(1, 2000, Request::GetAttr { ino: orphan }).1.is_err());
    server.call(1, 2001, Request::GetAttr { ino: inos[0] }).1.unwrap();
}

#[test]
fn an_orphan_with_a_damaged_row_does_not_stop_the_server() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    server.call(1, 2, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    let index = server.core.machine.volumes().next().unwrap().index;
    let key = chronofs_namespace::rows::INODE.live_key(index, &ino.0.to_be_bytes());
    let batch = Batch(vec![Change::Put(key, vec![0xff].into())]);
    let version = Version(server.core.engine.applied().0 + 1);
    server.core.engine.apply(vec![Commit { version, tag: Vec::new().into(), batch }]).unwrap();
    server.call(1, 3, Request::Close { ino, count: 1 }).1.unwrap();
    let effects = server.run(Event::Tick);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Warn(_))), "{effects:?}");
    assert!(server.run(Event::Tick).is_empty(), "it is tried once");
}

/// An engine that has no room for commits while it is told so, and makes them durable only when it is asked.
#[derive(Default)]
struct Full(Memory, AtomicBool, AtomicU64);

impl Engine for Full {
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError> {
        if !self.1.load(Ordering::SeqCst) {
            return self.0.apply(commits);
        }
        let source = std::io::ErrorKind::StorageFull.into();
        Err(EngineError::NoSpace { action: "allocate", path: "the log".to_owned(), source })
    }
    fn view(&self) -> Arc<dyn View> {
        self.0.view()
    }
    fn applied(&self) -> Version {
        self.0.applied()
    }
    fn durable(&self) -> Version {
        Version(self.2.load(Ordering::SeqCst))
    }
    fn sync(&self) -> Result<Version, EngineError> {
        self.2.store(self.applied().0, Ordering::SeqCst);
        Ok(self.applied())
    }
    fn recovered(&self) -> Vec<Recovered> {
        self.0.recovered()
    }
    fn mark(&self, version: Version) -> Result<(), EngineError> {
        self.0.mark(version)
    }
}

#[test]
fn a_new_volume_and_a_stop_on_a_full_disk_do_not_fail_the_server() {
    let engine = Arc::new(Full(Memory::default(), true.into(), 0.into()));
    let reads = SharedView(engine.view());
    let machine =
        Machine::new(Config::default(), &reads, engine.applied(), Found::default(), START_NS.into()).unwrap();
    let mut core = Core { machine, engine };
    let assignment = Box::new(common::assignment(std::path::Path::new("/nowhere")));
    let mut full = false;
    for event in [Event::Assignment(assignment), Event::Tick] {
        core.run(START_NS, vec![event], &mut |group| full |= group.full.is_some()).unwrap();
    }
    assert!(full && core.machine.is_assigned() && core.machine.volumes().count() == 0);
    core.stop(START_NS).unwrap();
    // With room again the volume comes by itself.
    core.engine = Arc::new(Memory::default());
    core.run(START_NS, vec![Event::Tick], &mut |_| ()).unwrap();
    assert_eq!(core.machine.volumes().count(), 1);
}

#[test]
fn what_piles_up_is_decided_in_groups_that_the_log_can_take() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let slice = Slice { offset: 0, len: 1, skip: 0, place: Place::Hole };
    let slice = NewSlice { block: 0, slice, staged: Some(vec![0; 64 << 10].into()) };
    let request = Request::Publish {
        ino: Ino::ROOT,
        slices: vec![slice],
        size_min: None,
        mtime_ns: None,
        kill_priv: false,
        merge: None,
    };
    let call = |id| Call { id, acked: 0, caller: Caller::ROOT, request: request.clone() };
    let events = (1..=600).map(|id| Event::Call(ConnId(1), call(id))).collect();
    let mut groups = Vec::new();
    server.core.run(server.now_ns, events, &mut |group| groups.push(group.answered.len())).unwrap();
    assert_eq!(groups, [256, 256, 88]);
}

#[test]
fn an_acknowledgement_of_an_earlier_question_does_not_count() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    assert!(server.open(2, hello(2)).is_none());
    server.run(Event::Gone(ConnId(2)));
    assert!(server.open(3, hello(3)).is_none());
    server.frame(1, ToServer::SharedAck);
    assert!(welcome(server.durable()).is_none(), "the first question's answer admitted somebody");
    server.frame(1, ToServer::SharedAck);
    assert!(welcome(server.durable()).is_some());
}

/// A hello with a token that the server does not know, and the question that it asks because of it.
fn with_new_token(server: &mut Server, conn: u64) -> u64 {
    let hello = Hello { token_id: uuid::Uuid::from_u128(77), ..hello(u128::from(conn)) };
    let effects = server.run(Event::Hello(ConnId(conn), Box::new(hello)));
    match effects[..] {
        [Effect::AskAdmin(question)] => question,
        _ => panic!("{effects:?}"),
    }
}

fn refusal(effects: &[Effect], wanted: u64) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer(ConnId(conn), Err(refusal)) if *conn == wanted => Some(refusal.message.clone()),
        _ => None,
    })
}

#[test]
fn a_token_made_a_moment_ago_is_asked_for_before_it_is_refused() {
    let mut server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    with_new_token(&mut server, 1);
    assert!(refusal(&server.run(Event::Tick), 1).is_none());
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.revision = 2;
    assignment.tokens.push(common::token(77));
    let mut effects = server.run(Event::Assignment(Box::new(assignment)));
    effects.extend(server.durable());
    assert!(welcome(effects).is_some());
}

#[test]
fn a_token_that_the_admin_server_does_not_know_either_is_refused_by_an_answer_newer_than_the_hello() {
    let mut server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let first = with_new_token(&mut server, 1);
    let second = with_new_token(&mut server, 2);
    let effects = server.run(Event::AdminAsked(first, None));
    assert!(refusal(&effects, 1).unwrap().contains("unknown"));
    assert!(refusal(&effects, 2).is_none(), "it came after the question was asked");
    let message = refusal(&server.run(Event::AdminAsked(second, None)), 2).unwrap();
    assert!(!message.contains("cannot be asked"), "{message}");
}

#[test]
fn who_is_refused_because_the_admin_server_is_away_is_told_so() {
    let mut server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let question = with_new_token(&mut server, 1);
    let effects = server.run(Event::AdminAsked(question, Some("no route".to_owned())));
    let message = refusal(&effects, 1).unwrap();
    assert!(message.contains("cannot be asked") && message.contains("no route"), "{message}");
    // It may also not answer at all.
    with_new_token(&mut server, 2);
    server.now_ns += 2 * SECOND;
    assert!(refusal(&server.run(Event::Tick), 2).is_none());
    server.now_ns += SECOND;
    let message = refusal(&server.run(Event::Tick), 2).unwrap();
    assert!(message.contains("cannot be asked"), "{message}");
}

#[test]
fn a_client_that_goes_while_the_admin_server_is_asked_is_forgotten() {
    let mut server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let question = with_new_token(&mut server, 1);
    server.run(Event::Gone(ConnId(1)));
    let effects = server.run(Event::AdminAsked(question, None));
    assert!(refusal(&effects, 1).is_none(), "{effects:?}");
}

#[test]
fn a_volume_made_a_moment_ago_is_brought_into_the_state_before_its_client_is_refused() {
    let mut server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let id = uuid::Uuid::from_u128(0x99);
    let hello = Hello { token_id: uuid::Uuid::from_u128(77), volume: id, ..hello(1) };
    server.run(Event::Hello(ConnId(1), Box::new(hello)));
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.revision = 2;
    let mut volume = assignment.volumes[0].clone();
    (volume.spec.id, volume.spec.name) = (id, "new".to_owned());
    assignment.volumes.push(volume);
    assignment.tokens.push(chronofs_wire::admin::AssignedToken { volume: id, ..common::token(77) });
    let mut effects = server.run(Event::Assignment(Box::new(assignment)));
    effects.extend(server.run(Event::AdminAsked(1, None)));
    assert!(refusal(&effects, 1).is_none(), "{effects:?}");
    effects.extend(server.run(Event::Tick));
    effects.extend(server.durable());
    assert!(welcome(effects).is_some());
}

#[test]
fn an_acknowledgement_counts_once_though_its_group_finds_the_disk_full() {
    let engine = Arc::new(Full::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.revision = 2;
    let mut volume = assignment.volumes[0].clone();
    (volume.spec.id, volume.spec.name) = (uuid::Uuid::from_u128(0x99), "other".to_owned());
    assignment
        .tokens
        .push(chronofs_wire::admin::AssignedToken { volume: volume.spec.id, ..common::token(9) });
    assignment.volumes.push(volume.clone());
    server.run(Event::Assignment(Box::new(assignment)));
    server.run(Event::Tick);
    let other =
        |client| Hello { token_id: uuid::Uuid::from_u128(9), volume: volume.spec.id, ..hello(client) };
    server.open(1, hello(1)).unwrap();
    server.open(11, other(11)).unwrap();
    // A client of the other volume could come in if there was room, so every look at who waits finds the disk full.
    engine.1.store(true, Ordering::SeqCst);
    assert!(server.open(12, other(12)).is_none());
    server.frame(11, ToServer::SharedAck);
    // The first question is of no meaning any more when it is answered.
    assert!(server.open(2, hello(2)).is_none());
    server.run(Event::Gone(ConnId(2)));
    assert!(server.open(3, hello(3)).is_none());
    server.frame(1, ToServer::SharedAck);
    engine.1.store(false, Ordering::SeqCst);
    let mut effects = server.run(Event::Tick);
    effects.extend(server.durable());
    let welcomed = |effects: &[Effect], conn| {
        effects.iter().any(|effect| matches!(effect, Effect::Answer(to, Ok(_)) if *to == ConnId(conn)))
    };
    assert!(welcomed(&effects, 12));
    assert!(!welcomed(&effects, 3), "the second question is not answered yet");
    server.frame(1, ToServer::SharedAck);
    assert!(welcomed(&server.durable(), 3));
}

#[test]
fn what_a_client_is_told_to_be_durable_is_told_again_when_its_group_finds_the_disk_full() {
    let engine = Arc::new(Full::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.open(1, hello(1)).unwrap();
    for n in 1..=3 {
        server.call(1, n, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap();
    }
    server.durable();
    engine.1.store(true, Ordering::SeqCst);
    // Replies are to be written down, for which there is no room.
    server.now_ns += 31 * SECOND;
    let told = |effect: &Effect| matches!(effect, Effect::Send(_, ToClient::Durable { .. }));
    assert!(server.run(Event::Tick).iter().any(told));
}

#[test]
fn a_wall_clock_that_leaps_lets_nobody_in_while_another_still_caches() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    assert!(server.open(2, hello(2)).is_none());
    let tick = |server: &mut Server, wall_ns, steady_ns| {
        let mut effects = Vec::new();
        let now = Now { wall_ns, steady_ns };
        server.core.run(now, vec![Event::Tick], &mut |group| effects.extend(group.effects)).unwrap();
        effects.extend(server.durable());
        welcome(effects)
    };
    let now_ns = server.now_ns;
    assert!(tick(&mut server, now_ns + 3600 * SECOND, now_ns + SECOND).is_none());
    assert!(tick(&mut server, now_ns, now_ns + 11 * SECOND).is_some(), "its caches have run out");
}

/// A publish of one byte into each of so many blocks.
fn sparse(session: SessionId, ino: Ino, blocks: std::ops::Range<u32>) -> Request {
    use chronofs_core::slice::{Codec, Seal};
    let slice = |block: u32| {
        let object = chronofs_core::ObjectId { incarnation: 0, session, n: u64::from(block) };
        let id = chronofs_core::SliceId { object, index: 0 };
        let seal = Seal { id, codec: Codec::Raw, stored_len: 1, full_len: 1, crc32c: 1 };
        let place = Place::Inline(seal, bytes::Bytes::from_static(b"x"));
        NewSlice { block, slice: Slice { offset: 0, len: 1, skip: 0, place }, staged: None }
    };
    let slices = blocks.map(slice).collect();
    Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
}

#[test]
fn what_is_left_of_a_large_file_that_was_removed_goes_at_the_ticks_that_follow() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    for (id, from) in [(2, 0), (3, 3_000), (4, 6_000), (5, 9_000)] {
        server.call(1, id, sparse(session, ino, from..from + 3_000)).1.unwrap();
    }
    server.call(1, 6, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    let index = server.core.machine.volumes().next().unwrap().index;
    let left = |server: &Server| {
        chronofs_namespace::first_purge(&SharedView(server.core.engine.view()), index).unwrap()
    };
    // It goes on after a restart.
    server.run(Event::Tick);
    let mut server = Server::start(server.core.engine.clone(), START_NS + SECOND, false);
    assert_eq!(left(&server), Some(ino));
    for _ in 0..3 {
        server.run(Event::Tick);
    }
    assert_eq!(left(&server), None);
}

#[test]
fn calls_whose_commits_are_large_share_groups_that_the_log_can_take() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    let value = bytes::Bytes::from(vec![0; 64 << 10]);
    let mode = chronofs_core::ops::XattrMode::Any;
    // Each puts a value and keeps the one before.
    let request = Request::SetXattr { ino, name: "user.a".into(), value, mode };
    let call = |id| Call { id, acked: id - 1, caller: Caller::ROOT, request: request.clone() };
    let events = (2..=2001).map(|id| Event::Call(ConnId(1), call(id))).collect();
    let mut groups = Vec::new();
    server.core.run(server.now_ns, events, &mut |group| groups.push((group.commits, group.bytes))).unwrap();
    assert_eq!(groups.iter().map(|(commits, _)| commits).sum::<usize>(), 2000);
    assert!(groups.iter().all(|(_, bytes)| *bytes < 65 << 20), "{groups:?}");
    assert!(groups.len() > 3, "{groups:?}");
}
