//! A store in memory, for simulation: what is flushed outlives the store in a [`MemMedium`], the rest does not.

use super::store::{Position, Store};
use crate::memory::State;
use crate::{Commit, EngineError};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Flushed = (Arc<State>, Position);

/// What plays the disk for [`MemStore`]. Clones are the same medium.
#[derive(Clone, Default)]
pub struct MemMedium(Arc<Mutex<Medium>>);

#[derive(Clone, Default)]
struct Medium {
    durable: Option<Flushed>,
    /// Flushes that were started and are not done, oldest first.
    pending: VecDeque<Flushed>,
    images: BTreeMap<PathBuf, Flushed>,
    broken: bool,
    full: bool,
}

impl MemMedium {
    /// Completes the oldest flush that is under way. `false` if there was none.
    pub fn complete_one(&self) -> bool {
        let mut medium = self.lock();
        let done = medium.pending.pop_front();
        let any = done.is_some();
        medium.durable = done.or(medium.durable.take());
        any
    }

    /// Forgets the flushes under way, as a crash does.
    pub fn crash(&self) {
        self.lock().pending.clear();
    }

    /// Lets every flush from now on fail.
    pub fn break_down(&self) {
        self.lock().broken = true;
    }

    /// Whether the medium has room for a flush from now on.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Another medium that holds the same.
    pub fn copy(&self) -> MemMedium {
        MemMedium(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Another medium, which holds what was put into the image `place`.
    pub fn of_image(&self, place: &Path) -> Option<MemMedium> {
        let durable = self.lock().images.get(place).cloned()?;
        Some(MemMedium(Arc::new(Mutex::new(Medium { durable: Some(durable), ..Medium::default() }))))
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The store.
pub struct MemStore {
    state: Mutex<Arc<State>>,
    position: Mutex<Position>,
    medium: MemMedium,
}

impl MemStore {
    /// A store with what `medium` holds.
    pub fn open(medium: MemMedium) -> Self {
        let durable = medium.lock().durable.clone();
        let (state, position) = durable.unwrap_or_default();
        MemStore { state: Mutex::new(state), position: Mutex::new(position), medium }
    }

    fn state(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemStore {
    type Snapshot = Arc<State>;

    fn write(&self, commits: &[Commit], position: Position) -> Result<(), EngineError> {
        let mut state = self.state();
        let state = Arc::make_mut(&mut state);
        commits.iter().for_each(|commit| state.apply(commit));
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        Ok(())
    }

    fn snapshot(&self) -> Arc<State> {
        self.state().clone()
    }

    fn flush(&self) -> Result<(), EngineError> {
        let position = *self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = (self.state().clone(), position);
        self.medium.lock().pending.push_back(flushed);
        Ok(())
    }

    fn is_flushed(&self) -> Result<bool, EngineError> {
        let medium = self.medium.lock();
        if medium.broken {
            return Err(EngineError::Store("the simulated medium is broken".to_owned()));
        }
        Ok(medium.pending.is_empty())
    }

    fn position(&self) -> Result<Option<Position>, EngineError> {
        let held = self.medium.lock().durable.as_ref().map(|(_, position)| *position);
        Ok(held.filter(|position| *position != Position::default()))
    }

    fn image(&self, place: &Path) -> Result<Position, EngineError> {
        let mut medium = self.medium.lock();
        if medium.broken || medium.images.contains_key(place) {
            return Err(EngineError::Store("the simulated medium makes no image".to_owned()));
        }
        let image = medium.durable.clone().unwrap_or_default();
        let position = image.1;
        medium.images.insert(place.to_owned(), image);
        Ok(position)
    }

    fn has_room(&self) -> bool {
        !self.medium.lock().full
    }

    fn unflushed_bytes(&self) -> u64 {
        0
    }

    fn abandon(&self) {}
}
