//! The embedded engine: a log of our own, and behind it an ordered store that is a view of the log.
//!
//! A group of commits costs one write into the log's file and one batch for the store. It is *applied* then; an
//! fdatasync that all who ask share makes it *durable*. The store is flushed only behind the durable log, and
//! segments go when the store and the mark have passed them. Nothing here knows what rows mean.

mod cache;
pub mod disk;
mod durability;
mod folder;
mod image;
pub mod log;
mod maintain;
mod mem_store;
mod rocks;
mod store;

pub use disk::{Disk, DiskFile, RealDisk};
pub use folder::Folder;
pub use image::{LogHold, Sealed};
pub use log::format::Place;
pub use maintain::Metrics;
pub use mem_store::{MemMedium, MemStore};
pub use rocks::{RocksOptions, RocksSnapshot, RocksStore};
pub use store::{Position, Store};

use crate::copies::{Copies, Quorum, Setup, Source};
use crate::{Commit, Engine, EngineError, ReadStop, Reads, Recovered, View};
use bytes::Bytes;
use cache::RowCache;
use chronofs_core::Version;
use durability::Durability;
use log::format::{GroupHeader, record_length};
use log::{Log, Mark};
use maintain::Maintenance;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// How the engine behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a segment of the log.
    pub segment_bytes: u64,
    /// The store is flushed when its unflushed part takes this much memory.
    pub flush_bytes: u64,
    /// The store is flushed when this much of the log is not in what it flushed.
    pub flush_log_bytes: u64,
    /// Memory for the row cache; 0 for none.
    pub row_cache_bytes: u64,
    /// How far ahead of the last commit versions are reserved.
    pub ceiling_ahead: Duration,
    /// A thread calls [`Embedded::maintain`] now and then. Without it the engine's user does: in simulation.
    pub keeper: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 << 20,
            flush_bytes: 64 << 20,
            flush_log_bytes: 256 << 20,
            row_cache_bytes: 64 << 20,
            ceiling_ahead: Duration::from_secs(2),
            keeper: true,
        }
    }
}

/// What was found when the engine was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// The last commit that survived.
    pub last_commit: Version,
    /// No version at or below this may be given to a new commit.
    pub floor: Version,
    /// Commits that were in the log but not in the store.
    pub replayed: u64,
    /// Whether a torn tail was cut off the log.
    pub torn: bool,
}

/// The engine on `S` and `D`.
pub struct Embedded<S: Store, D: Disk> {
    core: Arc<Core<S, D>>,
    keeper: Option<JoinHandle<()>>,
    // Last, so that it is released when everything else has been closed.
    _folder: Option<Folder>,
}

/// The engine in a folder of this machine.
pub type EmbeddedFolder = Embedded<RocksStore, RealDisk>;

pub(crate) struct Core<S: Store, D: Disk> {
    log: Log<D>,
    store: S,
    durability: Durability,
    cache: Arc<RowCache>,
    writer: Mutex<Writer>,
    latest: RwLock<Arc<EmbeddedView<S::Snapshot>>>,
    applied: AtomicU64,
    mark: AtomicU64,
    recovered: Mutex<Vec<Recovered>>,
    maintenance: Maintenance,
    opening: Opening,
    options: Options,
    copies: Option<Arc<Copies>>,
}

/// What only the thread that applies may touch.
struct Writer {
    /// Where the next group goes.
    place: Place,
    /// The last version, which a new commit must be above.
    last: Version,
    /// The last commit's position: where the store is.
    position: Position,
    ceiling: Version,
    /// Number of the last group since the start.
    group: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the engine in `folder`, which is created if it is not there, and locked against another process.
pub fn open(folder: &Path, options: Options, rocks: &RocksOptions) -> Result<EmbeddedFolder, EngineError> {
    open_copied(Folder::open(folder)?, options, rocks, None)
}

/// Opens the engine in a folder that is held already, with copies of its log.
pub fn open_copied(
    held: Folder,
    options: Options,
    rocks: &RocksOptions,
    copies: Option<Setup>,
) -> Result<EmbeddedFolder, EngineError> {
    let store = RocksStore::open(&held.store(), rocks)?;
    let log = held.log();
    let disk =
        RealDisk::new(&log).map_err(|source| log::io_error("open", log.display().to_string(), source))?;
    let mut engine = Embedded::with_copies(disk, store, options, copies)?;
    engine._folder = Some(held);
    Ok(engine)
}

impl<S: Store, D: Disk> Embedded<S, D> {
    /// Recovers what `disk` and `store` hold and goes on from there.
    pub fn new(disk: D, store: S, options: Options) -> Result<Self, EngineError> {
        Self::with_copies(disk, store, options, None)
    }

    /// The same, with copies of the log. Returns when enough of them have everything that was found.
    pub fn with_copies(
        disk: D,
        store: S,
        options: Options,
        copies: Option<Setup>,
    ) -> Result<Self, EngineError> {
        let position = store.position()?;
        let mut recovery = log::recover(&disk, position.map(|position| (position.place, position.version)))?;
        let (log, place) = Log::open(disk, options.segment_bytes, &recovery)?;
        let mut reached = position.unwrap_or_default();
        let mut replayed = 0;
        for (place, commits) in std::mem::take(&mut recovery.replay) {
            replayed += commits.len() as u64;
            reached =
                Position { version: commits.last().map_or(reached.version, |commit| commit.version), place };
            store.write(&commits, reached)?;
        }
        let floor = recovery.ceiling;
        let opening = Opening { last_commit: recovery.last, floor, replayed, torn: recovery.torn };
        let durability = Durability::default();
        durability.start(Mark { place, version: floor, ceiling: floor, mark: recovery.mark });
        let cache = Arc::new(RowCache::new(options.row_cache_bytes));
        let first =
            EmbeddedView { snapshot: store.snapshot(), version: floor, group: 0, cache: cache.clone() };
        let core = Arc::new(Core {
            log,
            durability,
            cache,
            writer: Mutex::new(Writer { place, last: floor, position: reached, ceiling: floor, group: 0 }),
            latest: RwLock::new(Arc::new(first)),
            applied: AtomicU64::new(floor.0),
            mark: AtomicU64::new(recovery.mark.0),
            recovered: Mutex::new(recovery.tags),
            maintenance: Maintenance::new(position.unwrap_or_default()),
            opening,
            store,
            options,
            copies: copies.map(|setup| Copies::new(setup, place)),
        });
        let mut engine = Embedded { core, keeper: None, _folder: None };
        if let Some(copies) = &engine.core.copies {
            let begun = copies.start(engine.core.clone()).and_then(|()| copies.wait(place));
            begun.or_else(|error| engine.core.stop(error))?;
        }
        engine.keeper = engine.core.start_keeper()?;
        Ok(engine)
    }

    /// What was found at the start.
    pub fn opening(&self) -> Opening {
        self.core.opening
    }

    /// The last commit that is durable. [`Engine::durable`] begins at a version that is above it if the last start went down: that
    /// of no commit, which a later start need not find.
    pub fn durable_commit(&self) -> Version {
        let durable = self.durable();
        if durable > self.core.opening.floor { durable } else { self.core.opening.last_commit }
    }

    /// The highest version that may have been handed out before this start. [`Engine::applied`] begins here.
    pub fn floor(&self) -> Version {
        self.core.opening.floor
    }

    /// Starts and completes flushes of the store and drops segments, as far as there is something to do. The
    /// engine's own thread does so by itself ([`Options::keeper`]).
    pub fn maintain(&self) -> Result<(), EngineError> {
        self.core.maintain(false)
    }

    /// Starts a flush of the store however small it is, and completes the one before.
    pub fn flush(&self) -> Result<(), EngineError> {
        self.core.maintain(true)
    }

    /// Why the engine has stopped for good, if it has. The process should end then; the next start recovers.
    pub fn stopped(&self) -> Option<String> {
        self.core.durability.stopped()
    }

    /// Operators want these copies of the log from now on. Nothing happens where copies were not set up at the start.
    pub fn want_copies(&self, wanted: &Quorum) -> Result<(), EngineError> {
        let source: Arc<dyn Source> = self.core.clone();
        self.core.copies.as_ref().map_or(Ok(()), |copies| copies.want(wanted, &source))
    }

    /// The copies of the log, if it is set up for them.
    pub fn copies(&self) -> Option<&Arc<Copies>> {
        self.core.copies.as_ref()
    }

    /// How the engine is doing.
    pub fn metrics(&self) -> Metrics {
        self.core.metrics()
    }
}

impl<S: Store, D: Disk> Core<S, D> {
    fn stop<T>(&self, error: EngineError) -> Result<T, EngineError> {
        self.store.abandon();
        self.durability.stop(&error);
        Err(error)
    }

    fn sync(&self) -> Result<Version, EngineError> {
        match self.durability.sync(&self.log, self.copies.as_deref()) {
            Ok(version) => Ok(version),
            Err(error) => {
                self.store.abandon();
                Err(error)
            }
        }
    }

    /// Goes on with a new segment. After an error because of space nothing has changed.
    /// Says where the old one ended.
    fn roll(&self, writer: &mut Writer, body: usize) -> Result<Mark, EngineError> {
        self.sync()?;
        let end = Mark {
            place: writer.place,
            version: writer.position.version.max(self.opening.last_commit),
            ceiling: writer.ceiling,
            mark: Version(self.mark.load(Ordering::SeqCst)),
        };
        match self.log.roll(&end, body) {
            Ok(place) => {
                writer.place = place;
                self.durability.rolled(place);
                Ok(end)
            }
            Err(error @ (EngineError::NoSpace { .. } | EngineError::Refused(_))) => Err(error),
            Err(error) => self.stop(error),
        }
    }

    /// Writes one group into the log, which must have room for it.
    fn append(&self, writer: &mut Writer, commits: &[Commit], ceiling: Version) -> Result<(), EngineError> {
        let mark = Version(self.mark.load(Ordering::SeqCst));
        let synced = self.durability.durable_mark().place;
        let mut header = GroupHeader { place: writer.place, synced, ceiling, mark, records: 0, body: 0 };
        let place = match self.log.append(&mut header, commits) {
            Ok(place) => place,
            Err(error @ EngineError::NoSpace { .. }) => return Err(error),
            Err(error) => return self.stop(error),
        };
        writer.place = place;
        writer.ceiling = ceiling;
        if let Some(commit) = commits.last() {
            writer.last = commit.version;
        }
        self.durability.written(Mark { place, version: writer.last, ceiling, mark });
        Ok(())
    }

    fn apply(&self, commits: &[Commit]) -> Result<(), EngineError> {
        self.durability.check()?;
        let Some(last) = commits.last().map(|commit| commit.version) else { return Ok(()) };
        let mut writer = lock(&self.writer);
        check(writer.last, commits)?;
        let body = commits.iter().map(record_length).sum();
        if !self.log.fits(writer.place, body) {
            let _end = self.roll(&mut writer, body)?;
        }
        // Renewed at half time, so that it is usually durable long before a version reaches it.
        let ahead = u64::try_from(self.options.ceiling_ahead.as_nanos()).unwrap_or(u64::MAX);
        let ceiling = if last.0.saturating_add(ahead / 2) > writer.ceiling.0 {
            Version(last.0.saturating_add(ahead))
        } else {
            writer.ceiling
        };
        self.append(&mut writer, commits, ceiling)?;
        if last > self.durability.durable_mark().ceiling {
            self.sync()?;
        }
        let position = Position { version: last, place: writer.place };
        if let Err(error) = self.store.write(commits, position) {
            return self.stop(error);
        }
        writer.position = position;
        writer.group += 1;
        self.cache.apply(writer.group, commits);
        let view = EmbeddedView {
            snapshot: self.store.snapshot(),
            version: last,
            group: writer.group,
            cache: self.cache.clone(),
        };
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        self.applied.store(last.0, Ordering::SeqCst);
        Ok(())
    }

    /// Says in the log that it ends here on purpose, so that the next start need not reserve versions.
    fn close(&self) -> Result<(), EngineError> {
        self.sync()?;
        let mut writer = lock(&self.writer);
        if self.log.fits(writer.place, 0) {
            let last = writer.last;
            self.append(&mut writer, &[], last)?;
            self.sync()?;
        }
        Ok(())
    }
}

impl<S: Store, D: Disk> Source for Core<S, D> {
    fn ends(&self) -> Vec<(u64, Option<u64>)> {
        self.log.ends()
    }

    fn read(&self, place: Place, length: usize) -> Result<Bytes, EngineError> {
        self.log.read(place, length)
    }
}

fn check(mut last: Version, commits: &[Commit]) -> Result<(), EngineError> {
    for commit in commits {
        if commit.version <= last {
            return Err(EngineError::Refused(format!(
                "a commit has version {:?}, which is not above {last:?}",
                commit.version
            )));
        }
        last = commit.version;
        if commit.batch.0.iter().any(|change| change.key().is_empty()) {
            return Err(EngineError::Refused(format!(
                "commit {last:?} changes the empty key, which is no row's"
            )));
        }
    }
    Ok(())
}

impl<S: Store, D: Disk> Engine for Embedded<S, D> {
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError> {
        self.core.apply(&commits)
    }

    fn view(&self) -> Arc<dyn View> {
        self.core.latest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn applied(&self) -> Version {
        Version(self.core.applied.load(Ordering::SeqCst))
    }

    fn durable(&self) -> Version {
        self.core.durability.durable().min(self.applied())
    }

    fn sync(&self) -> Result<Version, EngineError> {
        self.core.sync()
    }

    fn recovered(&self) -> Vec<Recovered> {
        lock(&self.core.recovered).clone()
    }

    fn mark(&self, version: Version) -> Result<(), EngineError> {
        self.core.durability.check()?;
        self.core.mark.fetch_max(version.0, Ordering::SeqCst);
        lock(&self.core.recovered).retain(|tag| tag.version >= version);
        Ok(())
    }
}

impl<S: Store, D: Disk> Drop for Embedded<S, D> {
    fn drop(&mut self) {
        self.core.maintenance.close();
        if let Some(thread) = self.keeper.take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
        let closed = self.core.close();
        self.core.copies.iter().for_each(|copies| copies.close());
        if let Err(error) = closed {
            self.core.store.abandon();
            tracing::warn!(
                "the engine was not closed cleanly; the log holds everything that was acknowledged: {error}"
            );
        }
    }
}

/// A view of the embedded engine.
struct EmbeddedView<T> {
    snapshot: T,
    version: Version,
    group: u64,
    cache: Arc<RowCache>,
}

impl<T: Reads> Reads for EmbeddedView<T> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        self.cache.get(self.group, key, || self.snapshot.get(key))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        self.snapshot.scan(from, to, limit)
    }
}

impl<T: Reads + Send + Sync> View for EmbeddedView<T> {
    fn version(&self) -> Version {
        self.version
    }
}
