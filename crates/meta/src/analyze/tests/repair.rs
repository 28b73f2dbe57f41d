//! What is lost is put back from wherever its bytes are, and from nowhere else; what is intact stays.

use super::*;
use chronofs_blocks::DiskCache;
use chronofs_blocks::object::{Entry, ObjectWriter};
use chronofs_core::slice::Seal;
use chronofs_wire::analyze::MendedObject;
use std::fs;
use std::path::PathBuf;

/// An object of three slices, which rows of three blocks name.
struct Three {
    changes: Vec<Change>,
    object: Bytes,
    slices: Vec<(Seal, Bytes, u64)>,
}

fn three(number: u64, first_block: u32) -> Three {
    let id = object(number);
    let mut writer = ObjectWriter::new(VOLUME, id, 0);
    let (mut changes, mut slices) = (Vec::new(), Vec::new());
    for n in 0..3u32 {
        let bytes = Bytes::from(vec![n as u8 + 1; 3000]);
        let (seal, stored) = seal::seal(SliceId { object: id, index: n }, Compression::None, &bytes);
        let (ino, block, offset, len) = (Ino(9), first_block + n, 0, 3000);
        let at = writer.push(Entry { ino, at: 0, block, offset, len, seal }, &stored);
        let slice = Slice { offset, len, skip: 0, place: Place::Object(seal, at) };
        let key = slice_key(ino, SliceKey { block, version: Version(7), n: 0 });
        changes.push(versioned(SLICE, &key, &SliceRow { flags: 0, slice }));
        slices.push((seal, stored, at));
    }
    Three { changes, object: writer.finish(), slices }
}

struct Scene {
    bench: Bench,
    three: Three,
    /// Where the object is in the store, and in a copy of it.
    file: PathBuf,
    copied: PathBuf,
    replica: PathBuf,
    cache: PathBuf,
}

impl Scene {
    /// The object is whole, in the store and in a copy of it; a cache has its first slice.
    fn new() -> Scene {
        let bench = Bench::new(Retention::Forever);
        let three = three(7, 10);
        apply(&bench, three.changes.clone());
        let shy = store(&bench, true);
        let name = object_name(VOLUME, object(7));
        bench.runtime.block_on(shy.put(&name, three.object.clone())).unwrap();
        bench.keeper.collector.stores.set_ids([(VOLUME, Uuid::from_u128(9))].into());
        let (replica, cache) = (bench.folder.path().join("replica"), bench.folder.path().join("cache"));
        let copy = BlockStore::create(&replica, Uuid::from_u128(9)).unwrap();
        bench.runtime.block_on(copy.put(&name, three.object.clone())).unwrap();
        let kept = DiskCache::start(&cache, 64 << 20);
        kept.put(VOLUME, &three.slices[0].0, three.slices[0].1.clone());
        kept.close();
        let (file, copied) = (bench.folder.path().join("shy").join(&name), replica.join(&name));
        Scene { bench, three, file, copied, replica, cache }
    }

    /// Repairs; gives what was put back, and the first bytes of what stays lost.
    fn repaired(&self, from: &[&str], dry_run: bool) -> (Vec<MendedObject>, Vec<u64>) {
        let named =
            |what: &str, path: &PathBuf| from.contains(&what).then(|| path.to_str().unwrap().to_owned());
        let look = Look::Repair {
            dry_run,
            deep: true,
            bytes_per_second: 0,
            from_store: named("replica", &self.replica),
            from_cache: named("cache", &self.cache),
            from_copy: None,
            from: None,
        };
        let (news, ended) = followed(&self.bench, Some(VOLUME), look);
        let left: Vec<u64> = lost(&news).into_iter().map(|(from, _)| from).collect();
        let Ended::Whole(Sum::Blocks(sum)) = ended else { panic!("{ended:?}") };
        assert_eq!(sum.faults, left.len() as u64);
        let mended = news.into_iter().filter_map(|news| match news {
            News::Mended(mended) => Some(*mended),
            _ => None,
        });
        (mended.collect(), left)
    }

    fn is_whole(&self) -> bool {
        let (news, _) = followed(&self.bench, Some(VOLUME), blocks(true, None));
        lost(&news).is_empty()
    }
}

/// The object with one byte of a slice changed.
fn flipped(three: &Three, slice: usize) -> Vec<u8> {
    let mut bytes = three.object.to_vec();
    bytes[three.slices[slice].2 as usize + 100] ^= 4;
    bytes
}

#[test]
fn an_object_that_is_gone_cut_or_changed_is_put_back_from_a_copy_of_the_store_byte_for_byte() {
    let scene = Scene::new();
    let whole = scene.three.object.clone();
    assert_eq!(scene.repaired(&["replica"], false), (vec![], vec![]), "nothing is lost");
    let damages: [(Option<Vec<u8>>, Fate, u64); 5] = [
        (None, Fate::Missing, 3),
        (Some(whole[..4000].to_vec()), Fate::Damaged, 2),
        (Some(Vec::new()), Fate::Damaged, 3),
        (Some(flipped(&scene.three, 1)), Fate::Damaged, 1),
        (Some(vec![7; whole.len()]), Fate::Damaged, 3),
    ];
    for (damaged, fate, slices) in damages {
        match &damaged {
            Some(bytes) => fs::write(&scene.file, bytes).unwrap(),
            None => fs::remove_file(&scene.file).unwrap(),
        }
        let (would, left) = scene.repaired(&["replica"], true);
        assert_eq!(fs::read(&scene.file).ok(), damaged, "a dry run changes nothing");
        let (mended, left_then) = scene.repaired(&["replica"], false);
        assert_eq!((&mended, &left_then), (&would, &left));
        let [mended] = &mended[..] else { panic!("{mended:?}") };
        assert_eq!((mended.fate, mended.slices, mended.left, left.len()), (fate, slices, 0, 0));
        assert_eq!(mended.bytes, slices * 3000);
        assert!(mended.from[0].contains("replica"), "{mended:?}");
        assert!(fs::read(&scene.file).unwrap() == whole[..]);
        assert!(scene.is_whole());
    }
}

#[test]
fn more_rows_than_are_held_in_memory_at_once_are_put_back_object_by_object() {
    let scene = Scene::new();
    for (number, block) in [(8, 20), (9, 30)] {
        let more = three(number, block);
        apply(&scene.bench, more.changes);
        let copied = scene.replica.join(object_name(VOLUME, object(number)));
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        fs::write(copied, &more.object).unwrap();
    }
    fs::remove_file(&scene.file).unwrap();
    let (mended, left) = scene.repaired(&["replica"], false);
    let slices: Vec<u64> = mended.iter().map(|object| object.slices).collect();
    assert_eq!((slices, left), (vec![3, 3, 3], vec![]), "{mended:?}");
    assert!(scene.is_whole());
}

#[test]
fn what_no_source_has_rightly_is_told_and_nothing_wrong_is_put_back() {
    let scene = Scene::new();
    let block = |n: u64| n * u64::from(BLOCK_SIZE_DEFAULT);
    fs::remove_file(&scene.file).unwrap();
    // The copy is damaged in just as many places.
    fs::write(&scene.copied, vec![9; scene.three.object.len()]).unwrap();
    assert_eq!(scene.repaired(&["replica"], false), (vec![], vec![block(10), block(11), block(12)]));
    assert!(!scene.file.exists());
    fs::remove_file(&scene.copied).unwrap();
    assert_eq!(scene.repaired(&["replica"], false).1.len(), 3);
    // A copy of another store is none.
    let other = scene.bench.folder.path().join("other");
    BlockStore::create(&other, Uuid::from_u128(10)).unwrap();
    for (from_store, from_cache, why) in [
        (Some(other.to_str().unwrap().to_owned()), None, "names the store"),
        (Some("/nowhere".to_owned()), None, "cannot be used"),
        (None, Some("/nowhere".to_owned()), "cannot be read"),
        (None, Some("nowhere".to_owned()), "no absolute path"),
    ] {
        let look = Look::Repair {
            dry_run: false,
            deep: false,
            bytes_per_second: 0,
            from_store,
            from_cache,
            from_copy: None,
            from: None,
        };
        let (_, ended) = followed(&scene.bench, Some(VOLUME), look);
        assert!(matches!(&ended, Ended::Stopped(said) if said.contains(why)), "{ended:?}");
    }
}

#[test]
fn parts_of_an_object_come_from_several_places_one_after_the_other() {
    let scene = Scene::new();
    let block = |n: u64| n * u64::from(BLOCK_SIZE_DEFAULT);
    fs::remove_file(&scene.file).unwrap();
    // The cache has one slice only: the rest stays lost, and that one can be read.
    let (mended, left) = scene.repaired(&["cache"], false);
    assert_eq!((mended[0].fate, mended[0].slices, mended[0].left), (Fate::Missing, 1, 2));
    assert_eq!(left, [block(11), block(12)]);
    let (news, _) = followed(&scene.bench, Some(VOLUME), blocks(true, None));
    assert_eq!(lost(&news).len(), 2);
    // Of the copy the second slice is damaged: what was put back stays, the third comes.
    fs::write(&scene.copied, flipped(&scene.three, 1)).unwrap();
    let (mended, left) = scene.repaired(&["replica", "cache"], false);
    assert_eq!((mended[0].fate, mended[0].slices, mended[0].left), (Fate::Damaged, 1, 1));
    assert_eq!(left, [block(11)]);
    fs::write(&scene.copied, &scene.three.object).unwrap();
    let (mended, left) = scene.repaired(&["replica"], false);
    assert_eq!((mended[0].slices, left.len()), (1, 0));
    assert!(scene.is_whole());
    assert!(fs::read(&scene.file).unwrap() == scene.three.object[..], "also its index");
}

#[test]
fn what_no_row_names_stays_as_it_is() {
    let scene = Scene::new();
    // The row of the second slice is gone; a clone may still name it.
    let Change::Put(key, _) = &scene.three.changes[1] else { panic!("a row is put") };
    apply(&scene.bench, vec![Change::Delete(key.clone())]);
    let mut damaged = flipped(&scene.three, 0);
    let unnamed = scene.three.slices[1].2 as usize + 5;
    damaged[unnamed] = 77;
    fs::write(&scene.file, &damaged).unwrap();
    let (mended, left) = scene.repaired(&["cache"], false);
    assert_eq!((mended[0].slices, left.len()), (1, 0));
    let found = fs::read(&scene.file).unwrap();
    assert_eq!((found.len(), found[unnamed]), (damaged.len(), 77));
    assert!(scene.is_whole());
}

#[test]
fn a_copy_that_is_damaged_where_no_row_says_so_takes_nothing_from_an_intact_object() {
    let scene = Scene::new();
    let Change::Put(key, _) = &scene.three.changes[1] else { panic!("a row is put") };
    apply(&scene.bench, vec![Change::Delete(key.clone())]);
    fs::write(&scene.file, flipped(&scene.three, 0)).unwrap();
    fs::write(&scene.copied, flipped(&scene.three, 1)).unwrap();
    let (mended, left) = scene.repaired(&["replica"], false);
    assert_eq!((mended[0].slices, left.len()), (1, 0));
    assert!(fs::read(&scene.file).unwrap() == scene.three.object[..], "the unnamed slice is as it was");
}
