//! What other rows say of a row that is wrong: counts, sums and indexes, and nothing else. What a row says that stands
//! for itself is not guessed.

use super::{Check, Fault, verify_at};
use crate::rows::Format;
use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::{Batch, Change, EngineError, Overlay, ReadStop, Reads};
use chronofs_history::{Table, encode_plain, encode_versioned};
use std::collections::{BTreeMap, BTreeSet};

/// Sums rest on counts, and these on rows: one round each, and one in which nothing is left.
const ROUNDS_MAX: usize = 16;

/// One commit, at `version`, that mends all faults which other rows decide, and these faults. Nothing in between is ever
/// written: an object that a count half mended calls unnamed could be collected.
pub fn mends<R: Reads + ?Sized>(reads: &R, version: Version) -> Result<(Vec<Fault>, Batch), ReadStop> {
    let mut mended = Overlay::new(reads);
    let mut changes = BTreeMap::<Bytes, Change>::new();
    let mut before: Option<Vec<Fault>> = None;
    let mut lossy = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let (mut faults, known) = (Vec::new(), lossy.len());
        verify_at(&mended, version, &mut lossy, &mut |fault| faults.push(fault))?;
        if lossy.len() > known {
            // Once more, without what would make them seem whole: the next repair would lower what they count.
            continue;
        }
        // Of two changes of a row the other is made in the next round.
        let mut round = BTreeMap::<Bytes, Change>::new();
        for change in faults.iter().filter_map(|fault| fault.mend.as_ref()) {
            round.entry(change.key().clone()).or_insert_with(|| change.clone());
        }
        let left = faults.iter().map(|fault| fault.what()).collect::<BTreeSet<_>>();
        if round.is_empty() {
            let mut before = before.unwrap_or_default();
            before.retain(|fault| !left.contains(&fault.what()));
            let mut batch = Vec::new();
            for (key, change) in changes {
                let wanted = if let Change::Put(_, value) = &change { Some(value) } else { None };
                if reads.get(&key)?.as_ref() != wanted {
                    batch.push(change);
                }
            }
            return Ok((before, Batch(batch)));
        }
        before.get_or_insert(faults);
        mended.push(&Batch(round.values().cloned().collect()));
        changes.extend(round);
    }
    Err(ReadStop::Failed(EngineError::Store(
        "correcting rows does not come to an end; nothing was changed".to_owned(),
    )))
}

impl<R: Reads + Copy> Check<'_, R> {
    /// A row of a table that is not versioned becomes `row`.
    pub(super) fn plain<T: Format>(&self, table: Table, key: &[u8], row: &T) -> Result<Change, ReadStop> {
        Ok(Change::Put(table.live_key(self.index, key), encode_plain(&row.encode()?)))
    }

    /// A live row of a versioned table becomes `row`, and holds since when it did: it was never anything else.
    pub(super) fn live<T: Format>(
        &self,
        table: Table,
        key: &[u8],
        row: &T,
    ) -> Result<Option<Change>, ReadStop> {
        let Some(live) = self.tables.get(table, key)? else { return Ok(None) };
        let value = encode_versioned(live.since, &row.encode()?);
        Ok(Some(Change::Put(table.live_key(self.index, key), value)))
    }

    /// The row of a table that is not versioned goes.
    pub(super) fn gone(&self, table: Table, key: &[u8]) -> Change {
        Change::Delete(table.live_key(self.index, key))
    }
}
