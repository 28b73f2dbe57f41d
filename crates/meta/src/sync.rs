//! Makes the log durable: one thread syncs, the executor says what there is to sync and finds what was.

use crate::executor::Input;
use crate::metrics::Metrics;
use chronofs_core::Version;
use chronofs_engine::{Engine, EngineError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a commit may wait for the sync that it shares with others.
const SYNC_WITHIN: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(crate) struct SyncInner {
    /// Since when there has been something to sync.
    dirty_since: Option<Instant>,
    pub(crate) hurry: bool,
    pub(crate) mark: Option<Version>,
    pub(crate) stop: bool,
    /// What the last sync made durable, until the executor takes it.
    durable: Option<Version>,
}

impl SyncInner {
    pub(crate) fn dirty(&mut self) {
        self.dirty_since.get_or_insert_with(Instant::now);
    }
}

#[derive(Default)]
pub(crate) struct SyncState {
    inner: Mutex<SyncInner>,
    changed: Condvar,
}

impl SyncState {
    fn lock(&self) -> MutexGuard<'_, SyncInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut SyncInner)) {
        let mut inner = self.lock();
        let idle = inner.dirty_since.is_none();
        change(&mut inner);
        if idle || inner.hurry || inner.stop {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to sync, and then a little for more, unless somebody waits for it. `None`: the
    /// server stops.
    fn wait(&self) -> Option<Option<Version>> {
        let mut inner = self.lock();
        while !inner.stop {
            let left = inner.dirty_since.map(|since| SYNC_WITHIN.saturating_sub(since.elapsed()));
            inner = match left {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) if inner.hurry || left.is_zero() => {
                    (inner.dirty_since, inner.hurry) = (None, false);
                    return Some(inner.mark.take());
                }
                Some(left) => {
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        None
    }

    pub(crate) fn take_durable(&self) -> Option<Version> {
        self.lock().durable.take()
    }
}

/// It syncs for clients, and waits for nobody: the executor finds what became durable
/// whenever it runs next.
pub(crate) fn sync_loop(
    state: &SyncState,
    engine: &dyn Engine,
    queue: &mpsc::Sender<Input>,
    metrics: &Metrics,
) -> Result<(), EngineError> {
    while let Some(mark) = state.wait() {
        let began = Instant::now();
        metrics.sync_began(Some(began));
        let durable = engine.sync()?;
        metrics.sync_began(None);
        metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        let lag_ns = engine.applied().0.saturating_sub(durable.0);
        metrics.durable_lag.set(lag_ns as f64 / 1e9);
        if let Some(mark) = mark {
            engine.mark(mark)?;
        }
        state.lock().durable = Some(durable);
        // If the queue is full the executor will run anyway; if it is closed the server ends.
        drop(queue.try_send(Input::Events(Vec::new())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Event;
    use chronofs_engine::memory::Memory;
    use chronofs_engine::{Batch, Commit};

    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_executor_that_is_behind_holds_up_no_sync() {
        let (queue, mut inputs) = mpsc::channel(1);
        queue.try_send(Input::Events(vec![Event::Tick])).ok().unwrap();
        let (state, engine) = (SyncState::default(), Memory::default());
        let (metrics, _) = Metrics::new();
        std::thread::scope(|scope| {
            let syncer = scope.spawn(|| sync_loop(&state, &engine, &queue, &metrics));
            for version in [Version(1), Version(2)] {
                let commit = Commit { version, tag: Default::default(), batch: Batch::default() };
                engine.apply(vec![commit]).unwrap();
                state.change(|inner| inner.dirty());
                wait_until("the sync", || state.lock().durable == Some(version));
            }
            assert_eq!((state.take_durable(), state.take_durable()), (Some(Version(2)), None));
            inputs.try_recv().unwrap();
            state.change(|inner| inner.dirty());
            wait_until("the call", || inputs.try_recv().is_ok());
            state.change(|inner| inner.stop = true);
            syncer.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_came_during_a_sync_waits_since_it_came() {
        let state = SyncState::default();
        let begun = Instant::now();
        state.lock().dirty_since = Some(begun - SYNC_WITHIN / 2);
        assert_eq!(state.wait(), Some(None));
        assert!(begun.elapsed() >= SYNC_WITHIN / 2, "it waits a little for others");
        state.lock().dirty_since = Some(Instant::now() - SYNC_WITHIN * 2);
        state.lock().mark = Some(Version(7));
        assert_eq!(state.wait(), Some(Some(Version(7))));
        assert!(state.lock().dirty_since.is_none());
    }
}
