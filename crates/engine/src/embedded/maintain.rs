//! What the embedded engine does behind its user's back: flushes of the store, dropping of segments, figures.

use super::disk::Disk;
use super::store::{Position, Store};
use super::{Core, lock};
use crate::EngineError;
use crate::copies::Copies;
use chronofs_core::Version;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the engine looks for something to flush, or to drop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How the engine is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Metrics {
    /// Segments of the log.
    pub log_segments: u64,
    /// Space that they take.
    pub log_bytes: u64,
    /// Calls of fdatasync since the start.
    pub syncs: u64,
    /// How long the last one took.
    pub last_sync_micros: u64,
    /// Groups applied since the start.
    pub groups: u64,
    /// Flushes of the store started since the start.
    pub flushes: u64,
    /// The last commit that the store holds durably by itself.
    pub flushed: Version,
    /// Memory taken by what the store has not flushed.
    pub unflushed_bytes: u64,
    /// Memory taken by the row cache.
    pub row_cache_bytes: u64,
}

/// The state of the background work.
pub(crate) struct Maintenance {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    /// What the store holds durably.
    flushed: Position,
    /// What it is flushing.
    flushing: Option<Position>,
    flushes: u64,
    /// A flush is due and the disk has no room for it.
    full: bool,
    closing: bool,
}

impl Maintenance {
    pub(crate) fn new(flushed: Position) -> Self {
        let state = State { flushed, flushing: None, flushes: 0, full: false, closing: false };
        Maintenance { state: Mutex::new(state), wake: Condvar::new() }
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closing = true;
        self.wake.notify_all();
    }

    /// Waits a while; `false` when it is time to end.
    fn wait(&self) -> bool {
        let state = lock(&self.state);
        if state.closing {
            return false;
        }
        !self.wake.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0.closing
    }
}

/// What the store has not flushed.
pub(super) struct Unflushed {
    /// In its memory.
    pub(super) bytes: u64,
    /// In the log,
    pub(super) log_bytes: u64,
    /// and segments that ended since.
    pub(super) log_segments: u64,
}

impl<S: Store, D: Disk> Core<S, D> {
    pub(crate) fn start_keeper(self: &Arc<Self>) -> Result<Option<JoinHandle<()>>, EngineError> {
        if !self.options.keeper {
            return Ok(None);
        }
        let core = self.clone();
        let keep = move || while core.maintenance.wait() && core.maintain(false).is_ok() {};
        let name = "engine-keep".to_owned();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(keep);
        thread.map(Some).map_err(|source| EngineError::Io { action: "start the thread", path: name, source })
    }

    /// Starts a flush and waits until it is done, or until `within` is over.
    pub(super) fn flush_within(&self, within: Duration) -> Result<(), EngineError> {
        self.maintain(true)?;
        let until = Instant::now() + within;
        while lock(&self.maintenance.state).flushing.is_some() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            self.maintain(false)?;
        }
        Ok(())
    }

    /// See [`super::Embedded::maintain`].
    pub(crate) fn maintain(&self, flush_now: bool) -> Result<(), EngineError> {
        self.durability.check()?;
        match self.try_maintain(flush_now) {
            Err(error @ EngineError::Stopped(_)) => Err(error),
            Err(error) => self.stop(error),
            Ok(()) => Ok(()),
        }
    }

    fn try_maintain(&self, flush_now: bool) -> Result<(), EngineError> {
        if lock(&self.maintenance.state).flushing.is_some() {
            if !self.store.is_flushed()? {
                return Ok(());
            }
            let mut state = lock(&self.maintenance.state);
            if let Some(done) = state.flushing.take() {
                state.flushed = done;
            }
        }
        if (flush_now || self.wants_flush()) && self.has_room() {
            self.start_flush()?;
        }
        let flushed = lock(&self.maintenance.state).flushed;
        let mark = self.durability.durable_mark().mark;
        self.log.pop(|segment| {
            let needed = |copies: &Arc<Copies>| !copies.may_pop(segment.number);
            segment.number < flushed.place.segment
                && segment.last < mark
                && !self.copies.as_ref().is_some_and(needed)
        })
    }

    fn wants_flush(&self) -> bool {
        let Unflushed { bytes, log_bytes, .. } = self.unflushed();
        bytes >= self.options.flush_bytes || log_bytes >= self.options.flush_log_bytes
    }

    pub(super) fn unflushed(&self) -> Unflushed {
        let flushed = lock(&self.maintenance.state).flushed.place;
        let written = self.durability.written_mark().place;
        Unflushed {
            bytes: self.store.unflushed_bytes(),
            log_bytes: self.log.bytes_between(flushed, written),
            log_segments: written.segment.saturating_sub(flushed.segment),
        }
    }

    /// Without room for a flush the log goes on alone until it has no room either, which its users are told. The
    /// store would fail for good.
    pub(super) fn has_room(&self) -> bool {
        let room = self.store.has_room();
        let was_full = std::mem::replace(&mut lock(&self.maintenance.state).full, !room);
        match (was_full, room) {
            (false, false) => tracing::error!(
                "the disk has no room for a flush of the store; only the log grows until there is, or until it has \
                 no room either: free some space"
            ),
            (true, true) => tracing::info!("the disk has room for a flush of the store again"),
            _ => {}
        }
        room
    }

    fn start_flush(&self) -> Result<(), EngineError> {
        // Most of the sync happens here, so that what is left to sync while nothing can be applied is little.
        self.sync()?;
        let writer = lock(&self.writer);
        self.sync()?;
        if writer.position == lock(&self.maintenance.state).flushed {
            return Ok(());
        }
        self.store.flush()?;
        let mut state = lock(&self.maintenance.state);
        state.flushing = Some(writer.position);
        state.flushes += 1;
        Ok(())
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let (log_segments, log_bytes) = self.log.size();
        let (flushes, flushed) = {
            let state = lock(&self.maintenance.state);
            (state.flushes, state.flushed.version)
        };
        Metrics {
            log_segments,
            log_bytes,
            syncs: self.durability.syncs.load(Ordering::Relaxed),
            last_sync_micros: self.durability.last_sync_micros.load(Ordering::Relaxed),
            groups: lock(&self.writer).group,
            flushes,
            flushed,
            unflushed_bytes: self.store.unflushed_bytes(),
            row_cache_bytes: self.cache.bytes(),
        }
    }
}
