//! RocksDB on a disk that is full while it works in the background. Needs root: it mounts a small tmpfs.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::{Place, Position, RocksOptions, RocksStore, Store};
use chronofs_engine::sim::Random;
use chronofs_engine::{Batch, Change, Commit, Reads};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A mounted tmpfs; unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(dir: PathBuf, mib: u64) -> SmallDisk {
        std::fs::create_dir_all(&dir).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "small"]).arg(&dir).status();
        assert!(mounted.unwrap().success(), "mounting a tmpfs takes root");
        SmallDisk(dir)
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Leaves so many bytes free.
    fn fill(&self, left: u64) {
        let file = std::fs::File::create(self.filler()).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.free() - left).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.unwrap().success() || std::thread::panicking());
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(40), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes 4 MiB that do not compress, spread over all keys, and flushes them.
fn write_and_flush(store: &RocksStore, version: u64) {
    let mut random = Random::new(version);
    let mut value = || Bytes::from((0..512).flat_map(|_| random.number().to_le_bytes()).collect::<Vec<u8>>());
    let changes = (0..1024u32).map(|n| Change::Put(format!("k{n}").into(), value())).collect();
    let commit = Commit { version: Version(version), tag: Bytes::new(), batch: Batch(changes) };
    store.write(&[commit], Position { version: Version(version), place: Place::default() }).unwrap();
    store.flush().unwrap();
    wait_until("the flush", || store.is_flushed().unwrap());
}

fn logged(folder: &Path, text: &str) -> bool {
    std::fs::read_to_string(folder.join("LOG")).unwrap().contains(text)
}

#[test]
fn a_compaction_without_room_is_tried_again_and_the_store_goes_on_meanwhile() {
    let holder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(holder.path().join("small"), 64);
    let folder = disk.0.join("store");
    let store = RocksStore::open(&folder, &RocksOptions::default()).unwrap();
    for version in 1..=3 {
        write_and_flush(&store, version);
    }
    // Room for the fourth flush, which starts a compaction of all four, but not for that.
    disk.fill(6 * MIB);
    write_and_flush(&store, 4);
    wait_until("the failed compaction", || logged(&folder, "No space left on device"));
    let small = Commit {
        version: Version(5),
        tag: Bytes::new(),
        batch: Batch(vec![Change::Put("small".into(), "value".into())]),
    };
    store.write(&[small], Position { version: Version(5), place: Place::default() }).unwrap();
    assert!(store.is_flushed().is_ok(), "it is not over");
    std::fs::remove_file(disk.filler()).unwrap();
    // All four write the same keys: one of them is left after it.
    let before = disk.free();
    wait_until("the compaction", || disk.free() > before + 8 * MIB);
    write_and_flush(&store, 6);
    drop(store);
    let store = RocksStore::open(&folder, &RocksOptions::default()).unwrap();
    assert_eq!(store.snapshot().get(b"small").unwrap(), Some("value".into()));
    assert_eq!(store.position().unwrap().unwrap().version, Version(6));
}
