//! Counting: how many rows, live and past, name each object and each staged slice. A staged slice goes on being counted
//! by itself when it was moved into an object ([`crate::pack`]); the object is then named by the slices in it.
//!
//! The count is taken from the finished batch of a commit, whatever made it, so no operation can forget to count. What
//! no row names any more is *retired*: it is entered in a table by time, and collected from there ([`crate::collect`]).
//! A slice that is cut or superseded while history is kept goes on being named by its past row, so what a protected
//! instant needs is never retired: rows of the past go only through `Expire`, which respects what is protected.

use crate::ctx::Done;
use crate::rows::{
    Format, MOVED, OBJECT, RETIRED, Refs, Retired, SHARED, SLICE, STAGED, SliceRow, TALLY, Tally, Volume,
    object_key, parse_slice_key, staged_key,
};
use bytes::Bytes;
use chronofs_core::slice::Place;
use chronofs_core::{Errno, ObjectId, SliceId, Version, VolumeIndex};
use chronofs_engine::{Batch, Change, ReadStop, Reads};
use chronofs_history::{Table, Txn, stored_row};
use std::collections::{BTreeMap, BTreeSet};

/// What rows name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Named {
    /// An object in a block store.
    Object(ObjectId),
    /// A slice that is staged, or was moved into an object, from another one or from the metadata.
    Staged(SliceId),
}

impl Named {
    pub(crate) const OBJECT_KIND: u8 = 1;
    pub(crate) const STAGED_KIND: u8 = 2;

    /// What a slice is part of, and how many stored bytes that has at least.
    pub(crate) fn by(place: &Place) -> Option<(Named, u64)> {
        match place {
            Place::Hole | Place::Inline(..) | Place::Moved(..) => None,
            Place::Staged(seal) => Some((Named::Staged(seal.id), u64::from(seal.stored_len))),
            Place::Object(seal, offset) => {
                Some((Named::Object(seal.id.object), offset.saturating_add(u64::from(seal.stored_len))))
            }
        }
    }

    /// Where its count stands.
    pub(crate) fn count(self) -> (Table, Vec<u8>) {
        match self {
            Named::Object(id) => (OBJECT, object_key(id).to_vec()),
            Named::Staged(id) => (SHARED, staged_key(id).to_vec()),
        }
    }

    /// Its key in [`RETIRED`].
    pub(crate) fn retired_key(self, since: Version) -> Vec<u8> {
        let (kind, id) = match self {
            Named::Object(object) => (Self::OBJECT_KIND, SliceId { object, index: 0 }),
            Named::Staged(id) => (Self::STAGED_KIND, id),
        };
        [&since.0.to_be_bytes()[..], &[kind], &staged_key(id)].concat()
    }
}

/// How a commit changes how often something is named.
#[derive(Clone, Copy, Default)]
struct Delta {
    rows: i64,
    /// What it has at least.
    bytes: u64,
    /// Stored bytes of the slices that rows name.
    named: i64,
    /// A live row was added: the object may have more bytes than any row told before.
    grown: bool,
}

impl Delta {
    fn add(&mut self, other: Delta) {
        self.rows += other.rows;
        self.bytes = self.bytes.max(other.bytes);
        self.named += other.named;
        self.grown |= other.grown;
    }
}

/// Adds to `batch`, which is to be committed at `version` on `reads`, what it changes in the counts. `known`: what some
/// keys hold in `reads`, in the order of keys, to save reads. Errors: EINVAL when it names what is condemned.
pub(crate) fn count<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    volume: &Volume,
    version: Version,
    known: &[(Bytes, Bytes)],
    batch: &mut Batch,
) -> Done<()> {
    if volume.flags & Volume::COUNTED == 0 {
        return Ok(());
    }
    let (deltas, staged) = deltas(reads, index, version, known, batch)?;
    if deltas.is_empty() {
        return Ok(());
    }
    let mut ledger = Ledger::open(reads, index, version)?;
    for (named, delta) in ledger.resolve(deltas)? {
        ledger.settle(named, delta, &staged)?;
    }
    batch.0.extend(ledger.close()?.0);
    Ok(())
}

/// By slice and what it was born as.
type SliceDeltas = BTreeMap<(Named, SliceId), Delta>;

/// What the batch changes in how often things are named, and the keys of the staged slices that it brings.
fn deltas<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    version: Version,
    known: &[(Bytes, Bytes)],
    batch: &Batch,
) -> Result<(SliceDeltas, BTreeSet<Bytes>), ReadStop> {
    let mut staged = BTreeSet::new();
    // The last change of a key wins.
    let mut changed: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
    for change in &batch.0 {
        let key = change.key();
        if SLICE.parse(index, key).is_some_and(|(key, _)| key.len() == SLICE.key_len) {
            let value = if let Change::Put(_, value) = change { Some(value) } else { None };
            changed.insert(key, value);
        } else if STAGED.parse(index, key).is_some() && matches!(change, Change::Put(..)) {
            staged.insert(key.clone());
        }
    }
    let mut deltas = SliceDeltas::new();
    let mut note = |key: &Bytes, stored: Option<&Bytes>, rows: i64, grown: bool| {
        // A damaged row counts for nothing when it goes: what it named is kept.
        let Some(row) = stored.and_then(|stored| stored_row(key, stored).ok()) else { return };
        let Ok(row) = SliceRow::decode(SLICE, key, &row.value) else { return };
        let (Some((of, bytes)), Some(seal)) = (Named::by(&row.slice.place), row.slice.place.seal()) else {
            return;
        };
        let named = i64::from(seal.stored_len) * rows;
        deltas.entry((of, seal.id)).or_default().add(Delta { rows, bytes, named, grown });
    };
    for (key, after) in &changed {
        let before = match known.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(at) => Some(known[at].1.clone()),
            Err(_) => before(reads, index, version, key, &changed)?,
        };
        let live = SLICE.parse(index, key).is_some_and(|(_, until)| until.is_none());
        note(key, before.as_ref(), -1, false);
        note(key, *after, 1, live);
    }
    deltas.retain(|_, delta| delta.rows != 0 || delta.grown);
    Ok((deltas, staged))
}

/// What a slice's key held before the commit.
fn before<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    version: Version,
    key: &Bytes,
    changed: &BTreeMap<&Bytes, Option<&Bytes>>,
) -> Result<Option<Bytes>, ReadStop> {
    let Some((slice_key, until)) = SLICE.parse(index, key) else { return Ok(None) };
    let made = until.unwrap_or_else(|| parse_slice_key(slice_key).1.version);
    if made == version {
        // The version is in the key, so nothing can have been there.
        return Ok(None);
    }
    if until.is_none()
        && let Some(Some(past)) = changed.get(&SLICE.history_key(index, slice_key, version))
    {
        return Ok(Some((*past).clone()));
    }
    reads.get(key)
}

/// Counts and sums in the making.
pub(crate) struct Ledger<'a, R: Reads + ?Sized> {
    pub(crate) txn: Txn<&'a R>,
    pub(crate) tally: Tally,
    index: VolumeIndex,
}

impl<'a, R: Reads + ?Sized> Ledger<'a, R> {
    pub(crate) fn open(reads: &'a R, index: VolumeIndex, version: Version) -> Result<Self, ReadStop> {
        let txn = Txn::new(reads, index, version, false);
        let row = txn.get_plain(TALLY, &[])?;
        let tally = row.map(|row| Tally::decode(TALLY, &[], &row)).transpose()?.unwrap_or_default();
        Ok(Ledger { txn, tally, index })
    }

    pub(crate) fn close(mut self) -> Result<Batch, ReadStop> {
        self.txn.put_plain(TALLY, &[], &self.tally.encode()?);
        Ok(self.txn.into_batch())
    }

    pub(crate) fn get<T: Format>(&self, table: Table, key: &[u8]) -> Result<Option<T>, ReadStop> {
        self.txn.get_plain(table, key)?.map(|row| T::decode(table, key, &row)).transpose()
    }

    /// What was born in an object and lies in another one is counted by itself.
    fn resolve(&self, deltas: SliceDeltas) -> Result<BTreeMap<Named, Delta>, ReadStop> {
        let repacked = self.tally.flags & Tally::REPACKED != 0;
        let mut resolved: BTreeMap<Named, Delta> = BTreeMap::new();
        for ((mut named, id), delta) in deltas {
            let born = matches!(named, Named::Object(_));
            if repacked && born && self.txn.get_plain(MOVED, &staged_key(id))?.is_some() {
                named = Named::Staged(id);
            }
            resolved.entry(named).or_default().add(delta);
        }
        Ok(resolved)
    }

    fn settle(&mut self, named: Named, mut delta: Delta, staged: &BTreeSet<Bytes>) -> Done<()> {
        let (table, key) = named.count();
        let row = self.get::<Refs>(table, &key)?;
        let small = matches!(named, Named::Staged(_));
        let moved = small && self.txn.get_plain(MOVED, &key)?.is_some();
        if moved {
            delta.bytes = 0;
        }
        let (new, unshared) = match named {
            Named::Object(_) => (row.is_none(), 0),
            Named::Staged(_) if staged.contains(&STAGED.live_key(self.index, &key)) => (true, 0),
            // Without a row of its own it is named once.
            Named::Staged(_) => (false, 1),
        };
        let had_row = row.is_some();
        let mut refs = match row {
            Some(refs) if !new => refs,
            _ => Refs { rows: unshared, bytes: delta.bytes, ..Refs::new(self.txn.version()) },
        };
        if refs.condemned.is_some() {
            return if delta.rows > 0 { Err(Errno::EINVAL.into()) } else { Ok(()) };
        }
        let Ok(after) = u32::try_from(i64::from(refs.rows) + delta.rows) else {
            // It is named less than never: the count is damaged, so nothing rests on it and all is kept.
            return Ok(());
        };
        if new && after == 0 {
            return Ok(());
        }
        let was_held = !new && refs.retired.is_none();
        self.sum(named, &mut refs, delta.bytes, after, new)?;
        if small && !moved {
            match (was_held, after > 0) {
                (false, true) => self.tally.staged.add(refs.bytes),
                (true, false) => self.tally.staged.take(refs.bytes),
                _ => {}
            }
        }
        refs.rows = after;
        refs.changed = self.txn.version();
        if !small {
            refs.named = refs.named.saturating_add_signed(delta.named);
        }
        match named {
            Named::Staged(_) if after == 1 && had_row => self.txn.delete_plain(table, &key),
            Named::Staged(_) if after == 1 => {}
            _ => self.txn.put_plain(table, &key, &refs.encode()?),
        }
        Ok(())
    }

    /// Brings the sums and the table by time up to `after` rows.
    pub(crate) fn sum(
        &mut self,
        named: Named,
        refs: &mut Refs,
        bytes: u64,
        after: u32,
        new: bool,
    ) -> Result<(), ReadStop> {
        if new {
            self.tally.held.add(refs.bytes);
        } else if let Some(since) = refs.retired.take() {
            self.txn.delete_plain(RETIRED, &named.retired_key(since));
            self.tally.retired.take(refs.bytes);
            self.tally.held.add(refs.bytes);
        }
        let more = bytes.saturating_sub(refs.bytes);
        refs.bytes += more;
        self.tally.held.bytes = self.tally.held.bytes.saturating_add(more);
        if after == 0 {
            self.retire(named, refs)?;
        }
        Ok(())
    }

    /// From this commit on no row names it.
    pub(crate) fn retire(&mut self, named: Named, refs: &mut Refs) -> Result<(), ReadStop> {
        let version = self.txn.version();
        refs.retired = Some(version);
        let row = Retired { flags: 0, bytes: refs.bytes };
        self.txn.put_plain(RETIRED, &named.retired_key(version), &row.encode()?);
        self.tally.held.take(refs.bytes);
        self.tally.retired.add(refs.bytes);
        Ok(())
    }
}
