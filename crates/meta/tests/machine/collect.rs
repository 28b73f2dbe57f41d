//! What no row names any more goes: late enough, in steps that a crash cannot turn into loss, and nothing else.

use super::*;
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::{ObjectId, SliceId, VolumeIndex};
use chronofs_meta::machine::{DeleteJob, DeletedObjects};
use chronofs_namespace::rows::{RETIRED, Tally};
use uuid::Uuid;

pub const INDEX: VolumeIndex = VolumeIndex(1);

impl Server {
    pub fn publish(&mut self, id: u64, ino: Ino, object: ObjectId) {
        let id_of = SliceId { object, index: 0 };
        let seal = Seal { id: id_of, codec: Codec::Raw, stored_len: 100, full_len: 100, crc32c: 1 };
        let slice = Slice { offset: 0, len: 100, skip: 0, place: Place::Object(seal, 0) };
        let slices = vec![NewSlice { block: 0, slice, staged: None }];
        let request =
            Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None };
        self.call(1, id, request).1.unwrap();
    }

    /// Time passes, everything becomes durable, and the store deletes what it is handed out, if it can.
    pub fn pass(&mut self, seconds: u64, store_works: bool) -> Vec<ObjectId> {
        let mut deleted = Vec::new();
        for _ in 0..seconds.div_ceil(20) {
            self.now_ns += 20 * SECOND;
            self.durable();
            for job in jobs(self.run(Event::Tick)) {
                deleted.extend(&job.objects);
                self.run(Event::Deleted(Box::new(done(&job, store_works))));
            }
        }
        deleted
    }

    fn tick_later(&mut self) -> Vec<Effect> {
        self.now_ns += 2 * SECOND;
        self.run(Event::Tick)
    }

    pub fn tally(&self) -> Tally {
        chronofs_namespace::tally(&SharedView(self.core.engine.view()), INDEX).unwrap()
    }

    pub fn verify(&self) {
        let faults = chronofs_namespace::verify(&SharedView(self.core.engine.view())).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }

    pub fn collection(&self) -> chronofs_meta::machine::CollectionShown {
        self.core.machine.volume(INDEX).unwrap().collection().clone()
    }
}

pub fn jobs(effects: Vec<Effect>) -> Vec<DeleteJob> {
    let job = |effect| if let Effect::Delete(job) = effect { Some(job) } else { None };
    effects.into_iter().filter_map(job).collect()
}

fn done(job: &DeleteJob, works: bool) -> DeletedObjects {
    let deleted = if works { job.objects.clone() } else { Vec::new() };
    let failure = (!works).then(|| "the bucket is away".to_owned());
    DeletedObjects { volume: job.volume, asked: job.objects.clone(), deleted, failure }
}

/// A server with a file whose object was written over: gives the object that is unnamed once an hour has passed.
pub fn with_an_object_over() -> (Server, ObjectId) {
    with_an_object_over_in(Server::start(Arc::new(Memory::default()), START_NS, false))
}

fn with_an_object_over_in(mut server: Server) -> (Server, ObjectId) {
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    let object = |n| ObjectId { incarnation: 0, session, n };
    server.publish(2, ino, object(5));
    server.publish(3, ino, object(6));
    (server, object(5))
}

#[test]
fn an_object_goes_ten_minutes_after_its_last_row_went() {
    let (mut server, object) = with_an_object_over();
    assert_eq!(server.pass(3500, true), [], "all of it is in the window");
    assert_eq!(server.tally().held.count, 2);
    let mut waited = 0;
    while server.tally().retired.count == 0 {
        assert_eq!(server.pass(20, true), []);
        waited += 1;
        assert!(waited < 20, "the window has passed");
    }
    assert_eq!(server.pass(560, true), [], "readers may know where it lies");
    assert_eq!(server.pass(100, true), [object]);
    server.durable();
    assert_eq!(server.pass(3600, true), [], "once");
    let tally = server.tally();
    assert_eq!((tally.held.count, tally.retired.count, tally.condemned.count), (1, 0, 0));
    assert_eq!(server.collection().deleted, 1);
    server.verify();
}

#[test]
fn nothing_is_deleted_before_it_is_durable_that_nothing_can_name_it() {
    let (mut server, object) = with_an_object_over();
    while server.tally().retired.count == 0 {
        server.pass(20, true);
    }
    for _ in 0..60 {
        server.now_ns += 20 * SECOND;
        assert_eq!(jobs(server.run(Event::Tick)), [], "nothing became durable");
    }
    assert_eq!(server.tally().condemned.count, 1);
    server.durable();
    let job = jobs(server.tick_later());
    assert_eq!(job, [DeleteJob { volume: common::VOLUME, objects: vec![object] }]);
    assert_eq!(jobs(server.tick_later()), [], "it is handed out already");

    // The server dies before it hears what became of it: it is handed out again, after no further ten minutes.
    let engine = server.core.engine.clone();
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    assert_eq!(server.pass(40, true), [], "the first tick has handed it out");
    server.run(Event::Deleted(Box::new(done(&job[0], false))));
    assert_eq!(server.pass(40, true), [object]);
    assert_eq!(server.tally().condemned.count, 0);
    server.verify();
}

#[test]
fn a_restart_gives_readers_their_ten_minutes_anew() {
    let (mut server, object) = with_an_object_over();
    while server.tally().retired.count == 0 {
        server.pass(20, true);
    }
    let mut server = Server::start(server.core.engine.clone(), server.now_ns + 7200 * SECOND, false);
    assert_eq!(server.pass(580, true), []);
    assert_eq!(server.pass(80, true), [object]);
}

#[test]
fn a_store_that_fails_is_asked_again_less_and_less() {
    let (mut server, _) = with_an_object_over();
    while server.collection().problem.is_none() {
        server.pass(20, false);
    }
    assert_eq!(server.collection().problem.as_deref(), Some("the bucket is away"));
    let asked = server.pass(3600, false).len();
    // After 2 s, 4 s, and at last every 32 s, as far as ticks of 20 s show it.
    assert!((80..120).contains(&asked), "{asked}");
    assert_eq!((server.tally().condemned.count, server.collection().deleted), (1, 0));
    while server.tally().condemned.count > 0 {
        server.pass(20, true);
    }
    assert_eq!((server.collection().problem, server.collection().deleted), (None, 1));
}

/// What is not deleted any more is noticed within a minute, however long the store was away.
#[test]
fn a_store_that_is_back_after_hours_is_asked_within_a_minute() {
    let (mut server, object) = with_an_object_over();
    let asked = server.pass(20_000, false).len();
    assert!(asked > 20, "{asked}");
    for _ in 0..60 {
        server.now_ns += SECOND;
        server.durable();
        if let Some(job) = jobs(server.run(Event::Tick)).pop() {
            assert_eq!(job.objects, [object]);
            return;
        }
    }
    panic!("nothing was handed out in a minute");
}

#[test]
fn a_hold_keeps_what_it_names_until_it_ends_and_a_pin_until_it_is_released() {
    let (mut server, object) = with_an_object_over();
    // Between the two writes: the first object shows.
    let at = server.core.machine.last();
    let ino =
        chronofs_namespace::resolve(&SharedView(server.core.engine.view()), INDEX, None, Ino::ROOT, b"a");
    let (ino, _) = ino.unwrap().unwrap();
    let keep = |server: &mut Server, id, ends| {
        let now_ns = server.now_ns;
        let kept = server.core.decide(now_ns, |machine, group| {
            machine
                .keep_instants(group, (common::VOLUME, Uuid::from_u128(id)), (at, at), ends, "a snapshot")?
                .unwrap();
            Ok(())
        });
        kept.unwrap();
    };
    let ends = Version(server.now_ns + 20_000 * SECOND);
    keep(&mut server, 1, Some(ends));
    keep(&mut server, 2, None);
    let third = ObjectId { n: 7, ..object };
    server.publish(4, ino, third);
    let held = ObjectId { n: 6, ..object };
    assert_eq!(server.pass(19_000, true), [object], "only what the instant does not show");
    assert_eq!(server.pass(10_000, true), [], "the hold is over, the pin is not");
    let now_ns = server.now_ns;
    let released = server.core.decide(now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, Uuid::from_u128(2))?.unwrap();
        Ok(())
    });
    released.unwrap();
    assert_eq!(server.pass(1_000, true), [held]);
    assert_eq!(chronofs_namespace::list_kept(&SharedView(server.core.engine.view())).unwrap(), []);
    server.verify();
}

#[test]
fn more_than_half_at_once_waits_for_a_word_says_how_to_go_on_and_goes_then() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    for n in 0..20 {
        server.publish(2 + n, ino, ObjectId { incarnation: 0, session, n });
    }
    server.start_again(Config { brake_from: 4, ..Config::default() });
    let mut told = Vec::new();
    for _ in 0..1_000 {
        server.now_ns += 20 * SECOND;
        server.durable();
        for effect in server.run(Event::Tick) {
            match effect {
                Effect::Delete(job) => panic!("{job:?}"),
                Effect::Warn(text) => told.push(text),
                _ => {}
            }
        }
    }
    assert_eq!((server.tally().retired.count, server.tally().condemned.count), (19, 0));
    assert!(server.collection().braked);
    let says_how = |text: &&String| text.contains("chronofs meta gc --release-brake");
    assert_eq!(told.iter().filter(says_how).count(), 1, "once, not at each tick: {told:?}");
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_brakes(group)?.unwrap();
        Ok(())
    });
    released.unwrap();
    assert_eq!(server.pass(2_000, true).len(), 19);
    assert!(!server.collection().braked);
    server.verify();
}

#[test]
fn what_is_replaced_as_steadily_as_it_comes_never_brakes() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.volumes[0].spec.retention = chronofs_core::Retention::None;
    assignment.revision += 1;
    server.start_again(Config { brake_from: 4, ..Config::default() });
    server.run(Event::Assignment(Box::new(assignment)));
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    // So much is replaced in the time that retired objects wait that it is many times what is held.
    let (mut most, mut deleted) = (0, 0);
    for n in 0..200 {
        server.publish(2 + n, ino, ObjectId { incarnation: 0, session, n });
        server.frame(1, ToServer::Renew { floor: 0 });
        deleted += server.pass(20, true).len();
        most = most.max(server.tally().retired.count);
        assert!(!server.collection().braked, "after {n}");
    }
    assert!(most > 8 && server.tally().held.count < 4 && deleted > 100, "{most} {deleted}");
    server.verify();
}

#[test]
fn a_row_that_cannot_be_read_stops_the_collection_and_nothing_else() {
    let (mut server, _) = with_an_object_over();
    while server.tally().retired.count == 0 {
        server.pass(20, true);
    }
    let view = server.core.engine.view();
    let first = RETIRED.live_key(INDEX, &[0; 31]);
    let last = RETIRED.live_key(INDEX, &[0xff; 31]);
    let (key, _) = view.scan(&first, &last, 1).unwrap().pop().unwrap();
    let batch = Batch(vec![Change::Put(key, bytes::Bytes::from_static(b"rubbish"))]);
    let engine = server.core.engine.clone();
    let version = Version(engine.applied().0 + 1);
    engine.apply(vec![Commit { version, tag: bytes::Bytes::new(), batch }]).unwrap();
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    assert_eq!(server.pass(1200, true), []);
    assert!(server.collection().stopped);
    server.open(9, hello(1)).expect("the server serves");
}

#[test]
fn what_a_session_that_lives_put_in_vain_goes_once_it_has_said_so() {
    let (mut server, object) = with_an_object_over();
    let never = ObjectId { n: 9, ..object };
    let found = |server: &mut Server| server.run(Event::Garbage(common::VOLUME, vec![never, object]));
    let pass = |server: &mut Server| {
        server.frame(1, ToServer::Renew { floor: 10 });
        server.pass(25, true)
    };
    server.pass(700, true);
    server.frame(1, ToServer::Renew { floor: 9 });
    server.pass(25, true);
    found(&mut server);
    assert_eq!(server.tally().condemned.count, 0, "it may be published still");
    assert_eq!(pass(&mut server), []);
    found(&mut server);
    assert_eq!(server.tally().condemned.count, 1, "the other is named by a row");
    let gone: Vec<ObjectId> = (0..3).flat_map(|_| pass(&mut server)).collect();
    assert_eq!(gone, [never]);
    server.verify();
}

#[test]
fn garbage_that_a_listing_finds_is_condemned_and_deleted() {
    let (mut server, object) = with_an_object_over();
    let never = ObjectId { n: 9, ..object };
    let found = |server: &mut Server| server.run(Event::Garbage(common::VOLUME, vec![never, object]));
    found(&mut server);
    server.frame(1, ToServer::Goodbye);
    found(&mut server);
    assert_eq!(server.tally().condemned.count, 0, "its session is not over for ten minutes");
    assert_eq!(server.pass(700, true), []);
    found(&mut server);
    assert_eq!(server.tally().condemned.count, 1, "the other is named by a row");
    assert_eq!(server.pass(40, true), [never]);
    server.verify();
}

#[test]
fn a_server_that_is_not_known_to_own_its_store_condemns_and_deletes_nothing() {
    let server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let (mut server, object) = with_an_object_over_in(server);
    let never = ObjectId { n: 9, ..object };
    server.frame(1, ToServer::Goodbye);
    let found = |server: &mut Server| server.run(Event::Garbage(common::VOLUME, vec![never]));
    // Another copy of this folder may be the owner, and its rows name what no row here does.
    assert_eq!(server.pass(4400, true), []);
    found(&mut server);
    assert_eq!((server.tally().retired.count, server.tally().condemned.count), (1, 0));

    // Owner for long enough to condemn, and superseded before that is durable.
    server.run(Event::Owner(true));
    server.tick_later();
    found(&mut server);
    assert_eq!(server.tally().condemned.count, 2);
    server.run(Event::Owner(false));
    assert_eq!(server.pass(100, true), []);

    server.run(Event::Owner(true));
    assert_eq!(server.pass(20, true).len(), 2);
    assert!(server.core.machine.owns_store(server.now_ns));
    server.pass(60, true);
    assert!(!server.core.machine.owns_store(server.now_ns), "an old word does not count");
}

/// A server with so many objects to be deleted that a session left behind, and with a client.
fn with_condemned(count: u64) -> Server {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    server.frame(1, ToServer::Goodbye);
    server.pass(700, true);
    let objects = (0..count).map(|n| ObjectId { incarnation: 0, session, n }).collect();
    server.run(Event::Garbage(common::VOLUME, objects));
    assert_eq!(server.tally().condemned.count, count);
    server.open(2, hello(2)).unwrap();
    server
}

impl Server {
    /// What is handed out at the next tick at which anything is; the store deletes it.
    fn hands_out(&mut self, tick: impl Fn(&mut Server) -> Vec<Effect>) -> usize {
        let ticks = (0..20).find_map(|_| jobs(tick(self)).pop());
        let job = ticks.expect("something is handed out within two seconds");
        self.run(Event::Deleted(Box::new(done(&job, true))));
        job.objects.len()
    }

    fn quiet_tick(&mut self) -> Vec<Effect> {
        self.now_ns += SECOND / 10;
        self.durable();
        self.run(Event::Tick)
    }
}

#[test]
fn beside_clients_few_objects_are_deleted_at_a_time_and_all_that_goes_when_they_rest() {
    let mut server = with_condemned(600);
    for _ in 0..10 {
        assert_eq!(server.hands_out(|server| server.busy_tick(2)), 8);
    }
    // A call is remembered for half a second.
    assert_eq!(server.hands_out(Server::quiet_tick), 8);
    server.now_ns += SECOND;
    for _ in 0..4 {
        assert_eq!(server.hands_out(Server::quiet_tick), 128);
    }
    server.durable();
    assert_eq!(server.tally().condemned.count, 0, "600 are 11 times 8 and four times 128");
    server.verify();
}

#[test]
fn what_the_store_did_not_delete_is_handed_out_again_after_what_comes_behind_it() {
    let mut server = with_condemned(40);
    let first = (0..20).find_map(|_| jobs(server.busy_tick(2)).pop()).expect("some are handed out");
    server.run(Event::Deleted(Box::new(done(&first, false))));
    server.now_ns += 3 * SECOND;
    let mut deleted = Vec::new();
    for _ in 0..60 {
        for job in jobs(server.busy_tick(2)) {
            deleted.extend(&job.objects);
            server.run(Event::Deleted(Box::new(done(&job, true))));
        }
        server.durable();
    }
    assert!(!deleted[..8].contains(&first.objects[0]), "those behind it come first: {deleted:?}");
    deleted.sort_unstable();
    assert_eq!(deleted.len(), 40, "each once: {deleted:?}");
    assert!(first.objects.iter().all(|object| deleted.contains(object)));
    assert_eq!(server.tally().condemned.count, 0);
}

#[test]
fn the_more_there_is_to_delete_the_more_is_deleted_beside_clients() {
    let mut server = with_condemned(30 << 10);
    assert_eq!(server.hands_out(|server| server.busy_tick(2)), 30);
    assert_eq!(server.hands_out(|server| server.busy_tick(2)), 29, "it is less already");
}

#[test]
fn it_is_shown_how_much_was_deleted_how_fast_it_goes_and_that_clients_slow_it_down() {
    let mut server = with_condemned(600);
    for _ in 0..10 {
        server.hands_out(|server| server.busy_tick(2));
    }
    server.busy_tick(2);
    let shown = server.collection();
    assert_eq!((shown.deleted, shown.deleted_per_second, shown.slowed), (80, 8, true));
    server.now_ns += SECOND;
    for _ in 0..5 {
        server.quiet_tick();
    }
    assert!(!server.collection().slowed, "nobody is there to be held up");
    // What is said of objects that are gone already counts for nothing.
    let deleted = (0..8).map(|n| ObjectId { incarnation: 0, session: SessionId(1), n }).collect();
    let again = DeletedObjects { volume: common::VOLUME, asked: Vec::new(), deleted, failure: None };
    server.run(Event::Deleted(Box::new(again)));
    assert_eq!(server.collection().deleted, 80);
    server.now_ns += 10 * SECOND;
    server.quiet_tick();
    assert_eq!(server.collection().deleted_per_second, 0);

    let (mut server, _) = with_an_object_over();
    while server.collection().deleted == 0 {
        server.pass(20, true);
    }
    assert_eq!((server.collection().deleted, server.collection().deleted_bytes), (1, 100));
}

#[test]
fn beside_clients_little_is_condemned_at_a_time() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    for n in 0..300 {
        server.publish(2 + n, ino, ObjectId { incarnation: 0, session, n });
    }
    while server.tally().retired.count == 0 {
        server.pass(20, true);
    }
    assert_eq!(server.pass(560, true), []);
    let left = |server: &Server| server.tally().retired.count;
    while left(&server) == 299 {
        server.busy_tick(1);
    }
    assert_eq!(left(&server), 299 - 16);
    server.busy_tick(1);
    assert_eq!(left(&server), 299 - 32);
    server.now_ns += SECOND;
    server.quiet_tick();
    assert_eq!(left(&server), 299 - 32 - 256);
    server.quiet_tick();
    assert_eq!(left(&server), 0);
    server.verify();
}
