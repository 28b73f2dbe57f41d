//! Staged slices are packed into objects: named first, in few commits, under a new name after a failure.

use super::*;
use bytes::Bytes;
use chronofs_blocks::seal;
use chronofs_core::volume::Compression;
use chronofs_core::{ObjectId, SliceId, VolumeIndex};
use chronofs_meta::machine::{PackJob, Packed, Source};
use chronofs_meta::pack::build_pack;
use chronofs_namespace::rows::Tally;
use chronofs_namespace::{Judged, judge};

const INDEX: VolumeIndex = VolumeIndex(1);

impl Server {
    /// Publishes `count` staged slices to as many blocks.
    fn stage(&mut self, id: u64, ino: Ino, session: SessionId, (first, count): (u64, u64)) {
        let slices = (first..first + count).map(|n| {
            let bytes = Bytes::from(vec![n as u8; 600]);
            let object = ObjectId { incarnation: 0, session, n };
            let (seal, stored) = seal::seal(SliceId { object, index: 0 }, Compression::None, &bytes);
            let slice = Slice { offset: 0, len: 600, skip: 0, place: Place::Staged(seal) };
            NewSlice { block: n as u32, slice, staged: Some(stored) }
        });
        let slices = slices.collect();
        let request =
            Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None };
        self.call(1, id, request).1.unwrap();
    }

    /// A second passes.
    fn second(&mut self) -> Vec<PackJob> {
        self.now_ns += SECOND;
        let job = |effect| if let Effect::Pack(job) = effect { Some(*job) } else { None };
        self.run(Event::Tick).into_iter().filter_map(job).collect()
    }

    /// Up to so many seconds, each durable, until there is something to be packed.
    fn until_packing(&mut self, seconds: u32) -> Option<PackJob> {
        (0..seconds).find_map(|_| {
            self.durable();
            self.second().pop()
        })
    }

    fn built(&self, job: &PackJob) -> Packed {
        let Source::Staged(from) = &job.source else { panic!("{job:?}") };
        build_pack(job, from, self.core.engine.view()).unwrap().1
    }

    fn staged(&self) -> u64 {
        let reads = SharedView(self.core.engine.view());
        let Tally { staged, .. } = chronofs_namespace::tally(&reads, INDEX).unwrap();
        let faults = chronofs_namespace::verify(&reads).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        staged.count
    }

    fn judged(&self, object: ObjectId) -> Judged {
        let reads = SharedView(self.core.engine.view());
        let volume = chronofs_namespace::volume(&reads, INDEX).unwrap().unwrap();
        judge(&reads, INDEX, &volume, object, Version::ZERO).unwrap()
    }
}

fn with_staged(count: u64) -> (Server, Ino, SessionId) {
    with_staged_in(Server::start(Arc::new(Memory::default()), START_NS, false), count)
}

fn with_staged_in(mut server: Server, count: u64) -> (Server, Ino, SessionId) {
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    server.stage(2, ino, session, (0, count));
    (server, ino, session)
}

#[test]
fn slices_are_packed_a_minute_after_the_first_of_them_came_and_not_before_the_name_is_durable() {
    let (mut server, ino, session) = with_staged(2500);
    assert!(server.until_packing(58).is_none());
    // Its name is not durable.
    for _ in 0..5 {
        assert!(server.second().is_empty());
    }
    let job = server.until_packing(1).expect("the name is durable");
    let packed = server.built(&job);
    assert_eq!((packed.slices, packed.next.is_some()), (2500, false));
    assert_eq!(server.judged(job.object), Judged::Open);
    server.stage(3, ino, session, (5000, 3));
    server.run(Event::Packed(Box::new(job.clone()), Ok(packed)));
    assert_eq!(server.staged(), 2503, "not in the commit of the event");
    let left: Vec<u64> = (0..3)
        .map(|_| {
            server.second();
            server.staged()
        })
        .collect();
    assert_eq!(left, [1479, 455, 3], "no commit moves all of them");
    assert_eq!(server.judged(job.object), Judged::Known);
    assert!(server.until_packing(50).is_none(), "what came since waits its own minute");
    assert!(server.until_packing(15).is_some());
}

#[test]
fn so_many_bytes_are_packed_before_the_minute_is_over_and_never_more_of_them_into_one_object() {
    // Ten slices of 600 bytes, as they are stored, and no more.
    let config = Config { boot: START_NS, pack_bytes: 6_100, ..Config::default() };
    let server = Server::start_as(Arc::new(Memory::default()), START_NS, false, config);
    let (mut server, ino, session) = with_staged_in(server, 10);
    assert!(server.until_packing(30).is_none(), "6,000 are not so many");
    server.stage(3, ino, session, (10, 15));
    let mut taken = Vec::new();
    while server.staged() > 0 {
        // It does not wait for a minute, nor does what the last object left.
        let job = server.until_packing(5).expect("it is packed at once");
        assert_eq!(job.bytes_max, 6_100);
        let Source::Staged(from) = &job.source else { panic!("{job:?}") };
        let (object, packed) = build_pack(&job, from, server.core.engine.view()).unwrap();
        assert!(object.len() < 6_100 + 64 * (packed.slices + 2), "and what says what is in it");
        taken.push((packed.slices, packed.next.is_some()));
        server.run(Event::Packed(Box::new(job), Ok(packed)));
        server.second();
    }
    assert_eq!(taken, [(10, true), (10, true), (5, false)]);
}

#[test]
fn beside_clients_fewer_slices_are_moved_at_a_time() {
    let (mut server, ..) = with_staged(1500);
    let job = server.until_packing(65).unwrap();
    let packed = server.built(&job);
    server.run(Event::Packed(Box::new(job), Ok(packed)));
    let left: Vec<u64> = (0..3)
        .map(|_| {
            server.busy_tick(1);
            server.staged()
        })
        .collect();
    assert_eq!(left, [1244, 988, 732]);
    server.second();
    assert_eq!(server.staged(), 0);
}

#[test]
fn a_failed_object_is_tried_again_under_another_name_and_found_as_garbage() {
    let (mut server, ..) = with_staged(10);
    let first = server.until_packing(65).unwrap();
    server.run(Event::Packed(Box::new(first.clone()), Err("503".to_owned())));
    let shown = server.core.machine.volume(INDEX).unwrap().packing().clone();
    assert_eq!(shown.problem.as_deref(), Some("503"));
    let second = server.until_packing(20).unwrap();
    assert_ne!(first.object, second.object);
    assert_eq!(server.judged(first.object), Judged::Garbage);
    // The answer to the first comes late, and changes nothing.
    server.run(Event::Packed(Box::new(first.clone()), Ok(server.built(&first))));
    server.second();
    assert_eq!(server.staged(), 10);
    server.run(Event::Packed(Box::new(second.clone()), Ok(server.built(&second))));
    server.second();
    assert_eq!(server.staged(), 0);
    assert_eq!(server.judged(second.object), Judged::Known);
    let beyond = ObjectId { n: second.object.n + 1, ..second.object };
    assert!(matches!(server.judged(beyond), Judged::Quarantined(_)));
}

#[test]
fn what_an_earlier_start_was_packing_is_over() {
    let (mut server, ..) = with_staged(10);
    let job = server.until_packing(65).unwrap();
    assert_eq!(server.judged(job.object), Judged::Open);
    let packed = server.built(&job);
    let mut server = Server::start(server.core.engine, server.now_ns, false);
    assert_eq!(server.judged(job.object), Judged::Garbage);
    server.run(Event::Packed(Box::new(job), Ok(packed)));
    server.second();
    assert_eq!(server.staged(), 10);
}

#[test]
fn a_server_that_is_not_known_to_own_its_store_packs_nothing() {
    let server = Server::start_with(Arc::new(Memory::default()), START_NS, false, true);
    let (mut server, ..) = with_staged_in(server, 10);
    assert!(server.until_packing(200).is_none(), "an owner elsewhere would give its names to other bytes");
    let packs = |_| {
        server.run(Event::Owner(true));
        server.until_packing(30).is_some()
    };
    assert!((0..3).any(packs), "a minute after it knew");
}
