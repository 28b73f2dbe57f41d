//! The disk cache as a whole, on folders of the disk: what it keeps, what it gives back, and what it bears.

use super::*;
use crate::testing::{cases, slice_id};
use chronofs_core::volume::Compression;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use tempfile::TempDir;

const VOLUME: Uuid = Uuid::from_u128(5);
const LIMITS: Limits = Limits { bytes_max: 256 << 10, segment_bytes: 16 << 10, entries_max: 10_000 };

/// Random numbers by seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The `n`-th slice of all tests: `len` bytes that are its own.
fn slice(n: u64, len: usize) -> (Seal, Bytes, Bytes) {
    let mut rng = Rng(n);
    let opened: Bytes = (0..len).map(|_| rng.below(256) as u8).collect();
    let (seal, stored) = seal::seal(slice_id(n, 0), Compression::Lz4, &opened);
    (seal, stored, opened)
}

/// A cache without its thread: what is put is kept when `put` returns.
struct Direct {
    disk: DiskCache,
    keeper: Keeper,
}

impl Direct {
    fn open(dir: &Path, limits: Limits) -> Direct {
        let shared = Arc::new(Shared::new(dir, limits));
        let mut keeper = Keeper::new(Arc::clone(&shared), limits);
        keeper.load().unwrap();
        let disk = DiskCache {
            shared,
            bytes_max: limits.bytes_max,
            jobs: Mutex::new(None),
            thread: Mutex::new(None),
        };
        Direct { disk, keeper }
    }

    fn put(&mut self, n: u64, len: usize) -> bool {
        let (seal, stored, _) = slice(n, len);
        self.keeper.put(Key { volume: VOLUME, slice: seal.id }, stored).unwrap()
    }

    /// Whether the slice is there; its bytes must be right then.
    fn get(&self, n: u64, len: usize) -> bool {
        let (seal, _, opened) = slice(n, len);
        let read = self.disk.find(VOLUME, &seal).and_then(|found| self.disk.read(&found, None));
        assert!(read.as_ref().is_none_or(|read| *read == opened), "slice {n} has wrong bytes");
        read.is_some()
    }

    /// As a client does: from the cache, or from the store and into the cache.
    fn use_once(&mut self, n: u64, len: usize) -> bool {
        let hit = self.get(n, len);
        if !hit {
            self.put(n, len);
        }
        hit
    }

    fn close(mut self) {
        self.keeper.close().unwrap();
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        names.filter(|path| path.file_name().is_some_and(|name| name != "lock")).collect();
    found.sort();
    found
}

fn allocated(dir: &Path) -> u64 {
    segments(dir).iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[test]
fn what_was_put_comes_back_after_a_restart_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Direct::open(dir.path(), LIMITS);
    let sizes = [0, 1, 100, 4096, 9000];
    for (n, len) in (0..).zip(sizes) {
        assert!(cache.put(n, len) && cache.get(n, len));
    }
    assert!(!cache.put(90, 20_000), "no segment holds it");
    // Without a word, as after kill -9.
    drop(cache);
    let mut cache = Direct::open(dir.path(), LIMITS);
    assert!((0..).zip(sizes).all(|(n, len)| cache.get(n, len)));
    cache.put(7, 500);
    cache.close();
    let cache = Direct::open(dir.path(), LIMITS);
    assert!((0..).zip(sizes).all(|(n, len)| cache.get(n, len)) && cache.get(7, 500));
    assert_eq!(cache.disk.figures().damaged, 0);
}

#[test]
fn small_slices_share_files_and_a_closed_segment_takes_no_more_than_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_max: 1 << 20, segment_bytes: 256 << 10, entries_max: 10_000 };
    let mut cache = Direct::open(dir.path(), limits);
    assert!((1..100).all(|n| cache.put(n, 512)));
    cache.close();
    assert_eq!(segments(dir.path()).len(), 1);
    assert!(allocated(dir.path()) <= 100 * (512 + 64 + 16) + 4096, "{}", allocated(dir.path()));
}

#[test]
fn what_a_killed_process_left_takes_no_more_than_it_holds_once_it_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_max: 1 << 20, segment_bytes: 256 << 10, entries_max: 10_000 };
    let mut cache = Direct::open(dir.path(), limits);
    assert!((1..10).all(|n| cache.put(n, 512)));
    drop(cache);
    assert_eq!(allocated(dir.path()), 256 << 10);
    let cache = Direct::open(dir.path(), limits);
    assert!(allocated(dir.path()) <= 3 * 4096, "{}", allocated(dir.path()));
    assert_eq!(cache.disk.figures().bytes, allocated(dir.path()), "and it says so");
    assert!((1..10).all(|n| cache.get(n, 512)));
    // It was ended well: the next one finds a table.
    drop(cache);
    let cache = Direct::open(dir.path(), limits);
    assert!((1..10).all(|n| cache.get(n, 512)));
    assert_eq!(cache.disk.figures().damaged, 0);
}

#[test]
fn nothing_is_given_under_another_volume_or_another_seal() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Direct::open(dir.path(), LIMITS);
    cache.put(1, 1000);
    let (seal, ..) = slice(1, 1000);
    assert!(cache.disk.find(Uuid::from_u128(6), &seal).is_none());
    for other in [Seal { crc32c: seal.crc32c ^ 1, ..seal }, Seal { stored_len: seal.stored_len - 1, ..seal }]
    {
        cache.put(1, 1000);
        let found = cache.disk.find(VOLUME, &other).unwrap();
        assert_eq!(cache.disk.read(&found, None), None);
        assert!(!cache.get(1, 1000), "what is doubtful is dropped");
    }
    assert_eq!(cache.disk.figures().damaged, 2);
}

#[test]
fn the_quota_is_kept_at_every_moment_whatever_is_put_used_and_reopened() {
    for seed in 0..u64::from(cases(20)) {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng(seed);
        let limits = Limits { bytes_max: (4 + rng.below(20)) * (16 << 10), ..LIMITS };
        let mut cache = Direct::open(dir.path(), limits);
        for _ in 0..600 {
            match rng.below(40) {
                0 => cache.close(),
                1 => drop(cache),
                _ => {
                    let (n, len) = (rng.below(300), rng.below(300) * 20);
                    cache.use_once(n, len as usize);
                    let taken = allocated(dir.path());
                    assert!(taken <= limits.bytes_max, "seed {seed}: {taken} of {}", limits.bytes_max);
                    assert!(cache.disk.figures().bytes <= limits.bytes_max);
                    continue;
                }
            }
            cache = Direct::open(dir.path(), limits);
        }
        assert!(cache.disk.figures().slices > 5, "seed {seed}: it keeps something");
    }
}

#[test]
fn a_smaller_quota_and_fewer_entries_hold_from_the_next_write_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Direct::open(dir.path(), LIMITS);
    for n in 0..200 {
        cache.use_once(n, 1200);
        cache.get(n, 1200);
    }
    cache.close();
    let limits = Limits { bytes_max: 64 << 10, entries_max: 30, ..LIMITS };
    let mut cache = Direct::open(dir.path(), limits);
    for n in 300..400 {
        assert!(cache.put(n, 500));
        assert!(cache.disk.figures().slices <= 30 && allocated(dir.path()) <= 64 << 10);
    }
    assert!(cache.get(399, 500));
}

/// Slices of `LEN` bytes; the cache holds about 220 of them.
const LEN: usize = 1024;

#[test]
fn a_scan_does_not_push_out_what_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Direct::open(dir.path(), LIMITS);
    let hot = |rng: &mut Rng| 1_000_000 + rng.below(100);
    let mut rng = Rng(1);
    for _ in 0..1000 {
        let n = hot(&mut rng);
        cache.use_once(n, LEN);
    }
    // Ten times what the cache holds passes by, and one use in four is of something hot.
    let (mut hits, mut uses) = (0, 0);
    for n in 0..2200 {
        cache.use_once(n, LEN);
        if n.is_multiple_of(3) {
            let n = hot(&mut rng);
            hits += u32::from(cache.use_once(n, LEN));
            uses += 1;
        }
    }
    assert!(hits * 100 >= uses * 90, "{hits} of {uses} uses of what is hot were hits");
}

/// How many of the same uses hit if the one used longest ago goes.
fn hits_of_lru(uses: &[u64], capacity: usize) -> u32 {
    let (mut last, mut hits) = (HashMap::new(), 0);
    for (n, now) in uses.iter().zip(0u64..) {
        hits += u32::from(last.insert(*n, now).is_some());
        if last.len() > capacity {
            let oldest = *last.iter().min_by_key(|(_, when)| **when).unwrap().0;
            last.remove(&oldest);
        }
    }
    hits
}

#[test]
fn a_mixed_load_hits_more_often_than_with_lru_of_the_same_size() {
    let mut rng = Rng(2);
    let mut scan = 10_000;
    // Skewed uses of 1,000 slices, with scans of things that never come again in between.
    let mut uses = Vec::new();
    while uses.len() < 12_000 {
        let part = rng.below(1000);
        uses.push(part * part * part / 1_000_000);
        if rng.below(60) == 0 {
            uses.extend(scan..scan + 40);
            scan += 40;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Direct::open(dir.path(), LIMITS);
    let hits: u32 = uses.iter().map(|n| u32::from(cache.use_once(n + 1, LEN))).sum();
    // Overheads of the form are not held against LRU.
    let lru = hits_of_lru(&uses, LIMITS.bytes_max as usize / LEN);
    assert!(hits > lru, "{hits} hits, {lru} with LRU");
}

/// Does something bad to a file of the cache.
fn harm(dir: &Path, rng: &mut Rng) {
    let files = segments(dir);
    if files.is_empty() {
        return;
    }
    let path = &files[rng.below(files.len() as u64) as usize];
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    match rng.below(7) {
        0 => file.set_len(rng.below(len + 1)).unwrap(),
        1 => fs::remove_file(path).unwrap(),
        2 => drop(fs::copy(path, &files[rng.below(files.len() as u64) as usize]).is_ok()),
        3 => file.write_all_at(&vec![rng.below(256) as u8; 3000], rng.below(len + 1)).unwrap(),
        4 => {
            let end = dir.join(format!("cache1-{:08x}.main", 0x1000 + rng.below(10)));
            fs::write(end, slice(rng.below(50), 900).1).unwrap();
        }
        // The bytes of one place at another: right headers where they do not belong.
        5 => {
            let count = rng.below(len.min(5000) + 1);
            let mut bytes = vec![0; count as usize];
            file.read_exact_at(&mut bytes, rng.below(len + 1 - count)).unwrap();
            file.write_all_at(&bytes, rng.below(len + 1)).unwrap();
        }
        _ => {
            for _ in 0..20 {
                let at = rng.below(len + 1);
                let mut byte = [0];
                if file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], at).unwrap();
                }
            }
        }
    }
}

/// `get` asserts that bytes are right, `put` and `open` that there is no error.
#[test]
fn whatever_happens_to_its_files_the_cache_gives_right_bytes_or_none_and_no_error() {
    let (mut hits, mut damaged) = (0, 0);
    for seed in 0..u64::from(cases(40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng(seed);
        let mut cache = Direct::open(dir.path(), LIMITS);
        for _ in 0..300 {
            match rng.below(12) {
                0 => harm(dir.path(), &mut rng),
                1 => {
                    damaged += cache.disk.figures().damaged;
                    if rng.below(2) == 0 {
                        cache.close();
                    }
                    cache = Direct::open(dir.path(), LIMITS);
                }
                _ => {
                    let n = rng.below(250);
                    hits += u32::from(cache.use_once(n, 300 + n as usize * 10));
                }
            }
        }
    }
    assert!(hits > 100 && damaged > 10, "{hits} hits, {damaged} damaged: the test damages what is used");
}

#[test]
fn two_mounts_share_a_folder_its_slices_and_its_quota() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (Direct::open(dir.path(), LIMITS), Direct::open(dir.path(), LIMITS));
    for n in 0..14 {
        assert!(one.put(n, LEN));
    }
    // What one of them still writes is nobody else's business; what it has ended is seen at the other's next turn.
    assert!(!other.get(1, LEN));
    one.put(14, LEN);
    one.put(15, LEN);
    other.put(100, LEN);
    assert!(other.get(1, LEN) && !other.get(15, LEN));
    for n in 0..2000 {
        let (cache, at) = if n % 2 == 0 { (&mut one, 1000 + n) } else { (&mut other, 2000 + n % 300) };
        cache.use_once(at, LEN);
        assert!(allocated(dir.path()) <= LIMITS.bytes_max, "after {n}");
    }
    assert!(one.get(2998, LEN) && other.get(2199, LEN), "both go on");
    let third = Direct::open(dir.path(), LIMITS);
    assert!(third.disk.figures().slices > 100);
}

#[test]
fn what_a_mount_writes_to_the_end_is_met_by_one_that_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut one = Direct::open(dir.path(), LIMITS);
    one.put(1, LEN);
    let other = DiskCache::with(dir.path(), LIMITS);
    wait_until("the index", || !other.figures().loading);
    assert_eq!(other.figures().slices, 0);
    one.close();
    wait_until("the slice", || other.figures().slices == 1);
    other.close();
}

#[test]
fn mounts_that_write_the_whole_quota_full_are_told_apart_from_a_broken_disk() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { bytes_max: 2 * LIMITS.segment_bytes, ..LIMITS };
    let mut writers: Vec<_> = (0..3).map(|_| Direct::open(dir.path(), limits)).collect();
    assert!(writers[0].put(1, LEN) && writers[1].put(2, LEN));
    let (seal, stored, _) = slice(3, LEN);
    let refused = writers[2].keeper.put(Key { volume: VOLUME, slice: seal.id }, stored).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_folder_that_cannot_be_used_makes_every_read_a_miss_and_fails_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let (seal, stored, _) = slice(1, 100);
    for (place, said) in [(file.join("below"), "directory"), (file, "exists"), (open, "others may write")] {
        let cache = DiskCache::with(&place, LIMITS);
        wait_until("the trouble", || cache.figures().trouble.is_some());
        cache.put(VOLUME, &seal, stored.clone());
        wait_until("the put", || cache.figures().skipped == 1);
        assert!(cache.find(VOLUME, &seal).is_none());
        let trouble = cache.figures().trouble.unwrap();
        assert!(trouble.to_lowercase().contains(said), "{}: {trouble}", place.display());
        cache.close();
    }
}

#[test]
fn the_thread_keeps_what_is_put_and_its_end_leaves_everything() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("made/by/it");
    let cache = DiskCache::with(&place, LIMITS);
    for n in 0..10 {
        let (seal, stored, _) = slice(n, 700);
        cache.put(VOLUME, &seal, stored);
    }
    cache.close();
    let figures = cache.figures();
    assert_eq!((figures.kept, figures.slices, figures.skipped, figures.loading), (10, 10, 0, false));
    let (seal, stored, _) = slice(11, 700);
    cache.put(VOLUME, &seal, stored);
    assert_eq!(cache.figures().skipped, 1, "it is closed");
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
    assert!(segments(&place).iter().all(|path| fs::metadata(path).unwrap().mode() & 0o077 == 0));
    let again = DiskCache::with(&place, LIMITS);
    wait_until("the slices", || again.figures().slices == 10);
    let (seal, _, opened) = slice(3, 700);
    assert_eq!(again.read(&again.find(VOLUME, &seal).unwrap(), None), Some(opened));
    assert_eq!((again.figures().hits, again.figures().hit_bytes), (1, u64::from(seal.stored_len)));
    again.close();
}

#[test]
fn a_mount_that_is_stopped_with_the_lock_in_its_hand_holds_up_nobody() {
    let dir = TempDir::new().unwrap();
    let mut other = Direct::open(dir.path(), LIMITS);
    other.put(1, 700);
    other.close();
    let stopped = super::folder::Folder::new(dir.path()).lock().unwrap();
    let cache = DiskCache::with(dir.path(), LIMITS);
    let (seal, stored, _) = slice(2, 700);
    cache.put(VOLUME, &seal, stored);
    let begun = std::time::Instant::now();
    cache.close();
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    let figures = cache.figures();
    assert_eq!((figures.kept, figures.slices), (0, 1), "what is there can be read");
    drop(stopped);
}

#[test]
fn a_segment_that_another_mount_has_just_begun_is_not_taken_for_one_that_was_left() {
    let dir = TempDir::new().unwrap();
    let folder = super::folder::Folder::new(dir.path());
    let begins = folder.lock().unwrap();
    let id = index::SegmentId { number: 1, queue: index::Queue::Small };
    // As it is between its being made and its being locked.
    drop(folder.create(id, LIMITS.segment_bytes).unwrap());
    let shared = Arc::new(Shared::new(dir.path(), LIMITS));
    let mut keeper = Keeper::new(Arc::clone(&shared), LIMITS);
    assert_eq!(keeper.load().unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(fs::metadata(&segments(dir.path())[0]).unwrap().len(), LIMITS.segment_bytes);
    // What its writer puts into it is met as soon as it is whole.
    let (seal, stored, _) = slice(1, 700);
    let key = Key { volume: VOLUME, slice: seal.id };
    let file = OpenOptions::new().write(true).open(&segments(dir.path())[0]).unwrap();
    file.write_all_at(&stored, 64).unwrap();
    file.write_all_at(&key.header(stored.len() as u32), 0).unwrap();
    drop((file, begins));
    keeper.look_again().unwrap();
    assert_eq!(shared.index().len(), 1);
    assert!(fs::metadata(&segments(dir.path())[0]).unwrap().len() < LIMITS.segment_bytes);
}

#[test]
fn no_more_than_a_fixed_amount_waits_for_a_slow_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::new(dir.path(), LIMITS));
    let (jobs, received) = channel();
    let cache = DiskCache { shared, bytes_max: 0, jobs: Mutex::new(Some(jobs)), thread: Mutex::new(None) };
    let (seal, stored) = seal::seal(slice_id(1, 0), Compression::None, &Bytes::from(vec![1; 8 << 20]));
    (0..20).for_each(|_| cache.put(VOLUME, &seal, stored.clone()));
    assert_eq!(cache.figures().skipped, 20 - QUEUED_BYTES_MAX / (8 << 20));
    assert_eq!(received.try_iter().count() as u64, QUEUED_BYTES_MAX / (8 << 20));
}
