//! Group commit: who calls fdatasync, and who waits for it.
//!
//! Threads that need durability elect a leader; the leader syncs the newest segment once for everything written
//! before it began, the others wait. Segments before the newest are durable already.

use super::log::format::Place;
use super::log::{Log, Mark};
use crate::EngineError;
use crate::copies::Copies;
use crate::embedded::disk::{Disk, DiskFile};
use chronofs_core::Version;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
struct State {
    written: Mark,
    durable: Mark,
    syncing: bool,
    stopped: Option<String>,
}

/// The state of durability of a log.
#[derive(Default)]
pub(crate) struct Durability {
    state: Mutex<State>,
    changed: Condvar,
    durable_version: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) last_sync_micros: AtomicU64,
}

impl Durability {
    /// Begins where a recovered log ends.
    pub(crate) fn start(&self, at: Mark) {
        let mut state = self.lock();
        state.written = at;
        state.durable = at;
        self.durable_version.store(at.version.0, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has been written.
    pub(crate) fn written(&self, mark: Mark) {
        self.lock().written = mark;
    }

    /// What has been written.
    pub(crate) fn written_mark(&self) -> Mark {
        self.lock().written
    }

    /// What is durable.
    pub(crate) fn durable_mark(&self) -> Mark {
        self.lock().durable
    }

    /// The durable version.
    pub(crate) fn durable(&self) -> Version {
        Version(self.durable_version.load(Ordering::SeqCst))
    }

    /// An error if the engine has stopped.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match &self.lock().stopped {
            Some(reason) => Err(EngineError::Stopped(reason.clone())),
            None => Ok(()),
        }
    }

    /// Why the engine has stopped, if it has.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.lock().stopped.clone()
    }

    /// Stops the engine for good; the first reason is kept.
    pub(crate) fn stop(&self, reason: &EngineError) {
        let mut state = self.lock();
        if state.stopped.is_none() {
            tracing::error!("the engine stops: {reason}");
            state.stopped = Some(reason.to_string());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns once everything written before the call is durable.
    pub(crate) fn sync<D: Disk>(
        &self,
        log: &Log<D>,
        copies: Option<&Copies>,
    ) -> Result<Version, EngineError> {
        let mut state = self.lock();
        let target = state.written.place;
        loop {
            if let Some(reason) = &state.stopped {
                return Err(EngineError::Stopped(reason.clone()));
            }
            if state.durable.place >= target {
                return Ok(state.durable.version);
            }
            if !state.syncing {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.syncing = true;
        let mark = state.written;
        // Taken with the lock held: a roll notes the new segment as written only when this one is durable.
        let file = log.current();
        drop(state);
        self.lead(log, &*file, copies, mark)
    }

    fn lead<D: Disk>(
        &self,
        log: &Log<D>,
        file: &D::File,
        copies: Option<&Copies>,
        mark: Mark,
    ) -> Result<Version, EngineError> {
        let begun = Instant::now();
        // They write while this disk does.
        copies.inspect(|copies| copies.written(mark.place));
        let synced = file.sync_data();
        self.last_sync_micros.store(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if let Err(source) = synced {
            // The kernel may have dropped what it could not write; to ask again would only hide that.
            let path = log.path(mark.place.segment);
            let error = EngineError::Io { action: "fdatasync", path, source };
            self.lock().syncing = false;
            self.stop(&error);
            return Err(error);
        }
        if let Err(error) = copies.map_or(Ok(()), |copies| copies.wait(mark.place)) {
            self.lock().syncing = false;
            self.stop(&error);
            return Err(error);
        }
        let mut state = self.lock();
        state.syncing = false;
        state.durable = mark;
        self.durable_version.store(mark.version.0, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
        Ok(mark.version)
    }

    /// After a roll, which makes everything durable before it: nothing is written behind `place` yet.
    pub(crate) fn rolled(&self, place: Place) {
        let mut state = self.lock();
        state.written.place = place;
        state.durable.place = place;
    }
}
