//! Every slice that a row names, live or of the past: for who checks that its bytes are there.

use crate::pack::moved;
use crate::rows::{Format, SLICE, STAGED, SliceRow, Staged, parse_slice_key, slice_key, staged_key};
use bytes::Bytes;
use chronofs_core::slice::{Place, Slice, SliceKey};
use chronofs_core::{Ino, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{Row, Snapshot};

/// A slice, and how long its row held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldSlice {
    /// Its file.
    pub ino: Ino,
    /// Its place in the file.
    pub key: SliceKey,
    /// The slice; where it lies now, if its bytes were moved.
    pub slice: Slice,
    /// The stored bytes of a staged slice, if they are there.
    pub staged: Option<Bytes>,
    /// The commit that wrote the row.
    pub since: Version,
    /// The commit from which on it no longer held; `None`: it is live.
    pub until: Option<Version>,
}

/// Where a listing of slices goes on.
#[derive(Clone, Default, Debug)]
pub struct HeldFrom {
    past: bool,
    start: Vec<u8>,
}

impl HeldFrom {
    /// In a form that can be kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&[u8::from(self.past)], &self.start[..]].concat()
    }

    /// Reads what [`HeldFrom::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<HeldFrom> {
        let (past, start) = bytes.split_first()?;
        (*past <= 1).then(|| HeldFrom { past: *past == 1, start: start.to_vec() })
    }
}

/// Up to `limit` slices of a volume, the live ones first, and where the next page begins. Rows that cannot be read as
/// slices are left out: [`crate::verify()`] names them.
pub fn held_slices<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    from: &HeldFrom,
    limit: usize,
) -> Result<(Vec<HeldSlice>, Option<HeldFrom>), ReadStop> {
    let tables = Snapshot::new(reads, volume, None);
    let (rows, last) = if from.past {
        let page = tables.history(SLICE, &from.start, limit)?;
        let last = page.last().map(|past| past.place.clone());
        let whole = page.into_iter().filter(|past| past.key().len() == SLICE.key_len);
        let rows =
            whole.map(|past| (Bytes::copy_from_slice(past.key()), past.row.clone(), Some(past.until())));
        (rows.collect::<Vec<_>>(), last)
    } else {
        let page = tables.scan(SLICE, &[], &from.start, limit)?;
        let last = page.last().map(|(key, _)| key.clone());
        (page.into_iter().map(|(key, row)| (key, row, None)).collect(), last)
    };
    let next = match last {
        Some(last) => Some(HeldFrom { past: from.past, start: [&last[..], &[0]].concat() }),
        None if from.past => None,
        None => Some(HeldFrom { past: true, start: Vec::new() }),
    };
    let mut found = Vec::with_capacity(rows.len());
    for (key, row, until) in rows {
        found.extend(held(&tables, &key, &row, until)?);
    }
    Ok((found, next))
}

/// The same slice as rows have it now: it may be of the past by now, its bytes may have been moved, and it may be gone.
pub fn held_again<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    slice: &HeldSlice,
) -> Result<Option<HeldSlice>, ReadStop> {
    let tables = Snapshot::new(reads, volume, None);
    let key = slice_key(slice.ino, slice.key);
    if let Some(row) = tables.get(SLICE, &key)?.filter(|row| row.since == slice.since) {
        return held(&tables, &key, &row, None);
    }
    let mut start = key.to_vec();
    loop {
        let Some(past) = tables.history(SLICE, &start, 1)?.pop().filter(|past| past.key() == key) else {
            return Ok(None);
        };
        if past.row.since == slice.since {
            return held(&tables, &key, &past.row, Some(past.until()));
        }
        start = [&past.place[..], &[0]].concat();
    }
}

fn held<R: Reads>(
    tables: &Snapshot<R>,
    key: &[u8],
    row: &Row,
    until: Option<Version>,
) -> Result<Option<HeldSlice>, ReadStop> {
    let Ok(SliceRow { mut slice, .. }) = SliceRow::decode(SLICE, key, &row.value) else { return Ok(None) };
    let (ino, slice_key) = parse_slice_key(key);
    let mut staged = None;
    if let Place::Staged(seal) = &slice.place {
        let seal = *seal;
        let key = staged_key(seal.id);
        let row = tables.get_plain(STAGED, &key)?;
        staged = row.and_then(|row| Staged::decode(STAGED, &key, &row).ok()).map(|staged| staged.bytes);
        if staged.is_none()
            && let Some(moved) = moved(tables, seal.id)?
        {
            slice.place = Place::Moved(seal, moved.object, moved.at);
        }
    }
    if let Place::Object(seal, _) = slice.place
        && let Some(moved) = moved(tables, seal.id)?
    {
        slice.place = Place::Moved(seal, moved.object, moved.at);
    }
    Ok(Some(HeldSlice { ino, key: slice_key, slice, staged, since: row.since, until }))
}
