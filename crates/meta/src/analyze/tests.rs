//! Looks on a machine, an engine and a block store of their own. Slices are put into the rows as they are.

use super::*;
use crate::kept::tests::{Bench, VOLUME};
use crate::machine::tag::{self, Tag};
use bytes::Bytes;
use chronofs_blocks::{BlockStore, ListPage, ObjectPort, StoreError, StorePort, object_name, seal};
use chronofs_core::slice::{Place, Slice, SliceKey};
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression};
use chronofs_core::{Ino, ObjectId, Retention, SessionId, SliceId, Version};
use chronofs_engine::{Batch, Change, Commit, Engine, EngineError};
use chronofs_history::{Table, encode_plain, encode_versioned};
use chronofs_namespace::list_unproven;
use chronofs_namespace::rows::{
    COUNTERS, Counters, DIR, Dir, SLICE, STORE_WIDE, SliceRow, UNPROVEN, ino_key, slice_key,
};
use chronofs_wire::analyze::{Ended, Fate, News, Progress, RowsSeen};
use futures::future::BoxFuture;
use std::sync::Mutex;

mod discard;
mod quarantine;
mod repair;
mod salvage;

const INDEX: VolumeIndex = VolumeIndex(1);

/// A store whose listing leaves out what it likes, and in which something happens at the next read.
struct Shy {
    store: BlockStore,
    lists: bool,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ObjectPort for Shy {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.put(name, bytes)
    }
    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        let happens = self.happens.lock().unwrap().take();
        happens.into_iter().for_each(|happens| happens());
        self.store.get(name, offset, len)
    }
}

impl StorePort for Shy {
    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.replace(name, bytes)
    }
    fn whole<'a>(&'a self, name: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.store.whole(name, max)
    }
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.delete(name)
    }
    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
        match self.lists {
            true => self.store.list(from),
            false => Box::pin(async { Ok(ListPage::default()) }),
        }
    }
    fn stored_ns<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.store.stored_ns(name)
    }
    fn put_note<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.put_note(name, bytes)
    }
    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.remove_note(name)
    }
    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
        self.store.notes(folder)
    }
}

fn apply(bench: &Bench, changes: Vec<Change>) {
    let engine = bench.keeper.engine.clone();
    let tag = tag::encode(&Tag::System);
    let mut commit = Commit { version: Version::ZERO, tag, batch: Batch(changes) };
    // The server of the bench commits, too, and may do so in between.
    for _ in 0..100 {
        commit.version = Version(engine.applied().0 + 1);
        match engine.apply(vec![commit.clone()]) {
            Err(EngineError::Refused(_)) => {}
            done => return done.unwrap(),
        }
    }
    panic!("somebody is always faster");
}

fn versioned(table: Table, key: &[u8], row: &impl serde::Serialize) -> Change {
    let value = encode_versioned(Version(7), &postcard::to_stdvec(row).unwrap());
    Change::Put(table.live_key(INDEX, key), value)
}

fn object(n: u64) -> ObjectId {
    ObjectId { incarnation: 0, session: SessionId(5), n }
}

/// The row of a slice in an object of its own, its key in the engine, and the stored bytes.
fn slice(n: u64) -> (Change, Bytes, Bytes) {
    let bytes = Bytes::from(vec![n as u8; 5000]);
    let (seal, stored) = seal::seal(SliceId { object: object(n), index: 0 }, Compression::None, &bytes);
    let slice = Slice { offset: 0, len: 5000, skip: 0, place: Place::Object(seal, 0) };
    let key = slice_key(Ino(9), SliceKey { block: n as u32, version: Version(7), n: 0 });
    (versioned(SLICE, &key, &SliceRow { flags: 0, slice }), SLICE.live_key(INDEX, &key), stored)
}

fn store(bench: &Bench, lists: bool) -> Arc<Shy> {
    let folder = bench.folder.path().join("shy");
    let id = Uuid::from_u128(9);
    let store = BlockStore::create(&folder, id).or_else(|_| BlockStore::open(&folder, id)).unwrap();
    let shy = Arc::new(Shy { store, lists, happens: Mutex::default() });
    bench.keeper.collector.stores.set([(VOLUME, shy.clone() as Arc<dyn StorePort>)].into());
    shy
}

/// Follows a look to its end.
fn followed(bench: &Bench, volume: Option<Uuid>, look: Look) -> (Vec<News>, Ended) {
    bench.runtime.block_on(async {
        let looks = Looks::default();
        let number = looks.begin(bench.keeper.collector.clone(), volume, look, None).unwrap();
        let (mut seen, mut news) = (0, Vec::new());
        loop {
            let told = looks.follow(number, seen).await;
            assert!(!told.gone);
            (seen, _) = (told.upto, news.extend(told.news));
            if let Some(ended) = told.ended {
                return (news, ended);
            }
        }
    })
}

fn lost(news: &[News]) -> Vec<(u64, Fate)> {
    let of = |news: &News| if let News::Slice(fault) = news { Some((fault.from, fault.fate)) } else { None };
    news.iter().filter_map(of).collect()
}

fn blocks(deep: bool, from: Option<&Progress>) -> Look {
    Look::Blocks { deep, bytes_per_second: 0, from: from.and_then(|at| at.next.clone()) }
}

#[test]
fn what_a_listing_leaves_out_is_asked_for_and_what_is_lost_is_told() {
    let bench = Bench::new(Retention::Forever);
    let slices: Vec<_> = (0..4).map(slice).collect();
    apply(&bench, slices.iter().map(|(row, ..)| row.clone()).collect());
    for lists in [true, false] {
        let shy = store(&bench, lists);
        for (n, (.., stored)) in slices.iter().enumerate() {
            let stored = match n {
                1 => continue,
                2 => stored.slice(..4999),
                3 => Bytes::from(vec![0; 5000]),
                _ => stored.clone(),
            };
            bench.runtime.block_on(shy.put(&object_name(VOLUME, object(n as u64)), stored)).unwrap();
        }
        let block = |n: u64| n * u64::from(BLOCK_SIZE_DEFAULT);
        let quick = vec![(block(1), Fate::Missing), (block(2), Fate::Damaged)];
        let deep = [&quick[..], &[(block(3), Fate::Damaged)]].concat();
        for (is_deep, expected) in [(false, quick), (true, deep)] {
            let (news, ended) = followed(&bench, Some(VOLUME), blocks(is_deep, None));
            assert_eq!(lost(&news), expected, "lists: {lists}");
            let Ended::Whole(Sum::Blocks(sum)) = ended else { panic!("{ended:?}") };
            assert_eq!((sum.slices, sum.faults, sum.next), (4, expected.len() as u64, None));
            // Behind the page with all of them there is nothing.
            let at = news.iter().find_map(|news| match news {
                News::At(at) if at.slices == 4 => Some(at.clone()),
                _ => None,
            });
            let (news, ended) = followed(&bench, Some(VOLUME), blocks(is_deep, at.as_ref()));
            assert_eq!(lost(&news), []);
            assert!(matches!(ended, Ended::Whole(Sum::Blocks(sum)) if sum.slices == 0));
        }
    }
}

#[test]
fn what_went_by_right_meanwhile_is_not_lost() {
    let bench = Bench::new(Retention::Forever);
    let (row, key, _) = slice(1);
    apply(&bench, vec![row.clone()]);
    for lists in [true, false] {
        let shy = store(&bench, lists);
        let engine = bench.keeper.engine.clone();
        let gone = key.clone();
        *shy.happens.lock().unwrap() = Some(Box::new(move || {
            let version = Version(engine.applied().0 + 1);
            let batch = Batch(vec![Change::Delete(gone)]);
            engine.apply(vec![Commit { version, tag: tag::encode(&Tag::System), batch }]).unwrap();
        }));
        let (news, ended) = followed(&bench, Some(VOLUME), blocks(true, None));
        assert_eq!(lost(&news), []);
        assert!(matches!(ended, Ended::Whole(Sum::Blocks(sum)) if (sum.slices, sum.faults) == (1, 0)));
        apply(&bench, vec![row.clone()]);
    }
}

#[test]
fn a_volume_that_is_not_there_and_a_place_that_is_none_end_a_look() {
    let bench = Bench::new(Retention::Forever);
    for (volume, look, why) in [
        (Some(Uuid::from_u128(77)), blocks(false, None), "this server has no volume"),
        (None, blocks(false, None), "name a volume"),
        (Some(VOLUME), Look::Rows, "whole metadata store"),
        (
            Some(VOLUME),
            Look::Blocks { deep: true, bytes_per_second: 0, from: Some((&[9][..]).into()) },
            "no place in the rows",
        ),
    ] {
        let (_, ended) = followed(&bench, volume, look);
        assert!(matches!(&ended, Ended::Stopped(said) if said.contains(why)), "{ended:?}");
    }
    let looks = Looks::default();
    assert!(bench.runtime.block_on(looks.follow(1, 0)).gone);
}

#[test]
fn a_running_server_tells_each_fault_of_its_rows_and_its_folder_is_repaired_when_it_is_stopped() {
    let bench = Bench::new(Retention::Forever);
    let (news, ended) = followed(&bench, None, Look::Rows);
    let sound =
        |ended: &Ended| matches!(ended, Ended::Whole(Sum::Rows(RowsSeen { volumes: 1, faults: 0, .. })));
    assert!(sound(&ended) && news.is_empty(), "{ended:?} {news:?}");
    let dir = Dir { flags: 0, mtime_ns: 0, ctime_ns: 0, nlink: 2, entries: 5 };
    let counters = Counters { flags: 0, next_ino: 9, used_bytes: 3, used_inodes: 1 };
    let wrong =
        Change::Put(COUNTERS.live_key(INDEX, &[]), encode_plain(&postcard::to_stdvec(&counters).unwrap()));
    // The pins of the volume were read.
    let proven = Change::Delete(UNPROVEN.live_key(STORE_WIDE, &INDEX.0.to_be_bytes()));
    apply(&bench, vec![versioned(DIR, &ino_key(Ino::ROOT), &dir), wrong, proven]);
    let (news, ended) = followed(&bench, None, Look::Rows);
    let expected = [
        "volume 1 table dir key 0000000000000001: entries 5; expected 0",
        "volume 1 table counters key : used bytes 3; expected 0",
    ];
    assert_eq!(news, expected.map(|fault| News::Row(fault.to_owned())));
    assert!(matches!(ended, Ended::Whole(Sum::Rows(RowsSeen { faults: 2, .. }))), "{ended:?}");

    let Bench { runtime, keeper, folder, .. } = bench;
    keeper.engine.sync().unwrap();
    let survived = keeper.engine.applied();
    let db_folder = folder.path().join("meta");
    assert!(crate::repair(&db_folder).is_err(), "somebody has it open");
    drop((runtime, keeper));
    let repaired = crate::repair(&db_folder).unwrap();
    assert_eq!(repaired.mended, expected);
    let again = crate::repair(&db_folder).unwrap();
    assert_eq!((again.mended.len(), again.copy), (0, None));
    let opened = crate::start::open_engine(&crate::files::Folder(db_folder.clone()), None).unwrap();
    let noted = list_unproven(&SharedView(opened.view())).unwrap();
    assert_eq!(noted, [(INDEX, survived)], "the next start cannot take today's commit for what survived");
    drop(opened);
    let checking = tokio::runtime::Runtime::new().unwrap();
    let verified = checking.block_on(crate::verify(&db_folder, None)).unwrap();
    assert_eq!(verified.faults, [""; 0]);
    // The copy is the store as it was.
    let (was, copy) = (folder.path().join("was"), repaired.copy.unwrap());
    std::fs::create_dir(&was).unwrap();
    std::fs::rename(&copy, was.join("engine")).unwrap();
    let verified = checking.block_on(crate::verify(&was, None)).unwrap();
    assert_eq!(verified.faults, expected);
    // What a power cut took is to be said again first.
    std::fs::write(db_folder.join("running"), "another kernel").unwrap();
    let doubtful = crate::repair(&db_folder).unwrap_err();
    assert!(format!("{doubtful:#}").contains("went down"), "{doubtful:#}");
}
