//! Every row of a volume, live and past, whatever it says: for volumes that go as a whole.

use crate::Table;
use crate::snapshot::successor;
use bytes::Bytes;
use chronofs_core::VolumeIndex;
use chronofs_engine::{ReadStop, Reads};

/// What the engine holds of some tables, a page of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Keys and values, in the order of the keys.
    pub rows: Vec<(Bytes, Bytes)>,
    /// The engine's key at which to go on; `None` when these are the last.
    pub next: Option<Bytes>,
}

/// Up to `limit` rows (at least one) of `tables` in `volume`, live and past, from the engine's key `from` on (empty: from
/// the start). They are not looked at, so damaged ones are among them.
pub fn page<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    tables: &[Table],
    from: &[u8],
    limit: usize,
) -> Result<Page, ReadStop> {
    let (live, past) = (
        tables.iter().map(|table| table.prefix(volume, &[])),
        tables.iter().map(|table| table.history_prefix(volume, &[])),
    );
    let mut prefixes: Vec<Bytes> = live.chain(past).collect();
    prefixes.sort();
    let limit = limit.max(1);
    let mut rows = Vec::new();
    for prefix in prefixes {
        let end = successor(&prefix);
        let start = Bytes::copy_from_slice(from.max(&prefix[..]));
        if start < end {
            rows.extend(reads.scan(&start, &end, limit - rows.len())?);
        }
        if rows.len() == limit {
            let next = rows.last().map(|(key, _)| [&key[..], &[0]].concat().into());
            return Ok(Page { rows, next });
        }
    }
    Ok(Page { rows, next: None })
}
