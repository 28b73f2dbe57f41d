//! Packing: bytes of small slices leave the metadata for objects of many.
//!
//! The server names an object of its own in a commit, and when that is durable stores staged slices in it; then
//! further commits say of each slice where it lies, and drop its staged bytes. Rows of slices stay as they are, live and
//! past. An object that was named and that no slice was said to lie in is over when the next one is named, or when the
//! server says so; it is found when the store is listed, and goes ([`crate::judge`]). Its name is never used again.

use crate::counted::{Ledger, Named};
use crate::rows::{
    Format, MOVED, Moved, OBJECT, PACKS, Packs, Refs, SHARED, STAGED, Staged, Volume, object_key,
    parse_staged_key, staged_key,
};
use crate::system::{Decided, Steward, SystemError, SystemReply};
use chronofs_core::{ObjectId, SessionId, SliceId, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{Snapshot, Txn};
use uuid::Uuid;

/// Staged slices, and where those that follow begin.
pub type StagedPage = (Vec<(SliceId, Staged)>, Option<Vec<u8>>);

/// Rows read at a time while looking for what to pack.
const PAGE: usize = 256;
/// So many times as many bytes are looked at as are taken: those that no row names are left where they are.
const LOOKED_AT_MAX: usize = 4;

/// Staged slices of a volume that rows name, from `start` on (empty: the first), in the order of their ids, up to
/// `bytes_max` stored bytes and `rows_max` rows; and where those that follow begin, if any may.
pub fn staged_slices<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    mut start: Vec<u8>,
    bytes_max: usize,
    rows_max: usize,
) -> Result<StagedPage, ReadStop> {
    let tables = Snapshot::new(reads, volume, None);
    let (mut found, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    let mut any = false;
    loop {
        let page = tables.scan_plain(STAGED, &[], &start, PAGE)?;
        let last_page = page.len() < PAGE;
        for (key, row) in page {
            let row = Staged::decode(STAGED, &key, &row)?;
            bytes += row.bytes.len();
            looked_at += row.bytes.len();
            let full = found.len() == rows_max || bytes > bytes_max || looked_at > bytes_max * LOOKED_AT_MAX;
            // The first one is taken however large it is: something has to move.
            if full && any {
                return Ok((found, Some(key.to_vec())));
            }
            any = true;
            start = [key.as_ref(), &[0]].concat();
            let refs = tables.get_plain(SHARED, &key)?;
            let refs = refs.map(|refs| Refs::decode(SHARED, &key, &refs)).transpose()?;
            if refs.is_some_and(|refs| refs.rows == 0) {
                bytes -= row.bytes.len();
            } else {
                found.push((parse_staged_key(&key), row));
            }
        }
        if last_page {
            return Ok((found, None));
        }
    }
}

/// Where the bytes of a slice lie that was staged, if they were moved.
pub(crate) fn moved<R: Reads>(tables: &Snapshot<R>, id: SliceId) -> Result<Option<Moved>, ReadStop> {
    let key = staged_key(id);
    tables.get_plain(MOVED, &key)?.map(|row| Moved::decode(MOVED, &key, &row)).transpose()
}

/// Names of objects that the server has granted itself in this incarnation of the volume.
pub(crate) fn packs<R: Reads>(tables: &Snapshot<R>, incarnation: u16) -> Result<Packs, ReadStop> {
    let key = incarnation.to_be_bytes();
    let row = tables.get_plain(PACKS, &key)?;
    Ok(row.map(|row| Packs::decode(PACKS, &key, &row)).transpose()?.unwrap_or_default())
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// Names the next object. Errors: the volume is not counted, so nothing of it is ever collected.
    pub(crate) fn grant_pack(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, volume) = self.live_volume(id)?;
        if volume.flags & Volume::COUNTED == 0 {
            return Err(SystemError::NotCounted(id).into());
        }
        let incarnation = volume.incarnation;
        let mut packs = packs(&Snapshot::new(self.reads, index, None), incarnation)?;
        let n = packs.granted;
        packs.granted = n.checked_add(1).ok_or_else(|| SystemError::Exhausted("object".to_owned()))?;
        packs.open = Some(n);
        self.put_packs(index, incarnation, &packs)?;
        Ok(SystemReply::Pack(ObjectId { incarnation, session: SessionId::SERVER, n }))
    }

    /// The object that was granted last is over, if it is not already.
    pub(crate) fn end_pack(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, volume) = self.live_volume(id)?;
        self.end_packs(index, &volume)?;
        Ok(SystemReply::Done)
    }

    /// Nothing more is said to lie in an object of the server's.
    pub(crate) fn end_packs(&mut self, index: VolumeIndex, volume: &Volume) -> Decided<()> {
        let mut packs = packs(&Snapshot::new(self.reads, index, None), volume.incarnation)?;
        if packs.open.take().is_some() {
            self.put_packs(index, volume.incarnation, &packs)?;
        }
        Ok(())
    }

    fn put_packs(&mut self, index: VolumeIndex, incarnation: u16, packs: &Packs) -> Decided<()> {
        let mut txn = Txn::new(self.reads, index, self.ctx.version, false);
        txn.put_plain(PACKS, &incarnation.to_be_bytes(), &packs.encode()?);
        self.batch.0.extend(txn.into_batch().0);
        Ok(())
    }

    /// Says of staged slices that they lie in `object`.
    pub(crate) fn move_staged(
        &mut self,
        id: Uuid,
        object: ObjectId,
        slices: &[(SliceId, u64)],
        last: bool,
    ) -> Decided<SystemReply> {
        let index = self.open_pack(id, object, last)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        let (mut count, mut end, mut bytes) = (0, 0u64, 0u64);
        for (slice, at) in slices {
            if let Some(len) = ledger.move_slice(*slice, object, *at)? {
                (count, bytes) = (count + 1, bytes + len);
                end = end.max(at.saturating_add(len));
            }
        }
        if count > 0 {
            ledger.give_names(object, count, end, bytes)?;
            self.batch.0.extend(ledger.close()?.0);
        }
        Ok(SystemReply::Done)
    }

    /// The volume of an object that slices may still be said to lie in; for the last time, if so.
    pub(crate) fn open_pack(&mut self, id: Uuid, object: ObjectId, last: bool) -> Decided<VolumeIndex> {
        let (index, volume) = self.live_volume(id)?;
        let tables = Snapshot::new(self.reads, index, None);
        let mut packs = packs(&tables, object.incarnation)?;
        let open = packs.open == Some(object.n) && object.incarnation == volume.incarnation;
        let key = object_key(object);
        let refs = tables.get_plain(OBJECT, &key)?.map(|row| Refs::decode(OBJECT, &key, &row)).transpose()?;
        let condemned = refs.is_some_and(|refs| refs.condemned.is_some());
        if !open || object.session != SessionId::SERVER || condemned {
            return Err(SystemError::NotGranted(object).into());
        }
        if last {
            packs.open = None;
            self.put_packs(index, object.incarnation, &packs)?;
        }
        Ok(index)
    }
}

impl<R: Reads + ?Sized> Ledger<'_, R> {
    /// So many slices of so many bytes lie in the object from now on, up to `end`.
    pub(crate) fn give_names(
        &mut self,
        object: ObjectId,
        count: u32,
        end: u64,
        bytes: u64,
    ) -> Result<(), ReadStop> {
        let key = object_key(object);
        let row = self.get::<Refs>(OBJECT, &key)?;
        let new = row.is_none();
        let mut refs = row.unwrap_or(Refs { bytes: end, ..Refs::new(self.txn.version()) });
        let after = refs.rows.saturating_add(count);
        self.sum(Named::Object(object), &mut refs, end, after, new)?;
        (refs.rows, refs.changed) = (after, self.txn.version());
        refs.named = refs.named.saturating_add(bytes);
        self.txn.put_plain(OBJECT, &key, &refs.encode()?);
        Ok(())
    }

    /// Says where a slice lies now; gives its stored bytes. `None`: it is not staged, or no row names it.
    fn move_slice(&mut self, id: SliceId, object: ObjectId, at: u64) -> Result<Option<u64>, ReadStop> {
        let key = staged_key(id);
        let Some(row) = self.get::<Staged>(STAGED, &key)? else { return Ok(None) };
        match self.get::<Refs>(SHARED, &key)? {
            Some(refs) if refs.rows == 0 => return Ok(None),
            Some(refs) => self.txn.put_plain(SHARED, &key, &Refs { bytes: 0, ..refs }.encode()?),
            None => {}
        }
        let len = row.bytes.len() as u32;
        self.txn.delete_plain(STAGED, &key);
        self.txn.put_plain(MOVED, &key, &Moved { flags: 0, object, at, len }.encode()?);
        let bytes = u64::from(len);
        self.tally.staged.take(bytes);
        self.tally.held.take(bytes);
        self.tally.held.add(0);
        Ok(Some(bytes))
    }
}
