//! Deleted volumes: kept, taken back, or given up, and never because nobody speaks of them.

use super::*;
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::{ObjectId, SliceId, VolumeIndex};
use chronofs_meta::machine::{DeletedObjects, LeavingShown};
use chronofs_wire::admin::Assignment;
use uuid::Uuid;

const INDEX: VolumeIndex = VolumeIndex(1);

impl Server {
    fn told(&mut self, change: impl FnOnce(&mut Assignment)) {
        let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
        change(&mut assignment);
        self.run(Event::Assignment(Box::new(assignment)));
        self.run(Event::Tick);
        self.durable();
    }

    pub fn deleted(&mut self, given_up: bool) {
        let after_s = given_up.then_some(0);
        self.told(|assignment| {
            (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, after_s)
        });
    }

    /// Time passes, the admin server says who owns the store, and the store deletes what it is handed out.
    pub fn minutes(&mut self, minutes: u64) -> Vec<ObjectId> {
        let mut deleted = Vec::new();
        for _ in 0..minutes * 2 {
            self.now_ns += 30 * SECOND;
            self.run(Event::Owner(true));
            self.durable();
            for effect in self.run(Event::Tick) {
                let Effect::Delete(job) = effect else { continue };
                deleted.extend(&job.objects);
                let (volume, asked) = (job.volume, job.objects.clone());
                let done = DeletedObjects { volume, asked, deleted: job.objects, failure: None };
                self.run(Event::Deleted(Box::new(done)));
            }
        }
        deleted
    }

    /// Rows of the volume but its own, live and past.
    fn rows(&self) -> usize {
        let all = self.core.engine.view().scan(&[], &[0xff], usize::MAX).unwrap();
        let belongs = |key: &[u8]| {
            let key = key.strip_prefix(&[0x80]).unwrap_or(key);
            key.get(1..5) == Some(&INDEX.0.to_be_bytes())
        };
        all.iter().filter(|(key, _)| belongs(key)).count()
    }

    fn leaving(&self) -> Option<LeavingShown> {
        self.core.machine.volume(INDEX).unwrap().leaving()
    }

    fn again(self) -> Server {
        let engine = self.core.engine.clone();
        let found = Found { recovered: Vec::new(), maybe_lost: false, last_commit: engine.applied() };
        let config = Config { boot: self.now_ns, asks_admin: true, ..Config::default() };
        let (reads, now_ns) = (SharedView(engine.view()), self.now_ns + SECOND);
        let machine = Machine::new(config, &reads, engine.applied(), found, now_ns.into()).unwrap();
        Server { core: Core { machine, engine }, now_ns, pins: self.pins }
    }

    fn verified(&self) {
        let faults = chronofs_namespace::verify(&SharedView(self.core.engine.view())).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

/// A server with files, their past, one object, and nobody who uses them.
pub fn with_files() -> (Server, ObjectId) {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let inos: Vec<Ino> = (0..2500)
        .map(|n| attr(server.call(1, n + 1, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap()).ino)
        .collect();
    let object = ObjectId { incarnation: 0, session, n: 5 };
    let id = SliceId { object, index: 0 };
    let seal = Seal { id, codec: Codec::Raw, stored_len: 100, full_len: 100, crc32c: 1 };
    let slice = Slice { offset: 0, len: 100, skip: 0, place: Place::Object(seal, 0) };
    let slices = vec![NewSlice { block: 0, slice, staged: None }];
    let (size_min, mtime_ns) = (None, None);
    let publish =
        Request::Publish { ino: inos[0], slices, size_min, mtime_ns, kill_priv: false, merge: None };
    server.call(1, 3000, publish).1.unwrap();
    server.call(1, 3001, Request::Unlink { parent: Ino::ROOT, name: name("f1") }).1.unwrap();
    server.frame(1, ToServer::Goodbye);
    server.durable();
    // Beside clients everything goes slowly.
    server.now_ns += 60 * SECOND;
    (server, object)
}

#[test]
fn a_volume_that_is_deleted_or_not_mentioned_keeps_all_for_as_long_as_nothing_else_is_said() {
    let (mut server, _) = with_files();
    server.told(|assignment| assignment.volumes.clear());
    assert_eq!((server.minutes(180), server.leaving()), (vec![], None), "unknown is not deleted");
    server.deleted(false);
    let before = server.rows();
    assert_eq!(server.minutes(3000), []);
    assert_eq!(server.rows(), before);
    assert!(server.leaving().unwrap().kept);
    let mut server = server.again();
    // Another one is given up: that says nothing of this one.
    server.told(|assignment| {
        assignment.volumes[0].spec.id = Uuid::from_u128(77);
        (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(0));
    });
    server.told(|assignment| assignment.volumes.clear());
    assert_eq!(server.minutes(180), []);
    assert_eq!(server.rows(), before);
    let asked = server.run(Event::Hello(ConnId(7), Box::new(hello(7))));
    let [Effect::AskAdmin(question)] = asked[..] else { panic!("{asked:?}") };
    assert!(refusal(&server.run(Event::AdminAsked(question, None)), 7).is_some(), "nobody reaches it");

    server.told(|_| {});
    assert!(server.leaving().is_none());
    server.open(8, hello(8)).expect("it is there again");
    server.call(8, 1, Request::Lookup { parent: Ino::ROOT, name: name("f899") }).1.unwrap();
    server.verified();
}

#[test]
fn what_lost_its_last_open_while_the_volume_was_deleted_goes_when_it_is_back() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    server.call(1, 2, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    let orphans = |server: &Server| {
        chronofs_namespace::list_orphans(&SharedView(server.core.engine.view()), INDEX).unwrap().len()
    };
    server.deleted(false);
    server.minutes(60);
    assert_eq!((orphans(&server), server.core.machine.figures().sessions), (1, 0), "{ino:?}");
    server.told(|_| {});
    server.run(Event::Tick);
    assert_eq!(orphans(&server), 0);
    server.verified();
}

#[test]
fn a_volume_that_is_given_up_goes_in_steps_its_objects_ten_minutes_later_and_then_its_last_rows() {
    let (mut server, object) = with_files();
    server.deleted(false);
    let before = server.rows();
    server.deleted(true);
    // A tick takes 4 commits of 512 rows.
    assert!(server.rows() > 0 && before > 7000, "{before}");
    let mut least = before;
    for _ in 0..3 {
        server.run(Event::Tick);
        assert!(least - server.rows() <= 2048 + 8 && server.rows() < least, "{least}");
        least = server.rows();
        // In the middle of it the server dies, and nobody speaks of the volume any more: the word was said.
        server = server.again();
        server.run(Event::Owner(true));
        server.durable();
    }
    let tell = |server: &mut Server| server.told(|assignment| assignment.volumes[0].deleted = false);
    tell(&mut server);
    assert!(!server.leaving().unwrap().kept, "too late");
    let volume = server.core.machine.volume(INDEX).unwrap();
    let report = server.core.machine.report_of_deleted(volume).unwrap();
    assert!(report.problem.is_some() && !report.gone);

    server.run(Event::NoneFound(common::VOLUME));
    assert!(server.rows() > 0, "a look that saw nothing is no proof");
    let mut deleted = Vec::new();
    for _ in 0..4 {
        deleted.extend(server.minutes(6));
        server.verified();
    }
    assert_eq!(deleted, [object]);
    assert!(server.leaving().unwrap().rows_gone && server.rows() > 0);
    assert!(server.core.machine.is_emptied(&SharedView(server.core.engine.view())));
    server.run(Event::NoneFound(common::VOLUME));
    assert_eq!(server.rows(), 0);
    server.durable();
    let volume = server.core.machine.volume(INDEX).unwrap();
    assert!(volume.row.is_gone() && server.core.machine.report_of_deleted(volume).unwrap().gone);
    server.verified();
}

#[test]
fn a_volume_that_is_given_up_and_still_held_says_by_whom_here_and_to_the_admin_server() {
    let (mut server, _) = with_files();
    let (at, id) = (server.core.machine.last(), Uuid::from_u128(1));
    let hold = format!("brake: {} of 9 files 8 were removed within an hour", Uuid::from_u128(9));
    let pinned = server.core.decide(server.now_ns, |machine, group| {
        machine.keep_instants(group, (common::VOLUME, id), (at, at), None, &hold)?.unwrap();
        Ok(())
    });
    pinned.unwrap();
    server.deleted(false);
    assert_eq!(server.leaving().unwrap().needed, None, "it is kept as it is");
    server.deleted(true);
    server.deleted(true);
    server.minutes(1);
    let needed = server.leaving().unwrap().needed.unwrap();
    assert!(needed.contains(&format!("brake {}", Uuid::from_u128(9))), "{needed}");
    let volume = server.core.machine.volume(INDEX).unwrap();
    let report = server.core.machine.report_of_deleted(volume).unwrap();
    assert!(report.given_up && report.problem == Some(needed), "{report:?}");
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, id)?.unwrap();
        Ok(())
    });
    released.unwrap();
    server.minutes(1);
    assert_eq!(server.leaving().unwrap().needed, None);
}

#[test]
fn nothing_goes_before_it_is_durable_that_the_volume_is_given_up_and_while_a_pin_needs_it() {
    let (mut server, _) = with_files();
    let (at, id) = (server.core.machine.last(), Uuid::from_u128(1));
    let pinned = server.core.decide(server.now_ns, |machine, group| {
        machine.keep_instants(group, (common::VOLUME, id), (at, at), None, "a snapshot")?.unwrap();
        Ok(())
    });
    pinned.unwrap();
    server.deleted(true);
    server.deleted(true);
    assert!(!server.leaving().unwrap().kept);
    let before = server.rows();
    assert_eq!((server.minutes(120), server.rows()), (vec![], before));
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, id)?.unwrap();
        Ok(())
    });
    released.unwrap();
    assert_eq!(server.minutes(120).len(), 1);

    let (mut server, _) = with_files();
    // One that lies in the store alone needs it, too, and what cannot be read may be one.
    server.pins = Some(Err("its pins cannot be read".to_owned()));
    server.deleted(true);
    server.deleted(true);
    let before = server.rows();
    assert!(!server.leaving().unwrap().kept);
    assert_eq!((server.minutes(60), server.rows()), (vec![], before));

    let (mut server, _) = with_files();
    server.deleted(false);
    let before = server.rows();
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(0));
    server.run(Event::Assignment(Box::new(assignment)));
    for _ in 0..3 {
        server.run(Event::Tick);
        assert_eq!(server.rows(), before);
    }
    server.durable();
    server.run(Event::Tick);
    assert!(server.rows() < before);
}

/// An admin server that was restored from an old copy speaks of a deletion that was taken back long ago.
#[test]
fn a_volume_is_kept_for_its_time_from_when_this_server_heard_of_it() {
    let (mut server, _) = with_files();
    let before = server.rows();
    let due = |assignment: &mut Assignment| {
        (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(7200))
    };
    server.told(due);
    for _ in 0..2 {
        server.minutes(50);
        assert!(server.leaving().unwrap().kept && server.rows() == before);
    }
    let mut server = server.again();
    server.told(|assignment| assignment.volumes.clear());
    server.minutes(50);
    assert!(server.leaving().unwrap().kept, "nobody says any more that it may go");
    server.told(due);
    server.minutes(50);
    assert!(server.leaving().unwrap().kept, "nor did anybody for an hour");
    server.minutes(12);
    assert!(!server.leaving().unwrap().kept && server.rows() < before);
}

#[test]
fn a_word_that_nobody_has_said_lately_gives_up_nothing() {
    let (server, _) = with_files();
    let mut server = server.again();
    server.deleted(true);
    assert!(server.leaving().unwrap().kept, "this start may not be the owner, and the word an old one");
    server.run(Event::Owner(true));
    server.run(Event::Tick);
    assert!(!server.leaving().unwrap().kept);
}

impl Server {
    /// As [`Server::minutes`], with a wall clock that is ahead by so much.
    fn minutes_ahead(&mut self, minutes: u64, ahead_ns: u64) {
        for _ in 0..minutes * 2 {
            self.now_ns += 30 * SECOND;
            let now = Now { wall_ns: self.now_ns + ahead_ns, steady_ns: self.now_ns };
            self.core.run(now, vec![Event::Owner(true), Event::Tick], &mut |_| ()).unwrap();
            self.durable();
        }
    }
}

/// A clock that jumps ahead, here and at the admin server, has the time of every deleted volume be over at once.
#[test]
fn a_clock_that_was_wrong_gives_up_nothing_before_somebody_can_see_it() {
    const YEAR_NS: u64 = 365 * 24 * 3600 * SECOND;
    let due = |assignment: &mut Assignment| {
        (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(7 * 24 * 3600))
    };
    let (mut server, _) = with_files();
    server.deleted(false);
    // For a moment: what was committed meanwhile has a version of next year, and so has all that follows.
    let ahead = Now { wall_ns: server.now_ns + YEAR_NS, steady_ns: server.now_ns };
    server.core.stop(ahead).unwrap();
    assert!(server.core.machine.last().0 > server.now_ns + YEAR_NS / 2);
    server.told(due);
    server.minutes(180);
    assert!(server.leaving().unwrap().kept, "the clock is right again");
    // Until it is seen: then the word is taken back, and said again later.
    server.minutes_ahead(50, YEAR_NS);
    server.deleted(false);
    server.told(due);
    server.minutes_ahead(50, YEAR_NS);
    assert!(server.leaving().unwrap().kept, "it was not said for an hour");
    let mut server = server.again();
    server.told(due);
    server.minutes_ahead(50, YEAR_NS);
    assert!(server.leaving().unwrap().kept, "nor since this start");
    server.minutes_ahead(20, YEAR_NS);
    assert!(!server.leaving().unwrap().kept);
}

#[test]
fn the_admin_server_is_told_that_a_volume_goes_or_is_gone_when_that_is_durable() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine, START_NS, false);
    server.durable();
    let told = |server: &Server| {
        let volume = server.core.machine.volume(INDEX).unwrap();
        let report = server.core.machine.report_of_deleted(volume);
        report.map(|report| (report.given_up, report.gone))
    };
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(0));
    server.run(Event::Assignment(Box::new(assignment)));
    server.run(Event::Tick);
    assert!(!server.leaving().unwrap().kept);
    assert_eq!(told(&server), None);
    server.durable();
    assert_eq!(told(&server), Some((true, false)));
    server.minutes(30);
    server.run(Event::NoneFound(common::VOLUME));
    assert!(server.core.machine.volume(INDEX).unwrap().row.is_gone());
    assert_eq!(told(&server), Some((true, false)), "a power cut would bring its rows back");
    server.durable();
    assert_eq!(told(&server), Some((true, true)));
}

/// Counts the places that are looked at and the rows that are found there.
#[derive(Default)]
struct Counted(Memory, Arc<AtomicU64>);

struct CountedView(Arc<dyn View>, Arc<AtomicU64>);

impl chronofs_engine::Reads for CountedView {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, chronofs_engine::ReadStop> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.get(key)
    }
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, chronofs_engine::ReadStop> {
        let rows = self.0.scan(from, to, limit)?;
        self.1.fetch_add(1 + rows.len() as u64, Ordering::SeqCst);
        Ok(rows)
    }
    fn first(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> Result<Option<(bytes::Bytes, bytes::Bytes)>, chronofs_engine::ReadStop> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.first(from, to)
    }
}

impl View for CountedView {
    fn version(&self) -> Version {
        self.0.version()
    }
}

impl Engine for Counted {
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError> {
        self.0.apply(commits)
    }
    fn view(&self) -> Arc<dyn View> {
        Arc::new(CountedView(self.0.view(), self.1.clone()))
    }
    fn applied(&self) -> Version {
        self.0.applied()
    }
    fn durable(&self) -> Version {
        self.0.durable()
    }
    fn sync(&self) -> Result<Version, EngineError> {
        self.0.sync()
    }
    fn recovered(&self) -> Vec<Recovered> {
        self.0.recovered()
    }
    fn mark(&self, version: Version) -> Result<(), EngineError> {
        self.0.mark(version)
    }
}

#[test]
fn neither_a_tick_nor_a_request_of_the_server_looks_at_volumes_that_are_gone() {
    let engine = Arc::new(Counted::default());
    let reads = engine.1.clone();
    let mut server = Server::start(engine, START_NS, false);
    let looks = |server: &mut Server| {
        server.minutes(1);
        server.now_ns += SECOND;
        server.durable();
        let before = reads.load(Ordering::SeqCst);
        server.run(Event::Tick);
        let released = server.core.decide(server.now_ns, |machine, group| {
            machine.release_instants(group, common::VOLUME, Uuid::from_u128(1))?.unwrap();
            Ok(())
        });
        released.unwrap();
        reads.load(Ordering::SeqCst) - before
    };
    server.told(|assignment| assignment.volumes.clear());
    let one = looks(&mut server);
    let each = |deleted: bool| {
        move |assignment: &mut Assignment| {
            let first = assignment.volumes.remove(0);
            assignment.volumes = (0..50u128)
                .map(|n| {
                    let mut volume = first.clone();
                    (volume.spec.id, volume.spec.name) = (Uuid::from_u128(1000 + n), format!("v{n}"));
                    (volume.deleted, volume.give_up_after_s) = (deleted, deleted.then_some(0));
                    volume
                })
                .collect();
        }
    };
    server.told(each(false));
    server.told(each(true));
    assert_eq!(server.core.machine.volumes().count(), 51);
    for n in 0..50 {
        let read =
            PinsRead { volume: Uuid::from_u128(1000 + n), began_ns: server.now_ns, found: Ok(Vec::new()) };
        server.run(Event::Pins(Box::new(read)));
    }
    server.minutes(30);
    for n in 0..50 {
        server.run(Event::NoneFound(Uuid::from_u128(1000 + n)));
    }
    assert_eq!(server.core.machine.volumes().filter(|volume| volume.row.is_gone()).count(), 50);
    let with_them = looks(&mut server);
    assert!(with_them < one + 10, "{with_them} reads with 50 volumes that are gone, {one} without");
}
