//! Changing versioned tables: one step's changes, read through and turned into one batch.

use crate::{Row, Snapshot, Table, decode_plain, decode_versioned, encode_plain, encode_versioned};
use bytes::Bytes;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{Batch, Change, Overlay, ReadStop, Reads};

/// The changes of one step at one version. Reads see them.
pub struct Txn<R> {
    reads: Overlay<R>,
    batch: Batch,
    volume: VolumeIndex,
    version: Version,
    keep_history: bool,
}

impl<R: Reads> Txn<R> {
    /// A step on `volume` at `version`, which is above every version in `reads`. Without `keep_history` superseded
    /// rows are dropped.
    pub fn new(reads: R, volume: VolumeIndex, version: Version, keep_history: bool) -> Self {
        Txn { reads: Overlay::new(reads), batch: Batch::default(), volume, version, keep_history }
    }

    /// The version of the step.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The tables as they are with the changes so far.
    pub fn now(&self) -> Snapshot<&Overlay<R>> {
        Snapshot::new(&self.reads, self.volume, None)
    }

    /// The row of `key` with the changes so far.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Row>, ReadStop> {
        self.now().get(table, key)
    }

    /// The row `key` holds `value` from this version on; what it held goes to history.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), ReadStop> {
        self.supersede(table, key)?;
        self.push(Change::Put(table.live_key(self.volume, key), encode_versioned(self.version, value)));
        Ok(())
    }

    /// The row `key`, known not to be there, holds `value` from this version on. Saves the read.
    pub fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.push(Change::Put(table.live_key(self.volume, key), encode_versioned(self.version, value)));
    }

    /// There is no row `key` from this version on; what it held goes to history.
    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), ReadStop> {
        if self.supersede(table, key)? {
            self.push(Change::Delete(table.live_key(self.volume, key)));
        }
        Ok(())
    }

    /// A row of a table that is not versioned.
    pub fn get_plain(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        let live_key = table.live_key(self.volume, key);
        self.reads.get(&live_key)?.map(|stored| decode_plain(&live_key, &stored)).transpose()
    }

    /// Sets a row of a table that is not versioned.
    pub fn put_plain(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.push(Change::Put(table.live_key(self.volume, key), encode_plain(value)));
    }

    /// Removes a row of a table that is not versioned.
    pub fn delete_plain(&mut self, table: Table, key: &[u8]) {
        self.push(Change::Delete(table.live_key(self.volume, key)));
    }

    /// The batch of all changes.
    pub fn into_batch(self) -> Batch {
        self.batch
    }

    /// Moves the row of `key`, if there is one, to history. A row written by this very step never held.
    fn supersede(&mut self, table: Table, key: &[u8]) -> Result<bool, ReadStop> {
        let live_key = table.live_key(self.volume, key);
        let Some(stored) = self.reads.get(&live_key)? else { return Ok(false) };
        let row = decode_versioned(&live_key, &stored)?;
        assert!(row.since <= self.version, "a row of the future: {row:?} at {:?}", self.version);
        if self.keep_history && row.since < self.version {
            self.push(Change::Put(table.history_key(self.volume, key, self.version), stored));
        }
        Ok(true)
    }

    fn push(&mut self, change: Change) {
        let batch = Batch(vec![change]);
        self.reads.push(&batch);
        self.batch.0.extend(batch.0);
    }
}
