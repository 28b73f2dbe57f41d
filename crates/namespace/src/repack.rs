//! Repacking: what is still needed of an object of which little is needed is put into a new one, and the old one goes.
//!
//! A slice that is moved is counted by itself from then on, whatever it was born in, and has a row in [`MOVED`]; rows of
//! slices stay as they are. An object of the server is taken slice by slice. One that a session put is taken whole, in
//! one commit, when the session publishes nothing of it any more: what rows name of it was found outside of that commit, by the index in the
//! object, so it is taken only if nothing of it has changed since and nothing was overlooked.

use crate::counted::{Ledger, Named};
use crate::pack::packs;
use crate::protect::list_kept;
use crate::rows::{
    Format, MOVED, Moved, OBJECT, Refs, SHARED, SLICE, SliceRow, Tally, block_key, object_key, staged_key,
};
use crate::system::{self, Decided, Steward, SystemReply};
use chronofs_core::ops::MovedSlice;
use chronofs_core::slice::{Place, Seal};
use chronofs_core::{Ino, ObjectId, SessionId, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use uuid::Uuid;

/// Bytes of an object beside its slices, and beside each of them: label, footer, index.
const OBJECT_OVERHEAD: u64 = 96;
const SLICE_OVERHEAD: u64 = 64;
const PAGE: usize = 256;

/// An object of which little is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoorObject {
    /// Its id.
    pub id: ObjectId,
    /// All of its bytes.
    pub size: u64,
    /// Stored bytes that rows name.
    pub named: u64,
    /// Rows that name them.
    pub rows: u32,
}

/// The object, `size` bytes long in its store, if less than `percent` of it are needed and it may be repacked.
pub fn poor_object<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    id: ObjectId,
    size: u64,
    percent: u64,
) -> Result<Option<PoorObject>, ReadStop> {
    let (tables, key) = (Snapshot::new(reads, index, None), object_key(id));
    let Some(row) = tables.get_plain(OBJECT, &key)? else { return Ok(None) };
    let refs = Refs::decode(OBJECT, &key, &row)?;
    let needed = refs.named.saturating_add(OBJECT_OVERHEAD + SLICE_OVERHEAD * u64::from(refs.rows));
    let poor = needed.saturating_mul(100) < size.saturating_mul(percent);
    if refs.rows == 0 || refs.condemned.is_some() || !poor || !is_over(reads, &tables, id)? {
        return Ok(None);
    }
    Ok(Some(PoorObject { id, size, named: refs.named, rows: refs.rows }))
}

/// Whether nobody can put slices of the object into rows any more.
fn is_over<R: Reads + ?Sized>(reads: &R, tables: &Snapshot<&R>, id: ObjectId) -> Result<bool, ReadStop> {
    match id.session {
        SessionId::SERVER => Ok(packs(tables, id.incarnation)?.open != Some(id.n)),
        _ => system::is_over(reads, id),
    }
}

/// A slice as the index of an object has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexedSlice {
    /// Its seal.
    pub seal: Seal,
    /// Where in the object it lies.
    pub at: u64,
    /// The file it was written to.
    pub ino: Ino,
    /// The block.
    pub block: u32,
}

/// Which of the slices in an object's index are needed, by their places in it, and how many rows name each; of an object
/// of the server, where each has a count of its own, always 1. `None`: a pin needs it, or the index does not tell where all
/// of it is named.
pub fn needed_slices<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    object: ObjectId,
    slices: &[IndexedSlice],
) -> Result<Option<Vec<(usize, u32)>>, ReadStop> {
    let tables = Snapshot::new(reads, index, None);
    let parted = parted_from(reads, index, object)?;
    let kept = list_kept(reads)?.into_iter().filter(|(of, _, row)| *of == index && row.made >= parted);
    let pins: Vec<(Version, Version)> = kept.map(|(.., row)| (row.at, row.to)).collect();
    let packed = object.session == SessionId::SERVER;
    let (mut needed, mut blocks, mut rows_found) = (Vec::new(), BTreeMap::new(), 0u32);
    for (n, slice) in slices.iter().enumerate() {
        let mut named: Vec<&NamingRow> = Vec::new();
        if !packed || !pins.is_empty() {
            let rows = match blocks.entry((slice.ino, slice.block)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => free.insert(naming_rows(&tables, slice.ino, slice.block)?),
            };
            named.extend(rows.iter().filter(|row| row.seal.id == slice.seal.id));
        }
        if named.iter().any(|row| pins.iter().any(|(at, to)| row.since <= *to && *at < row.until)) {
            return Ok(None);
        }
        // What the index says of a client's object is the client's word; where a slice lies, and what it is, say rows.
        if !packed && named.iter().any(|row| (row.seal, row.at) != (slice.seal, Some(slice.at))) {
            return Ok(None);
        }
        if packed {
            if lies_in(&tables, slice, object)? {
                needed.push((n, 1));
            }
        } else if !named.is_empty() {
            rows_found = rows_found.saturating_add(named.len() as u32);
            needed.push((n, named.len() as u32));
        }
    }
    let key = object_key(object);
    let refs = tables.get_plain(OBJECT, &key)?.map(|row| Refs::decode(OBJECT, &key, &row)).transpose()?;
    let overlooked = !packed && refs.is_none_or(|refs| refs.rows != rows_found);
    Ok((!overlooked).then_some(needed))
}

/// Of an object that the source of a restore stored, since when the volume goes its own way. What is kept from before is kept for
/// images of the source, which sees to that itself: nothing that goes here goes there.
fn parted_from<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    object: ObjectId,
) -> Result<Version, ReadStop> {
    let volume = system::volume(reads, index)?.filter(|volume| object.incarnation < volume.incarnation);
    Ok(volume.and_then(|volume| volume.put_back()).unwrap_or(Version::ZERO))
}

/// Whether a moved slice lies just there, and a row names it.
fn lies_in<R: Reads>(tables: &Snapshot<R>, slice: &IndexedSlice, object: ObjectId) -> Result<bool, ReadStop> {
    let key = staged_key(slice.seal.id);
    let refs = tables.get_plain(SHARED, &key)?.map(|row| Refs::decode(SHARED, &key, &row)).transpose()?;
    let moved = crate::pack::moved(tables, slice.seal.id)?;
    let there = moved.is_some_and(|moved| (moved.object, moved.at) == (object, slice.at));
    Ok(there && refs.is_none_or(|refs| refs.rows > 0))
}

/// What a row names, from when until when, and where it says that it lies.
struct NamingRow {
    seal: Seal,
    at: Option<u64>,
    since: Version,
    until: Version,
}

/// What rows of a block name, live and past.
fn naming_rows<R: Reads>(tables: &Snapshot<R>, ino: Ino, block: u32) -> Result<Vec<NamingRow>, ReadStop> {
    let prefix = block_key(ino, block);
    let mut named = Vec::new();
    let mut note = |key: &[u8], value: &[u8], since, until| -> Result<(), ReadStop> {
        let (seal, at) = match SliceRow::decode(SLICE, key, value)?.slice.place {
            Place::Object(seal, at) => (seal, Some(at)),
            Place::Staged(seal) => (seal, None),
            Place::Hole | Place::Inline(..) | Place::Moved(..) => return Ok(()),
        };
        named.push(NamingRow { seal, at, since, until });
        Ok(())
    };
    let mut start = Vec::new();
    loop {
        let page = tables.scan(SLICE, &prefix, &start, PAGE)?;
        for (key, row) in &page {
            note(key, &row.value, row.since, Version(u64::MAX))?;
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => start = [&last[prefix.len()..], &[0]].concat(),
            _ => break,
        }
    }
    let mut start = prefix.to_vec();
    loop {
        let page = tables.history(SLICE, &start, PAGE)?;
        for past in page.iter().take_while(|past| past.key().starts_with(&prefix)) {
            note(past.key(), &past.row.value, past.row.since, past.until())?;
        }
        match page.last() {
            Some(last) if page.len() == PAGE && last.key().starts_with(&prefix) => {
                start = [last.place.as_ref(), &[0]].concat();
            }
            _ => return Ok(named),
        }
    }
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// Says of slices that lay in `from` that they lie in `to`, if all is still as it was at `as_of`.
    pub(crate) fn move_slices(
        &mut self,
        id: Uuid,
        (from, to): (ObjectId, ObjectId),
        as_of: Version,
        slices: &[MovedSlice],
        last: bool,
    ) -> Decided<SystemReply> {
        let index = self.open_pack(id, to, last)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        let over = is_over(self.reads, &Snapshot::new(self.reads, index, None), from)?;
        let refs = ledger.get::<Refs>(OBJECT, &object_key(from))?;
        let pinned = list_kept(self.reads)?.iter().any(|(of, _, kept)| *of == index && kept.made > as_of);
        let Some(refs) = refs.filter(|refs| over && !pinned && refs.rows > 0 && refs.condemned.is_none())
        else {
            return Ok(SystemReply::Done);
        };
        let moved = match from.session {
            SessionId::SERVER => ledger.take_moved(from, to, slices)?,
            _ => ledger.take_born(&refs, as_of, to, slices)?,
        };
        if moved.count > 0 {
            ledger.take_names(from, refs, &moved)?;
            ledger.give_names(to, moved.count, moved.end, moved.bytes)?;
            self.batch.0.extend(ledger.close()?.0);
        }
        Ok(SystemReply::Done)
    }
}

/// What was taken out of an object.
#[derive(Default)]
struct Taken {
    /// Slices.
    count: u32,
    /// Their stored bytes.
    bytes: u64,
    /// Names that the old object loses, and bytes that they name.
    rows: u32,
    rows_bytes: u64,
    /// Where they end in the new object.
    end: u64,
}

impl Taken {
    fn add(&mut self, slice: &MovedSlice, rows: u32) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(u64::from(slice.len));
        self.rows = self.rows.saturating_add(rows);
        self.rows_bytes = self.rows_bytes.saturating_add(u64::from(rows) * u64::from(slice.len));
        self.end = self.end.max(slice.at.saturating_add(u64::from(slice.len)));
    }
}

impl<R: Reads + ?Sized> Ledger<'_, R> {
    /// Slices that were moved before.
    fn take_moved(&mut self, from: ObjectId, to: ObjectId, slices: &[MovedSlice]) -> Result<Taken, ReadStop> {
        let mut taken = Taken::default();
        for slice in slices {
            let key = staged_key(slice.id);
            let there = self.get::<Moved>(MOVED, &key)?.is_some_and(|moved| moved.object == from);
            let named = self.get::<Refs>(SHARED, &key)?.is_none_or(|refs| refs.rows > 0);
            if there && named {
                self.put_moved(slice, to)?;
                taken.add(slice, 1);
            }
        }
        Ok(taken)
    }

    /// All slices that rows name of an object that a session put.
    fn take_born(
        &mut self,
        refs: &Refs,
        as_of: Version,
        to: ObjectId,
        slices: &[MovedSlice],
    ) -> Result<Taken, ReadStop> {
        let mut taken = Taken::default();
        let rows = slices.iter().fold(0u32, |sum, slice| sum.saturating_add(slice.rows));
        if refs.changed > as_of || rows != refs.rows {
            return Ok(taken);
        }
        for slice in slices {
            self.put_moved(slice, to)?;
            if slice.rows != 1 {
                let refs = Refs { rows: slice.rows, ..Refs::new(self.txn.version()) };
                self.txn.put_plain(SHARED, &staged_key(slice.id), &refs.encode()?);
            }
            self.tally.held.add(0);
            taken.add(slice, slice.rows);
        }
        self.tally.flags |= Tally::REPACKED;
        Ok(taken)
    }

    fn put_moved(&mut self, slice: &MovedSlice, to: ObjectId) -> Result<(), ReadStop> {
        let row = Moved { flags: 0, object: to, at: slice.at, len: slice.len };
        self.txn.put_plain(MOVED, &staged_key(slice.id), &row.encode()?);
        Ok(())
    }

    fn take_names(&mut self, from: ObjectId, mut refs: Refs, taken: &Taken) -> Result<(), ReadStop> {
        refs.rows = refs.rows.saturating_sub(taken.rows);
        refs.named = refs.named.saturating_sub(taken.rows_bytes);
        refs.changed = self.txn.version();
        if refs.rows == 0 {
            self.retire(Named::Object(from), &mut refs)?;
        }
        self.txn.put_plain(OBJECT, &object_key(from), &refs.encode()?);
        Ok(())
    }
}
