//! A cache of slices on a disk of the client: what was read or written once needs no request the next time, also after
//! a restart.
//!
//! It keeps the bytes as they are stored in the block store, so of an encrypted volume nothing plain, and gives none
//! before [`seal::open_with`] found them right by the seal that the metadata names. A slice never changes, so nothing in here
//! is ever out of date; whatever is damaged, cut off, foreign or gone is a miss, and so is everything while the disk is
//! in trouble. The cache may lose anything and fail nobody.
//!
//! [`record`] is the form of the files, [`folder`] the files, [`index`] decides what stays, [`keeper`] writes. Readers
//! look into the index and read a file; everything else is done by one thread, which nobody waits for.

mod folder;
mod index;
mod keeper;
mod record;
mod salvage;
#[cfg(test)]
mod tests;

pub use salvage::CacheSalvage;

use crate::seal;
use bytes::Bytes;
use chronofs_core::slice::Seal;
use chronofs_keys::VolumeKeys;
use folder::Folder;
use index::{Index, Place};
use keeper::{Keeper, Limits};
use record::{HEADER_LEN, Key, parse_header};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The smallest quota: four of the smallest segments.
pub const CACHE_BYTES_MIN: u64 = 64 << 20;

/// Bytes of a segment: at least twice the largest slice, at most what is rewritten and let go in well under a second.
const SEGMENT_BYTES_MIN: u64 = 16 << 20;
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The quota is divided into so many segments, if they are within these limits.
const SEGMENTS: u64 = 64;
/// Slices that are known at most: some 50 MiB of memory.
const ENTRIES_MAX: usize = 1 << 20;
/// Bytes that may wait to be written; what comes on top is not kept.
const QUEUED_BYTES_MAX: u64 = 64 << 20;
/// How long the thread has nothing to do before it looks what other mounts have written.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long nothing is written after the disk refused.
const PAUSE: Duration = Duration::from_secs(60);

/// A disk cache; mounts on one machine may share its folder.
#[derive(Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
    bytes_max: u64,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A slice that the cache says it has.
#[derive(Debug)]
pub struct Found {
    key: Key,
    seal: Seal,
    place: Place,
}

/// How a disk cache does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CacheFigures {
    /// Its folder.
    pub dir: PathBuf,
    /// Its quota.
    pub bytes_max: u64,
    /// Bytes of the disk that it takes, as it last looked.
    pub bytes: u64,
    /// Slices that it has.
    pub slices: u64,
    /// Slices that were read from it.
    pub hits: u64,
    /// Stored bytes of these.
    pub hit_bytes: u64,
    /// Slices that were looked for in vain.
    pub misses: u64,
    /// Slices that were written to it.
    pub kept: u64,
    /// Slices that were not, since the disk was in trouble or slow.
    pub skipped: u64,
    /// Slices that went to make room.
    pub evicted: u64,
    /// Slices that were not what was written.
    pub damaged: u64,
    /// What earlier mounts left is still being looked at.
    pub loading: bool,
    /// Why nothing is written now.
    pub trouble: Option<String>,
}

#[derive(Debug)]
struct Job {
    key: Key,
    stored: Bytes,
}

/// What readers and the keeper have in common.
#[derive(Debug)]
struct Shared {
    folder: Folder,
    index: Mutex<Index>,
    figures: Counters,
    queued_bytes: AtomicU64,
    trouble: Mutex<Option<String>>,
    /// That reading fails was said.
    read_trouble_told: AtomicBool,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    misses: AtomicU64,
    kept: AtomicU64,
    skipped: AtomicU64,
    evicted: AtomicU64,
    damaged: AtomicU64,
    loading: AtomicBool,
}

impl DiskCache {
    /// The cache in `dir`, which takes at most `bytes_max` of its disk. What is there is taken in by and by. Never fails:
    /// trouble is logged, and everything is a miss.
    pub fn start(dir: &Path, bytes_max: u64) -> Arc<DiskCache> {
        let segment_bytes = (bytes_max / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        Self::with(dir, Limits { bytes_max, segment_bytes, entries_max: ENTRIES_MAX })
    }

    fn with(dir: &Path, limits: Limits) -> Arc<DiskCache> {
        let shared = Arc::new(Shared::new(dir, limits));
        shared.figures.loading.store(true, Ordering::Relaxed);
        let keeper = Keeper::new(Arc::clone(&shared), limits);
        let (jobs, received) = channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("chronofs-cache".into())
            .spawn(move || run(keeper, &of_thread, &received));
        let thread = thread.map_err(|error| {
            shared.figures.loading.store(false, Ordering::Relaxed);
            shared.in_trouble(&error);
        });
        let thread = thread.ok();
        let jobs = thread.is_some().then_some(jobs);
        Arc::new(DiskCache {
            shared,
            bytes_max: limits.bytes_max,
            jobs: Mutex::new(jobs),
            thread: Mutex::new(thread),
        })
    }

    /// Looks for a slice, without reading anything.
    pub fn find(&self, volume: Uuid, seal: &Seal) -> Option<Found> {
        let key = Key { volume, slice: seal.id };
        let place = self.shared.index().find(key.hash());
        if place.is_none() {
            self.shared.figures.misses.fetch_add(1, Ordering::Relaxed);
        }
        Some(Found { key, seal: *seal, place: place? })
    }

    /// Reads, verifies and opens a slice, with the `keys` of its volume if that is encrypted: waits for the disk. `None` is
    /// a miss.
    pub fn read(&self, found: &Found, keys: Option<&VolumeKeys>) -> Option<Bytes> {
        let opened = self.shared.read(found, keys);
        let figures = &self.shared.figures;
        match &opened {
            Some(_) => {
                figures.hits.fetch_add(1, Ordering::Relaxed);
                figures.hit_bytes.fetch_add(u64::from(found.seal.stored_len), Ordering::Relaxed);
            }
            None => {
                figures.misses.fetch_add(1, Ordering::Relaxed);
                self.shared.index().forget(found.key.hash(), found.place);
            }
        }
        opened
    }

    /// Keeps the stored bytes of a slice, which fit its seal. Does not wait: where the disk does not keep up, they
    /// are not kept.
    pub fn put(&self, volume: Uuid, seal: &Seal, stored: Bytes) {
        let (key, len) = (Key { volume, slice: seal.id }, stored.len() as u64);
        let queued = &self.shared.queued_bytes;
        let fits = queued.fetch_add(len, Ordering::Relaxed) + len <= QUEUED_BYTES_MAX;
        let job = Job { key, stored };
        let sent = fits && lock(&self.jobs).as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            queued.fetch_sub(len, Ordering::Relaxed);
            self.shared.figures.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits, and what lets the next mount begin sooner. Nothing is kept any more from then on.
    pub fn close(&self) {
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread of the disk cache ended early");
        }
    }

    /// How it does.
    pub fn figures(&self) -> CacheFigures {
        let figures = &self.shared.figures;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheFigures {
            dir: self.shared.folder.dir().to_owned(),
            bytes_max: self.bytes_max,
            bytes: count(&figures.bytes),
            slices: self.shared.index().len() as u64,
            hits: count(&figures.hits),
            hit_bytes: count(&figures.hit_bytes),
            misses: count(&figures.misses),
            kept: count(&figures.kept),
            skipped: count(&figures.skipped),
            evicted: count(&figures.evicted),
            damaged: count(&figures.damaged),
            loading: figures.loading.load(Ordering::Relaxed),
            trouble: lock(&self.shared.trouble).clone(),
        }
    }
}

impl Counters {
    fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn evicted(&self, slices: usize) {
        self.evicted.fetch_add(slices as u64, Ordering::Relaxed);
    }
}

impl Shared {
    fn new(dir: &Path, limits: Limits) -> Self {
        Shared {
            folder: Folder::new(dir),
            index: Mutex::new(Index::new(limits.bytes_max, limits.entries_max)),
            figures: Counters::default(),
            queued_bytes: AtomicU64::new(0),
            trouble: Mutex::new(None),
            read_trouble_told: AtomicBool::new(false),
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn read(&self, found: &Found, keys: Option<&VolumeKeys>) -> Option<Bytes> {
        let Found { key, seal, place } = found;
        if place.stored_len != seal.stored_len {
            // Another key with the same hash, or a segment that says something else than it holds.
            self.figures.damaged.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let len = HEADER_LEN + seal.stored_len as usize;
        let raw = match self.folder.read(place.segment, place.at, len) {
            Ok(raw) => raw,
            // Another mount let the segment go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.figures.damaged.fetch_add(1, Ordering::Relaxed);
                if !self.read_trouble_told.swap(true, Ordering::Relaxed) {
                    let dir = self.folder.dir().display();
                    tracing::warn!(
                        "reading the disk cache in {dir}: {error}; what it cannot give is read from the store"
                    );
                }
                return None;
            }
        };
        let is_it = parse_header(&raw) == Some((*key, seal.stored_len));
        let opened =
            is_it.then(|| seal::open_with(seal, Bytes::from(raw).slice(HEADER_LEN..), keys).ok()).flatten();
        if opened.is_none() {
            self.figures.damaged.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(slice = %key.slice, segment = ?place.segment, "damaged in the disk cache");
        }
        opened
    }

    /// Says once that nothing is written for now.
    fn in_trouble(&self, error: &io::Error) {
        let mut trouble = lock(&self.trouble);
        if trouble.is_none() {
            let dir = self.folder.dir().display();
            tracing::warn!("the disk cache in {dir} keeps nothing new for now: {error}; reads go on");
        }
        *trouble = Some(error.to_string());
    }

    fn out_of_trouble(&self) {
        if lock(&self.trouble).take().is_some() {
            tracing::info!("the disk cache in {} is written again", self.folder.dir().display());
        }
    }
}

/// The cache's thread.
fn run(mut keeper: Keeper, shared: &Shared, jobs: &Receiver<Job>) {
    let mut paused: Option<Instant> = None;
    match keeper.load() {
        Ok(()) => {
            let slices = shared.index().len();
            tracing::info!(slices, "the disk cache in {} is there", shared.folder.dir().display());
        }
        Err(error) => {
            shared.in_trouble(&error);
            paused = Some(Instant::now());
        }
    }
    shared.figures.loading.store(false, Ordering::Relaxed);
    loop {
        let job = match jobs.recv_timeout(LOOK_AGAIN) {
            Ok(job) => job,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // What is wrong shows when something is to be written.
                let _ = keeper.look_again();
                continue;
            }
        };
        shared.queued_bytes.fetch_sub(job.stored.len() as u64, Ordering::Relaxed);
        if paused.is_some_and(|since| since.elapsed() < PAUSE) {
            shared.figures.skipped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        paused = None;
        match keeper.put(job.key, job.stored) {
            Ok(kept) => {
                let counter = if kept { &shared.figures.kept } else { &shared.figures.skipped };
                counter.fetch_add(1, Ordering::Relaxed);
                shared.out_of_trouble();
            }
            Err(error) => {
                keeper.give_up();
                shared.figures.skipped.fetch_add(1, Ordering::Relaxed);
                shared.in_trouble(&error);
                paused = Some(Instant::now());
            }
        }
    }
    if let Err(error) = keeper.close() {
        tracing::debug!("ending the disk cache: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
