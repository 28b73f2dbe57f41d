//! A clone copies what it needs of its source's objects: afterwards all that its rows name, at every instant, lies in objects
//! of its own, and nothing of the source was changed.

use super::collect::{INDEX, jobs};
use super::restored::clone_of;
use super::*;
use bytes::Bytes;
use chronofs_blocks::object::{Entry, ObjectWriter};
use chronofs_blocks::seal;
use chronofs_core::volume::Compression;
use chronofs_core::{ObjectId, SliceId};
use chronofs_meta::machine::{CopyingShown, PackJob, Source};
use chronofs_meta::pack::{Repacker, build_pack};
use chronofs_namespace::{Foreign, HeldFrom, foreign_objects, held_slices};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A slice that rows name, and in an object of which incarnation its bytes lie.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    ino: Ino,
    block: u32,
    since: Version,
    until: Option<Version>,
    stored: Bytes,
    lies_in: u16,
}

/// What is in the block store that source and clone share.
type Blocks = BTreeMap<ObjectId, Bytes>;

impl Server {
    /// Writes blocks of a file as one object of the session behind connection 1.
    fn write(
        &mut self,
        blocks: &mut Blocks,
        id: u64,
        ino: Ino,
        object: ObjectId,
        range: std::ops::Range<u32>,
    ) {
        let mut writer = ObjectWriter::new(common::VOLUME, object, 0);
        let slices = range.zip(0..).map(|(block, index)| {
            let bytes = Bytes::from(vec![(id + u64::from(block)) as u8; 600]);
            let (seal, stored) = seal::seal(SliceId { object, index }, Compression::None, &bytes);
            let at = writer.push(Entry { ino, at: 0, block, offset: 0, len: 600, seal }, &stored);
            let slice = Slice { offset: 0, len: 600, skip: 0, place: Place::Object(seal, at) };
            NewSlice { block, slice, staged: None }
        });
        let slices = slices.collect();
        blocks.insert(object, writer.finish());
        let request =
            Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None };
        self.call(1, id, request).1.unwrap();
    }

    fn stage_one(&mut self, id: u64, ino: Ino, object: ObjectId, block: u32) {
        let bytes = Bytes::from(vec![id as u8; 600]);
        let (seal, stored) = seal::seal(SliceId { object, index: 0 }, Compression::None, &bytes);
        let slice = Slice { offset: 0, len: 600, skip: 0, place: Place::Staged(seal) };
        let slices = vec![NewSlice { block, slice, staged: Some(stored) }];
        let request =
            Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None };
        self.call(1, id, request).1.unwrap();
    }

    /// A second passes; what is to be packed then. Nothing is deleted.
    fn a_second(&mut self) -> Option<PackJob> {
        self.now_ns += SECOND;
        self.durable();
        let effects = self.run(Event::Tick);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Delete(_))), "{effects:?}");
        effects.into_iter().find_map(|effect| if let Effect::Pack(job) = effect { Some(*job) } else { None })
    }

    fn until_job(&mut self, seconds: u32) -> Option<PackJob> {
        (0..seconds).find_map(|_| self.a_second())
    }

    /// What the server tells of a job that is carried out now.
    fn carried_out(&self, blocks: &mut Blocks, job: PackJob) -> Event {
        let view = self.core.engine.view();
        let (bytes, packed) = match &job.source {
            Source::Staged(from) => build_pack(&job, from, view).unwrap(),
            Source::Objects(sources) => {
                let mut repacker = Repacker::new(&job, view);
                for source in sources {
                    match blocks.get(&source.id) {
                        Some(bytes) => drop(repacker.add(source, bytes.clone())),
                        None => repacker.leave(source.id, "there is no such file"),
                    }
                }
                repacker.finish()
            }
        };
        assert!(blocks.insert(job.object, bytes).is_none(), "{} is stored twice", job.object);
        Event::Packed(Box::new(job), Ok(packed))
    }

    /// So many seconds pass, and what is to be packed is.
    fn copy_for(&mut self, blocks: &mut Blocks, seconds: u32) {
        for _ in 0..seconds {
            if let Some(job) = self.a_second() {
                let told = self.carried_out(blocks, job);
                self.run(told);
            }
        }
    }

    fn say_copy(&mut self, copy_restored: bool) {
        let assignment = common::assignment(std::path::Path::new("/nowhere"));
        self.run(Event::Assignment(Box::new(chronofs_wire::admin::Assignment {
            copy_restored,
            ..assignment
        })));
    }

    fn own(&self) -> u16 {
        self.core.machine.volume(INDEX).unwrap().row.incarnation
    }

    fn foreign(&self) -> Foreign {
        foreign_objects(&SharedView(self.core.engine.view()), INDEX, self.own()).unwrap()
    }

    fn shown(&mut self) -> CopyingShown {
        let now_ns = self.now_ns;
        self.core.machine.copying(INDEX, now_ns).unwrap()
    }

    /// Every slice that rows name, live and past; its bytes are right.
    fn held(&self, blocks: &Blocks) -> Vec<Held> {
        self.verify();
        let (mut all, mut from) = (Vec::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let page = held_slices(&SharedView(self.core.engine.view()), INDEX, &start, 100).unwrap();
            for held in page.0 {
                let (seal, object, at) = match held.slice.place {
                    Place::Object(seal, at) => (seal, seal.id.object, at as usize),
                    Place::Moved(seal, object, at) => (seal, object, at as usize),
                    Place::Staged(_) => continue,
                    other => panic!("{other:?}"),
                };
                let stored = blocks[&object].slice(at..at + seal.stored_len as usize);
                seal::verify(&seal, &stored).unwrap();
                all.push(Held {
                    ino: held.ino,
                    block: held.key.block,
                    since: held.since,
                    until: held.until,
                    stored,
                    lies_in: object.incarnation,
                });
            }
            from = page.1;
        }
        all
    }

    fn keep(&mut self, id: u128, at: Version) {
        let id = Uuid::from_u128(id);
        let mut kept = Ok(());
        let keeping = self.core.decide(self.now_ns, |machine, group| {
            kept = machine.keep_instants(group, (common::VOLUME, id), (at, at), None, "a set")?;
            Ok(())
        });
        keeping.unwrap();
        kept.unwrap();
    }
}

/// A source whose file has slices of the past and of now, in objects of a session and in one that the server packed.
fn source() -> (Server, Blocks, Ino, SessionId) {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let mut blocks = Blocks::new();
    let session = server.open(1, hello(1)).unwrap().session;
    let ino = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    let object = |n| ObjectId { incarnation: 0, session, n };
    server.write(&mut blocks, 2, ino, object(1), 0..6);
    server.write(&mut blocks, 3, ino, object(2), 4..8);
    for n in 10..14 {
        server.stage_one(n, ino, object(n), n as u32);
    }
    let job = server.until_job(65).unwrap();
    let told = server.carried_out(&mut blocks, job);
    server.run(told);
    server.a_second();
    server.stage_one(20, ino, object(20), 13);
    assert_eq!(server.foreign(), Foreign::default(), "it is no clone");
    (server, blocks, ino, session)
}

/// All but where it lies; without the slice that was staged and is packed meanwhile.
fn named(held: &[Held]) -> Vec<Held> {
    let born = held.iter().filter(|held| held.block != 13 || held.until.is_some());
    born.map(|held| Held { lies_in: 0, ..held.clone() }).collect()
}

#[test]
fn what_a_clone_has_copied_it_has_at_every_instant_and_needs_nothing_of_its_source() {
    let (source, mut blocks, ..) = source();
    let of_source = blocks.clone();
    let (mut server, ..) = clone_of(&source, true, [4, 5]);
    let before = server.held(&blocks);
    assert_eq!(before.len(), 6 + 4 + 4, "of live rows and past ones");
    assert_eq!(server.foreign().named.count, 3);
    // Not before somebody says so; and what is staged is not the source's.
    server.copy_for(&mut blocks, 100);
    assert_eq!(server.foreign().named.count, 3);
    server.say_copy(true);
    server.copy_for(&mut blocks, 10);
    assert_eq!(server.foreign(), Foreign { unnamed: 3, ..Foreign::default() }, "{:?}", server.shown());
    let shown = server.shown();
    assert_eq!((shown.copied.count, shown.copied.bytes, shown.waits), (3, 14 * 600, None));
    assert!(shown.bytes_per_second > 0 && shown.left.is_empty());
    let after = server.held(&blocks);
    assert!(after.iter().all(|held| held.lies_in == server.own()), "{after:?}");
    assert_eq!(named(&after), named(&before));
    // Readers may know of them for ten minutes; then nothing is known of them, and nothing was deleted.
    server.copy_for(&mut blocks, 400);
    assert_eq!(server.foreign().unnamed, 3);
    for _ in 0..60 {
        server.now_ns += 20 * SECOND;
        server.durable();
        let asked = jobs(server.run(Event::Tick)).into_iter().flat_map(|job| job.objects);
        assert!(asked.into_iter().all(|id| id.incarnation == server.own()));
    }
    assert_eq!(server.foreign(), Foreign::default());
    assert!(of_source.iter().all(|(id, bytes)| blocks[id] == *bytes));
    // Without them all is there.
    blocks.retain(|id, _| !of_source.contains_key(id));
    assert!(!server.held(&blocks).is_empty());
}

#[test]
fn a_server_that_is_killed_anywhere_goes_on_copying_and_ends_with_the_same() {
    for killed_at in 0..14 {
        let (source, mut blocks, ..) = source();
        let (mut server, ..) = clone_of(&source, true, [4, 5]);
        let before = server.held(&blocks);
        server.say_copy(true);
        for step in 0..killed_at {
            match server.a_second() {
                // Told, or stored and not told any more.
                Some(job) => {
                    let told = server.carried_out(&mut blocks, job);
                    if step % 2 == 0 {
                        server.run(told);
                    }
                }
                None => drop(server.run(Event::Tick)),
            }
        }
        server.start_again(Config::default());
        server.say_copy(true);
        server.copy_for(&mut blocks, 60);
        assert_eq!(server.foreign().named.count, 0, "{killed_at}: {:?}", server.shown());
        let after = server.held(&blocks);
        assert!(after.iter().all(|held| held.lies_in == server.own()), "{killed_at}: {after:?}");
        assert!(after.len() >= before.len());
    }
}

#[test]
fn what_is_damaged_or_missing_is_named_and_stays_until_it_is_mended() {
    let (source, mut blocks, _, session) = source();
    let (mut server, ..) = clone_of(&source, true, [4, 5]);
    let [damaged, missing] = [1, 2].map(|n| ObjectId { incarnation: 0, session, n });
    let whole = blocks[&damaged].clone();
    let mut bytes = whole.to_vec();
    bytes[700] ^= 1;
    blocks.insert(damaged, bytes.into());
    let away = blocks.remove(&missing).unwrap();
    server.say_copy(true);
    server.copy_for(&mut blocks, 30);
    assert_eq!(server.foreign().named.count, 2, "{:?}", server.foreign());
    let shown = server.shown();
    let left: Vec<&str> = shown.left.iter().map(|(name, _)| name.as_str()).collect();
    let names = [damaged, missing].map(|id| chronofs_blocks::object_name(common::VOLUME, id));
    assert_eq!(left, names, "{shown:?}");
    assert!(shown.left[0].1.contains("checksum"), "{shown:?}");
    blocks.insert(damaged, whole);
    blocks.insert(missing, away);
    server.copy_for(&mut blocks, 200);
    assert_eq!((server.foreign().named.count, server.shown().left), (0, Vec::new()));
    server.held(&blocks);
}

/// Images of the clone name the objects of the source as its rows do; those of the source are the source's business.
#[test]
fn what_is_kept_for_a_set_of_the_clone_stays_and_what_was_kept_for_one_of_the_source_is_copied() {
    let (mut source, mut blocks, ..) = source();
    let at = source.core.engine.applied();
    source.keep(1, at);
    let (mut server, ..) = clone_of(&source, true, [4, 5]);
    let now = server.core.engine.applied();
    server.keep(2, now);
    server.say_copy(true);
    server.copy_for(&mut blocks, 30);
    // The past that was over when the set was taken is not in need of it; all else is.
    assert_eq!(server.foreign().named.count, 3);
    assert!(server.shown().left.iter().all(|(_, why)| why.contains("disk snapshot")), "{:?}", server.shown());
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, Uuid::from_u128(2))?.unwrap();
        Ok(())
    });
    released.unwrap();
    server.copy_for(&mut blocks, 200);
    assert_eq!(server.foreign().named.count, 0, "{:?}", server.shown());
    server.held(&blocks);
}

#[test]
fn what_clients_change_while_it_is_copied_is_copied_in_the_next_pass() {
    let (source, mut blocks, ino, _) = source();
    let (mut server, ..) = clone_of(&source, true, [4, 5]);
    server.open(1, hello(9)).unwrap();
    server.say_copy(true);
    let job = server.until_job(10).unwrap();
    let told = server.carried_out(&mut blocks, job);
    // The file ends within a block that was copied: the row of the whole slice is of the past, and another shows a part.
    let size = Some(3 * u64::from(chronofs_core::volume::BLOCK_SIZE_DEFAULT) + 300);
    let set = chronofs_core::SetAttr { size, by_handle: true, ..chronofs_core::SetAttr::default() };
    server.call(1, 50, Request::SetAttr { ino, set }).1.unwrap();
    server.run(told);
    server.a_second();
    assert_eq!(
        server.foreign().named.count,
        1,
        "that of which more rows name something: {:?}",
        server.foreign()
    );
    server.copy_for(&mut blocks, 60);
    assert_eq!(server.foreign().named.count, 0, "{:?}", server.shown());
    assert!(server.held(&blocks).iter().all(|held| held.lies_in == server.own()));
}

#[test]
fn a_clone_copies_nothing_while_the_restore_is_not_accepted_or_pins_cannot_be_read_and_says_so() {
    let (source, mut blocks, ..) = source();
    let (mut server, ..) = clone_of(&source, false, [4, 5]);
    server.say_copy(true);
    server.copy_for(&mut blocks, 30);
    assert!(server.shown().waits.unwrap().contains("restore accept"));
    server.core.machine.accept_restore();
    server.pins = Some(Err("the bucket answers 403".to_owned()));
    server.copy_for(&mut blocks, 30);
    assert!(server.shown().waits.unwrap().contains("403"));
    assert_eq!(server.foreign().named.count, 3);
    server.pins = Some(Ok(Vec::new()));
    server.copy_for(&mut blocks, 30);
    assert_eq!((server.foreign().named.count, server.shown().waits), (0, None));
    server.say_copy(false);
    let now_ns = server.now_ns;
    assert_eq!(server.core.machine.copying(INDEX, now_ns), None);
}
