//! The engine of the simulation, with a record of what it was given.

use chronofs_core::Version;
use chronofs_engine::embedded::{Embedded, MemMedium, MemStore, Options};
use chronofs_engine::memory::State;
use chronofs_engine::sim::SimDisk;
use chronofs_engine::{Commit, Engine, EngineError, Recovered, View};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Inner = Embedded<MemStore, SimDisk>;

/// Every commit that may have reached the log, in order. Outlives the server.
pub type Record = Arc<Mutex<Vec<Commit>>>;

pub struct RecordingEngine {
    inner: Inner,
    record: Record,
}

impl RecordingEngine {
    pub fn open(disk: &SimDisk, medium: &MemMedium, record: &Record) -> Result<Self, EngineError> {
        let options = Options {
            segment_bytes: 16 << 10,
            flush_bytes: 4 << 10,
            flush_log_bytes: 8 << 10,
            row_cache_bytes: 16 << 10,
            ceiling_ahead: Duration::from_secs(2),
            keeper: false,
        };
        let inner = Embedded::new(disk.clone(), MemStore::open(medium.clone()), options)?;
        Ok(RecordingEngine { inner, record: record.clone() })
    }

    pub fn last_commit(&self) -> Version {
        self.inner.opening().last_commit
    }

    pub fn maintain(&self) -> Result<(), EngineError> {
        self.inner.maintain()
    }
}

impl Engine for RecordingEngine {
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError> {
        let mut record = self.record.lock().unwrap();
        let before = record.len();
        record.extend(commits.iter().cloned());
        let result = self.inner.apply(commits);
        // After any other failure the commits may be in the log, or not.
        if matches!(result, Err(EngineError::NoSpace { .. })) {
            record.truncate(before);
        }
        result
    }
    fn view(&self) -> Arc<dyn View> {
        self.inner.view()
    }
    fn applied(&self) -> Version {
        self.inner.applied()
    }
    fn durable(&self) -> Version {
        self.inner.durable()
    }
    fn sync(&self) -> Result<Version, EngineError> {
        self.inner.sync()
    }
    fn recovered(&self) -> Vec<Recovered> {
        self.inner.recovered()
    }
    fn mark(&self, version: Version) -> Result<(), EngineError> {
        self.inner.mark(version)
    }
}

/// The state of `view` must be what `commits` make.
pub fn assert_is_model(view: &dyn View, commits: &[Commit]) {
    let mut model = State::default();
    commits.iter().for_each(|commit| model.apply(commit));
    let found = view.scan(&[0], &[0xff; 64], usize::MAX).unwrap();
    let expected: Vec<_> = model.pairs().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(found, expected, "the state is not what the surviving commits make");
}
