//! A block store in a folder: what it keeps, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use chronofs_blocks::store::MARKER;
use chronofs_blocks::{BlockStore, ObjectPort, Pin, StoreError, StorePort, Trouble, object_name};
use chronofs_core::{Errno, ObjectId, SessionId, Version};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

const STORE: Uuid = Uuid::from_u128(1);

fn name(n: u64) -> String {
    object_name(Uuid::from_u128(9), ObjectId { incarnation: 1, session: SessionId(2), n })
}

fn made() -> (TempDir, PathBuf, BlockStore) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = BlockStore::create(&path, STORE).unwrap();
    (folder, path, store)
}

fn assert_tells(error: &StoreError, name: &str) {
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("; "), "names object and next step: {text}");
}

#[tokio::test]
async fn an_object_is_read_back_in_ranges_also_after_opening_again() {
    let (_folder, path, store) = made();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.get(&name(1), 0, 10).await.unwrap(), "0123456789");
    let again = BlockStore::open(&path, STORE).unwrap();
    assert_eq!(again.get(&name(1), 3, 4).await.unwrap(), "3456");
    assert_eq!(fs::read(path.join(name(1))).unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_name_is_never_overwritten_but_the_same_put_may_come_again() {
    let (_folder, _path, store) = made();
    store.put(&name(1), Bytes::from_static(b"first")).await.unwrap();
    store.put(&name(1), Bytes::from_static(b"first")).await.unwrap();
    for other in [&b"other"[..], b"firs", b"first and more", b""] {
        let error = store.put(&name(1), Bytes::copy_from_slice(other)).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::Damaged);
        assert_tells(&error, &name(1));
    }
    assert_eq!(store.get(&name(1), 0, 5).await.unwrap(), "first");
}

#[tokio::test]
async fn an_object_is_replaced_at_once_and_only_where_the_store_is() {
    let (_folder, path, store) = made();
    store.put(&name(1), Bytes::from_static(b"damaged")).await.unwrap();
    let reader = fs::File::open(path.join(name(1))).unwrap();
    store.replace(&name(1), Bytes::from_static(b"as it was")).await.unwrap();
    assert_eq!(store.whole(&name(1), 100).await.unwrap(), "as it was");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "damaged", "who reads it reads on");
    assert_eq!(
        fs::read_dir(path.join(name(1)).parent().unwrap()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    assert_eq!(store.replace("../x", Bytes::new()).await.unwrap_err().trouble, Trouble::Missing);
    fs::remove_file(path.join(MARKER)).unwrap();
    let away = store.replace(&name(1), Bytes::from_static(b"elsewhere")).await.unwrap_err();
    assert_eq!(away.trouble, Trouble::Unavailable);
    assert_eq!(fs::read(path.join(name(1))).unwrap(), b"as it was");
}

#[tokio::test]
async fn missing_and_cut_objects_are_told_apart() {
    let (_folder, path, store) = made();
    let missing = store.get(&name(1), 0, 1).await.unwrap_err();
    assert_eq!(missing.trouble, Trouble::Missing);
    assert_tells(&missing, &name(1));
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    fs::OpenOptions::new().write(true).open(path.join(name(1))).unwrap().set_len(4).unwrap();
    for (offset, len) in [(0, 10), (4, 1), (9, 1)] {
        let cut = store.get(&name(1), offset, len).await.unwrap_err();
        assert_eq!(cut.trouble, Trouble::Damaged, "{cut}");
        assert!(cut.to_string().contains("ends at byte 4"), "{cut}");
    }
}

#[tokio::test]
async fn an_object_that_is_longer_than_any_can_be_is_not_read_whole() {
    let (_temp, _, store) = made();
    store.put(&name(1), Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.whole(&name(1), 10).await.unwrap(), "0123456789");
    let error = store.whole(&name(1), 9).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Damaged);
    assert!(error.reason.contains("10 bytes") && error.reason.contains("more than 9"), "{error}");
    assert_eq!(store.whole(&name(2), 9).await.unwrap_err().trouble, Trouble::Missing);
}

async fn listed(store: &BlockStore) -> Result<BTreeMap<String, u64>, StoreError> {
    let (mut found, mut from) = (BTreeMap::new(), None);
    loop {
        let page = store.list(from).await?;
        found.extend(page.names);
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(found),
        }
    }
}

#[tokio::test]
async fn objects_are_listed_and_deleted_and_nothing_else_is() {
    let (_folder, path, store) = made();
    assert_eq!(listed(&store).await.unwrap(), BTreeMap::new());
    for n in 0..300 {
        store.put(&name(n), Bytes::from(vec![0; n as usize])).await.unwrap();
    }
    fs::create_dir_all(path.join("objects/00")).unwrap();
    fs::write(path.join("objects/00/letter"), "dear").unwrap();
    let mut all: BTreeMap<String, u64> = (0..300).map(|n| (name(n), n)).collect();
    all.insert("objects/00/letter".to_owned(), 4);
    assert_eq!(listed(&store).await.unwrap(), all);
    for _ in 0..2 {
        store.delete(&name(7)).await.unwrap();
    }
    all.remove(&name(7));
    assert_eq!(listed(&store).await.unwrap(), all);
    assert_eq!(store.get(&name(7), 0, 1).await.unwrap_err().trouble, Trouble::Missing);
    for stranger in ["objects/00/letter", MARKER, "../x", ""] {
        assert!(store.delete(stranger).await.is_err(), "{stranger}");
    }
    assert!(store.list(Some("further".to_owned())).await.is_err());

    // Without its marker it is an empty mount point, or another disk: nothing is concluded.
    fs::remove_file(path.join(MARKER)).unwrap();
    let refused = [store.delete(&name(8)).await.unwrap_err(), listed(&store).await.unwrap_err()];
    assert!(refused.iter().all(|error| error.trouble == Trouble::Unavailable), "{refused:?}");
    assert!(path.join(name(8)).exists());
}

#[tokio::test]
async fn what_a_put_that_was_killed_left_is_listed_as_its_object_and_goes_with_it() {
    let (_folder, path, store) = made();
    // A put as it is written, stopped in its middle.
    let held = tokio::spawn({
        let (store, name) = (BlockStore::open(&path, STORE).unwrap(), name(1));
        async move { store.put(&name, Bytes::from(vec![1; 64 << 20])).await }
    });
    let folder = path.join(name(1)).parent().unwrap().to_owned();
    let piece = loop {
        let mut entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        if let Some(piece) = entries.find(|entry| entry.path() != path.join(name(1))) {
            break piece.path();
        }
        assert!(!held.is_finished(), "it is not written under another name first");
        tokio::task::yield_now().await;
    };
    held.await.unwrap().unwrap();
    store.delete(&name(1)).await.unwrap();
    assert_eq!(listed(&store).await.unwrap(), BTreeMap::new());

    fs::write(&piece, b"half of it").unwrap();
    assert_eq!(listed(&store).await.unwrap(), BTreeMap::from([(name(1), 10)]));
    assert_eq!(store.get(&name(1), 0, 1).await.unwrap_err().trouble, Trouble::Missing);
    store.delete(&name(1)).await.unwrap();
    assert!(!piece.exists());
}

#[tokio::test]
async fn a_folder_that_lost_its_marker_is_unavailable_and_not_written_to() {
    let (_folder, path, store) = made();
    fs::remove_file(path.join(MARKER)).unwrap();
    let error = store.put(&name(1), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Unavailable);
    assert!(!path.join("objects").exists());
    assert_eq!(store.get(&name(1), 0, 1).await.unwrap_err().trouble, Trouble::Unavailable);
}

#[tokio::test]
async fn what_is_acknowledged_lies_in_the_store_however_often_its_folder_goes_away_meanwhile() {
    let (folder, path, store) = made();
    let away = folder.path().join("away");
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&path, &away).unwrap();
                std::thread::sleep(Duration::from_millis(2));
                // A put that had just seen the folder makes another on its way.
                while fs::rename(&away, &path).is_err() {
                    drop(fs::remove_dir_all(&path));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let (mut stored, mut refused) = (Vec::new(), 0);
    let begun = Instant::now();
    for n in 0.. {
        match store.put(&name(n), Bytes::from_static(b"bytes")).await {
            Ok(()) => stored.push(n),
            Err(_) => refused += 1,
        }
        if stored.len() >= 100 && refused >= 100 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} stored, {refused} refused", stored.len());
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    let lost: Vec<_> = stored.iter().filter(|n| !path.join(name(**n)).exists()).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
}

#[tokio::test]
async fn a_folder_where_the_disk_of_another_store_is_mounted_is_unavailable_and_not_written_to() {
    let (_folder, path, store) = made();
    let other = tempfile::tempdir().unwrap();
    BlockStore::create(other.path(), Uuid::from_u128(2)).unwrap();
    fs::rename(other.path().join(MARKER), path.join(MARKER)).unwrap();
    let error = store.put(&name(1), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Unavailable);
    assert!(error.to_string().contains(&Uuid::from_u128(2).to_string()), "{error}");
    assert!(!path.join("objects").exists());
    let error = store.get(&name(1), 0, 1).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Unavailable, "not missing: {error}");
}

#[tokio::test]
async fn names_that_are_no_objects_reach_no_file() {
    let (_folder, _path, store) = made();
    for name in [MARKER, "../x", "objects/00/../../chronofs-store.json", ""] {
        assert!(store.get(name, 0, 1).await.is_err(), "{name}");
        assert!(store.put(name, Bytes::from_static(b"x")).await.is_err(), "{name}");
    }
}

#[test]
fn a_store_is_made_once_and_by_one_id() {
    let (_folder, path, _store) = made();
    BlockStore::create(&path, STORE).unwrap();
    for error in [
        BlockStore::create(&path, Uuid::from_u128(2)).unwrap_err(),
        BlockStore::open(&path, Uuid::from_u128(2)).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains(&STORE.to_string()), "{text}");
    }
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "only the marker");
}

#[test]
fn what_cannot_be_a_store_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let refused = BlockStore::create(&file, STORE).unwrap_err().to_string();
    assert!(refused.contains("not a directory"), "{refused}");
    let below = BlockStore::create(&file.join("below"), STORE).unwrap_err().to_string();
    assert!(below.contains("cannot"), "{below}");
    let empty = BlockStore::open(folder.path(), STORE).unwrap_err().to_string();
    assert!(empty.contains(MARKER), "{empty}");
    fs::write(folder.path().join(MARKER), "{\"format\": 7").unwrap();
    let strange = BlockStore::create(folder.path(), STORE).unwrap_err().to_string();
    assert!(strange.contains("not a marker"), "{strange}");
    // A file system that nobody can write to, root included.
    let proc = BlockStore::create(std::path::Path::new("/proc/self"), STORE).unwrap_err().to_string();
    assert!(proc.contains("cannot be written to"), "{proc}");
}

#[test]
fn the_kind_of_trouble_survives_the_wire() {
    for error in [
        StoreError::missing("o", "gone"),
        StoreError::damaged("o", "bad"),
        StoreError::unavailable("o", Errno::ENOSPC, "full"),
        StoreError::unavailable("o", Errno::EIO, "away"),
    ] {
        assert_eq!(StoreError::from_wire("o", error.wire_errno()).trouble, error.trouble, "{error}");
    }
}

#[test]
fn an_application_is_told_eio_of_a_store_that_is_away_and_never_to_try_again() {
    let away = StoreError::unavailable("o", Errno::EIO, "away");
    assert_eq!(StoreError::from_wire("o", away.wire_errno()).errno, Errno::EIO);
    // A folder that is gone is no missing object, neither here nor over the wire.
    let gone = StoreError::unavailable("o", Errno::ENOENT, "the folder is gone");
    let told = StoreError::from_wire("o", gone.wire_errno());
    assert_eq!((told.trouble, told.errno), (gone.trouble, Errno::EIO));
    let full = StoreError::unavailable("o", Errno::ENOSPC, "full");
    assert_eq!(StoreError::from_wire("o", full.wire_errno()).errno, Errno::ENOSPC);
}

#[tokio::test]
async fn pins_are_kept_found_and_removed_and_a_folder_that_is_away_has_none_to_tell_of() {
    let (_folder, path, store) = made();
    assert_eq!(store.pins().await.unwrap(), []);
    let pin = |volume, id| Pin::new(Uuid::from_u128(volume), 0, Uuid::from_u128(id), Version(1), Version(2));
    let (one, other) = (pin(1, 1), pin(2, 1));
    for _ in 0..2 {
        store.put_pin(&one).await.unwrap();
        store.put_pin(&other).await.unwrap();
    }
    let mut changed = one.clone();
    changed.reason = "something else".to_owned();
    assert_eq!(store.put_pin(&changed).await.unwrap_err().trouble, Trouble::Damaged);
    // What a put leaves that was killed is none, whatever else lies there is told of.
    fs::write(path.join(format!("{}#1", one.name())), "half").unwrap();
    fs::write(path.join(format!("{}#1", pin(2, 9).name())), "half").unwrap();
    fs::write(path.join("pins/letter"), "dear").unwrap();
    let mut found = store.pins().await.unwrap();
    found.sort();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [&*one.name(), &*other.name(), "pins/letter"]);
    assert_eq!(Pin::decode(&one.name(), &found[0].1), Ok(one.clone()));
    for _ in 0..2 {
        store.remove_pin(one.volume, one.id).await.unwrap();
    }
    assert_eq!(store.pins().await.unwrap().len(), 2);
    fs::remove_file(path.join(MARKER)).unwrap();
    for error in [
        store.pins().await.unwrap_err(),
        store.put_pin(&one).await.unwrap_err(),
        store.remove_pin(other.volume, other.id).await.unwrap_err(),
    ] {
        assert_eq!(error.trouble, Trouble::Unavailable, "{error}");
    }
    assert!(path.join(other.name()).exists());
}

/// A pin that a power cut brings back would be obeyed for ever. So its folder is synced when it goes, and also when it is
/// gone already, because an earlier try may have been cut off before that. A folder of the kernel's cannot be synced.
#[tokio::test]
async fn a_pin_is_gone_only_when_that_survives_a_power_cut() {
    let (_folder, path, store) = made();
    let (volume, id) = (Uuid::from_u128(1), Uuid::from_u128(2));
    store.remove_pin(volume, id).await.unwrap();
    fs::create_dir(path.join("pins")).unwrap();
    std::os::unix::fs::symlink("/proc/self/task", path.join(format!("pins/{volume}"))).unwrap();
    let error = store.remove_pin(volume, id).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Unavailable, "{error}");
}

/// A disk hangs: nobody writes to the pipe that its marker is.
#[tokio::test]
async fn a_disk_that_hangs_stops_nobody_who_does_something_else() {
    let (_folder, path, store) = made();
    let marker = path.join(MARKER);
    fs::remove_file(&marker).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &marker, kind, mode, 0).unwrap();
    // Whoever reads it goes on half a second later.
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(50));
            drop(fs::OpenOptions::new().write(true).custom_flags(flags).open(&marker));
        }
    });
    let (volume, begun) = (Uuid::from_u128(1), Instant::now());
    let pin = Pin::new(volume, 0, volume, Version(1), Version(2));
    let name = name(1);
    let work = async {
        tokio::join!(
            store.pins(),
            store.put_pin(&pin),
            store.remove_pin(volume, volume),
            store.list(None),
            store.put(&name, Bytes::from_static(b"x")),
            store.get(&name, 0, 1),
            store.delete(&name),
        )
    };
    tokio::select! {
        _ = work => panic!("the disk hangs"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    release.join().unwrap();
}
