//! An engine in memory: for tests, simulation and models. Everything applied is durable at once.

use crate::{Change, Commit, Engine, EngineError, ReadStop, Reads, Recovered, View};
use bytes::Bytes;
use chronofs_core::Version;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A state in memory: the pairs and the version of the last commit.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct State {
    pairs: BTreeMap<Bytes, Bytes>,
    version: Version,
}

impl State {
    /// Applies one commit.
    pub fn apply(&mut self, commit: &Commit) {
        assert!(
            commit.version > self.version,
            "versions must rise: {:?} after {:?}",
            commit.version,
            self.version
        );
        self.version = commit.version;
        for change in &commit.batch.0 {
            match change {
                Change::Put(key, value) => self.pairs.insert(key.clone(), value.clone()),
                Change::Delete(key) => self.pairs.remove(key),
            };
        }
    }

    /// Every pair, in key order.
    pub fn pairs(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.pairs.iter()
    }
}

impl Reads for State {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        Ok(self.pairs.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.pairs.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl Reads for Arc<State> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        (**self).get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        (**self).scan(from, to, limit)
    }
}

impl View for State {
    fn version(&self) -> Version {
        self.version
    }
}

/// The engine. Views share the state and copy it only when it changes under them.
#[derive(Default)]
pub struct Memory {
    state: Mutex<Arc<State>>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        // A panic while applying can leave half a batch behind only in a test that fails anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Memory {
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError> {
        let mut state = self.lock();
        let state = Arc::make_mut(&mut state);
        commits.iter().for_each(|commit| state.apply(commit));
        Ok(())
    }

    fn view(&self) -> Arc<dyn View> {
        self.lock().clone()
    }

    fn applied(&self) -> Version {
        self.lock().version
    }

    fn durable(&self) -> Version {
        self.applied()
    }

    fn sync(&self) -> Result<Version, EngineError> {
        Ok(self.applied())
    }

    fn recovered(&self) -> Vec<Recovered> {
        Vec::new()
    }

    fn mark(&self, _version: Version) -> Result<(), EngineError> {
        Ok(())
    }
}
