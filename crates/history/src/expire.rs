//! Forgetting: a background scan over history that drops the rows which no protected instant can see.
//!
//! Nothing else may delete a row of history. A step only reads and hands back a batch; whoever applies it goes on
//! at [`Expired::next`], and may stop and start anywhere, since a row that may go once may go for ever (protected
//! intervals never grow into what the horizon has passed).

use crate::snapshot::successor;
use crate::{Protected, Table, decode_versioned};
use bytes::Bytes;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{Batch, Change, ReadStop, Reads};

/// One step of an expiry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expired {
    /// Deletes the rows that may go.
    pub batch: Batch,
    /// What the engine holds under the keys of these rows, in the order of the keys.
    pub dropped: Vec<(Bytes, Bytes)>,
    /// The engine's key at which to go on; `None` when the scan is through.
    pub next: Option<Bytes>,
}

/// Looks at up to `limit` rows (at least one) of the history of `tables` in `volume`, from the engine's key `from`
/// on (empty: from the start). A row goes when its life [since, until) meets no protected interval.
pub fn expire<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    tables: &[Table],
    protected: &Protected,
    from: &[u8],
    limit: usize,
) -> Result<Expired, ReadStop> {
    let mut tables = tables.to_vec();
    tables.sort_by_key(|table| table.number);
    let mut left = limit.max(1);
    let (mut batch, mut dropped) = (Batch::default(), Vec::new());
    for table in tables {
        let prefix = table.history_prefix(volume, &[]);
        let end = successor(&prefix);
        let start = Bytes::copy_from_slice(from.max(&prefix));
        let rows = reads.scan(&start, &end, left)?;
        left -= rows.len();
        let last = rows.last().map(|(key, _)| key.clone());
        for (key, stored) in rows {
            let since = decode_versioned(&key, &stored)?.since;
            if !protected.intersects(since, until_of(&key)) {
                batch.0.push(Change::Delete(key.clone()));
                dropped.push((key, stored));
            }
        }
        if left == 0 {
            let next = last.map(|key| [&key[..], &[0]].concat().into());
            return Ok(Expired { batch, dropped, next: next.or(Some(end)) });
        }
    }
    Ok(Expired { batch, dropped, next: None })
}

/// The end of the life of a history row, from its key.
pub(crate) fn until_of(key: &[u8]) -> Version {
    Version(key.last_chunk().map_or(0, |until| u64::from_be_bytes(*until)))
}
