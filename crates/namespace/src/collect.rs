//! Collecting: what no row names any more goes, in steps that a crash cannot turn into loss.
//!
//! 1. A commit condemns an object that was retired long enough ago: from then on nothing can name it.
//! 2. Whoever carries this out waits until that commit is durable,
//! 3. has the store delete the object,
//! 4. and commits that it is gone (`Deleted`), which drops the rows.
//!
//! Staged slices lie in the same log as their rows, so they go with the commit of step 1. So does a slice that was moved
//! into an object, and with the last of them the object is retired. An object that a session was granted and never
//! published (it says up to where it has published what it will) has no row; it is judged by its name when a store is listed.

use crate::counted::{Ledger, Named};
use crate::pack::packs;
use crate::rows::{
    CLOSED, CONDEMNED, Closed, Condemned, Format, MOVED, Moved, OBJECT, RETIRED, Refs, Retired, SHARED,
    SLICE, STAGED, STORE_WIDE, SliceRow, Sum, TALLY, Tally, Volume, number_at, object_key, parse_object_key,
    parse_slice_key, parse_staged_key,
};
use crate::system::{self, Decided, Steward, SystemReply};
use bytes::Bytes;
use chronofs_core::slice::{Place, SliceKey};
use chronofs_core::{ObjectId, SessionId, Version, VolumeIndex};
use chronofs_engine::{EngineError, ReadStop, Reads};
use chronofs_history::Snapshot;
use std::collections::BTreeSet;
use uuid::Uuid;

const PAGE: usize = 1024;
/// Why an object is left alone that a clone stored, or the volume that this one was restored from.
const OF_ANOTHER: &str = "it is of another incarnation of its volume";

/// What an object found in a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// Rows name it, or it is on its way out already.
    Known,
    /// Its session may still publish it, or is not over for long enough.
    Open,
    /// A session was granted it and is over, or has said that it publishes nothing of it any more, and no row names it: it may go. Also what was deleted and is still there.
    Garbage,
    /// Nothing explains it. It is never deleted; the reason is for people.
    Quarantined(&'static str),
}

/// Judges an object of a volume that was found in its store. Sessions have to be over since `over_since`, or earlier.
pub fn judge<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    volume: &Volume,
    object: ObjectId,
    over_since: Version,
) -> Result<Judged, ReadStop> {
    if volume.flags & Volume::COUNTED == 0 {
        return Ok(Judged::Known);
    }
    let (tables, key) = (Snapshot::new(reads, index, None), object_key(object));
    let condemned = tables.get_plain(CONDEMNED, &key)?.is_some();
    if let Some(row) = tables.get_plain(OBJECT, &key)? {
        let refs = Refs::decode(OBJECT, &key, &row)?;
        // Deleted, and its row stands for nothing but that; and yet it is there.
        let survivor = refs.condemned.is_some() && !condemned && object.incarnation == volume.incarnation;
        return Ok(if survivor { Judged::Garbage } else { Judged::Known });
    }
    if condemned {
        return Ok(Judged::Known);
    }
    if object.incarnation != volume.incarnation {
        return Ok(Judged::Quarantined(OF_ANOTHER));
    }
    if object.session == SessionId::SERVER {
        // It is named in the log before anything is stored under the name, and over as soon as the next one is.
        let packs = packs(&tables, object.incarnation)?;
        return Ok(match object.n {
            n if packs.open == Some(n) => Judged::Open,
            n if packs.first <= n && n < packs.granted => Judged::Garbage,
            _ => Judged::Quarantined("the server has not granted it to itself"),
        });
    }
    if let Some(session) = system::session(reads, object.session)?.filter(|found| found.volume == index) {
        return Ok(match object.n {
            n if n < session.floor => Judged::Garbage,
            n if n < session.granted => Judged::Open,
            _ => Judged::Quarantined("its session was not granted it"),
        });
    }
    let key = object.session.0.to_be_bytes();
    let closed = Snapshot::new(reads, STORE_WIDE, None).get_plain(CLOSED, &key)?;
    let closed = closed.map(|row| Closed::decode(CLOSED, &key, &row)).transpose()?;
    Ok(match closed.filter(|closed| closed.volume == index) {
        None => Judged::Quarantined("no session explains it"),
        Some(closed) if object.n >= closed.granted => Judged::Quarantined("its session was not granted it"),
        Some(closed) if closed.ended > over_since => Judged::Open,
        Some(_) => Judged::Garbage,
    })
}

/// Up to `limit` condemned objects of a volume whose key is above that of `after`.
pub fn list_condemned<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<(ObjectId, Condemned)>, ReadStop> {
    let rows = page(reads, index, CONDEMNED, after, limit)?;
    rows.into_iter()
        .map(|(key, row)| Ok((parse_object_key(&key), Condemned::decode(CONDEMNED, &key, &row)?)))
        .collect()
}

/// Up to `limit` counted objects of a volume whose key is above that of `after`.
pub fn list_objects<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<(ObjectId, Refs)>, ReadStop> {
    let rows = page(reads, index, OBJECT, after, limit)?;
    rows.into_iter()
        .map(|(key, row)| Ok((parse_object_key(&key), Refs::decode(OBJECT, &key, &row)?)))
        .collect()
}

/// How an object is counted, if it is.
pub fn object_refs<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    id: ObjectId,
) -> Result<Option<Refs>, ReadStop> {
    let key = object_key(id);
    let row = Snapshot::new(reads, index, None).get_plain(OBJECT, &key)?;
    row.map(|row| Refs::decode(OBJECT, &key, &row)).transpose()
}

fn page<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    table: chronofs_history::Table,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
    let start = after.map_or(Vec::new(), |after| [&object_key(after)[..], &[0]].concat());
    Snapshot::new(reads, index, None).scan_plain(table, &[], &start, limit)
}

/// What objects and staged slices there are in a volume.
pub fn tally<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<Tally, ReadStop> {
    let row = Snapshot::new(reads, index, None).get_plain(TALLY, &[])?;
    Ok(row.map(|row| Tally::decode(TALLY, &[], &row)).transpose()?.unwrap_or_default())
}

/// Objects that are deleted, and of which their session publishes nothing any more: their rows stand for nothing any more.
pub fn gone_objects<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<Vec<ObjectId>, ReadStop> {
    let mut gone = Vec::new();
    let mut after = None;
    loop {
        let page = list_objects(reads, index, after, PAGE)?;
        for (id, refs) in &page {
            if refs.condemned.is_some()
                && Snapshot::new(reads, index, None).get_plain(CONDEMNED, &object_key(*id))?.is_none()
                && system::is_over(reads, *id)?
            {
                gone.push(*id);
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(*last),
            _ => return Ok(gone),
        }
    }
}

/// What a volume that was restored from images has rows of that its source stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Foreign {
    /// Objects of earlier incarnations that rows name, and the stored bytes that they name of them.
    pub named: Sum,
    /// Objects that nothing names any more, and that readers may still know of.
    pub unnamed: u64,
}

/// What a volume has of objects of earlier incarnations than this one.
pub fn foreign_objects<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    incarnation: u16,
) -> Result<Foreign, ReadStop> {
    let (mut foreign, mut after) = (Foreign::default(), None);
    loop {
        // Incarnations come first in keys.
        let page = list_objects(reads, index, after, PAGE)?;
        for (_, refs) in page.iter().take_while(|(id, _)| id.incarnation < incarnation) {
            if refs.rows > 0 {
                foreign.named.add(refs.named);
            } else if refs.condemned.is_none() {
                // What is condemned is let go, or was: of it the row may stay until a store is looked through.
                foreign.unnamed += 1;
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE && last.incarnation < incarnation => after = Some(*last),
            _ => return Ok(foreign),
        }
    }
}

/// Stored bytes, outside of rows, that live slices need. A slice that several rows of its block show counts once. One that
/// is shown in several blocks counts in each: no client of ours does that, and to know of it would take memory for all.
pub fn live_stored_bytes<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<u64, ReadStop> {
    let (mut bytes, mut start) = (0u64, Vec::new());
    let (mut block, mut counted) = (None, BTreeSet::new());
    loop {
        let page = Snapshot::new(reads, index, None).scan(SLICE, &[], &start, PAGE)?;
        for (key, row) in &page {
            let slice = SliceRow::decode(SLICE, key, &row.value)?.slice;
            let (ino, SliceKey { block: number, .. }) = parse_slice_key(key);
            if block.replace((ino, number)) != Some((ino, number)) {
                counted.clear();
            }
            if let Place::Staged(seal) | Place::Object(seal, _) = &slice.place
                && counted.insert(seal.id)
            {
                bytes = bytes.saturating_add(u64::from(seal.stored_len));
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => start = [last.as_ref(), &[0]].concat(),
            _ => return Ok(bytes),
        }
    }
}

/// What is retired since `before` or longer.
pub fn retired_since<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    before: Version,
) -> Result<Sum, ReadStop> {
    let (mut sum, mut start) = (Sum::default(), Vec::new());
    loop {
        let page = Snapshot::new(reads, index, None).scan_plain(RETIRED, &[], &start, PAGE)?;
        for (key, row) in &page {
            if Version(number_at(key, 0)) > before {
                return Ok(sum);
            }
            sum.add(Retired::decode(RETIRED, key, row)?.bytes);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => start = [last.as_ref(), &[0]].concat(),
            _ => return Ok(sum),
        }
    }
}

fn damaged(named: Named) -> ReadStop {
    let what = match named {
        Named::Object(id) => format!("the count of object {id}"),
        Named::Staged(id) => format!("the count of staged slice {id}"),
    };
    let detail = "it is not what the rows that go with it say; run `chronofs meta verify`".to_owned();
    ReadStop::Failed(EngineError::Damaged { what, detail })
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// Condemns up to `limit` of what is retired since `before` or longer. When more than half of all, and at least
    /// `brake`, is retired, only what was released goes.
    pub(crate) fn condemn(
        &mut self,
        id: Uuid,
        (from, before): (Version, Version),
        limit: u32,
        brake: u64,
    ) -> Decided<SystemReply> {
        let (index, volume) = self.collected_volume(id)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        let tally = ledger.tally;
        // That all of a volume loses its names is meant when the volume is given up, and no accident.
        let brake = if volume.is_live() { brake } else { u64::MAX };
        let braked = tally.retired.count >= brake && tally.retired.count > tally.held.count;
        let before = if braked { before.min(tally.released) } else { before };
        // Not from the start: an engine passes over every row that was there.
        let retired = Snapshot::new(self.reads, index, None);
        let due = retired.scan_plain(RETIRED, &[], &from.0.to_be_bytes(), limit as usize)?;
        let (mut objects, mut staged, mut next) = (0, 0, from);
        for (key, row) in due {
            let since = Version(number_at(&key, 0));
            next = since;
            if since > before {
                break;
            }
            let named = parse_retired(&key)?;
            let bytes = Retired::decode(RETIRED, &key, &row)?.bytes;
            ledger.condemn(named, since, bytes)?;
            match named {
                Named::Object(_) => objects += 1,
                Named::Staged(_) => staged += 1,
            }
        }
        let noted = tally.flags & Tally::BRAKED != 0;
        if noted != braked {
            ledger.tally.flags ^= Tally::BRAKED;
        }
        if objects + staged > 0 || noted != braked {
            self.batch.0.extend(ledger.close()?.0);
        }
        // What may go at once is no reason to brake.
        let braked = braked && objects + staged == 0;
        Ok(SystemReply::Condemned { objects, staged, braked, next })
    }

    /// Condemns those of `objects`, found in the store, that are garbage at this very commit.
    pub(crate) fn condemn_garbage(
        &mut self,
        id: Uuid,
        objects: &[ObjectId],
        over_since: Version,
    ) -> Decided<SystemReply> {
        let (index, volume) = self.collected_volume(id)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        let mut condemned = 0;
        for object in objects {
            if judge(self.reads, index, &volume, *object, over_since)? != Judged::Garbage
                || ledger.get::<Condemned>(CONDEMNED, &object_key(*object))?.is_some()
            {
                continue;
            }
            ledger.tally.condemned.add(0);
            let row = Condemned { flags: 0, since: self.ctx.version, bytes: 0 };
            ledger.txn.put_plain(CONDEMNED, &object_key(*object), &row.encode()?);
            condemned += 1;
        }
        if condemned > 0 {
            self.batch.0.extend(ledger.close()?.0);
        }
        Ok(SystemReply::Condemned { objects: condemned, staged: 0, braked: false, next: Version(0) })
    }

    /// These objects are not in the store any more.
    pub(crate) fn deleted(&mut self, id: Uuid, objects: &[ObjectId]) -> Decided<SystemReply> {
        let (index, _) = self.collected_volume(id)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        for object in objects {
            let key = object_key(*object);
            if let Some(row) = ledger.get::<Condemned>(CONDEMNED, &key)? {
                ledger.tally.condemned.take(row.bytes);
                ledger.txn.delete_plain(CONDEMNED, &key);
            }
            // A session that may publish it again must find that it is condemned.
            let refs = ledger.get::<Refs>(OBJECT, &key)?;
            if system::is_over(self.reads, *object)? && refs.is_some_and(|refs| refs.condemned.is_some()) {
                ledger.txn.delete_plain(OBJECT, &key);
            }
        }
        self.batch.0.extend(ledger.close()?.0);
        Ok(SystemReply::Done)
    }

    /// All that is retired by now may go, however much it is.
    pub(crate) fn release_brake(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, _) = self.live_volume(id)?;
        let mut ledger = Ledger::open(self.reads, index, self.ctx.version)?;
        ledger.tally.released = self.ctx.version;
        ledger.tally.flags &= !Tally::BRAKED;
        self.batch.0.extend(ledger.close()?.0);
        Ok(SystemReply::Done)
    }
}

impl<R: Reads + ?Sized> Ledger<'_, R> {
    fn condemn(&mut self, named: Named, since: Version, bytes: u64) -> Result<(), ReadStop> {
        let (table, key) = named.count();
        let refs = self.get::<Refs>(table, &key)?;
        let mut refs = refs
            .filter(|refs| refs.rows == 0 && refs.retired == Some(since) && refs.condemned.is_none())
            .ok_or_else(|| damaged(named))?;
        self.txn.delete_plain(RETIRED, &named.retired_key(since));
        self.tally.retired.take(bytes);
        match named {
            Named::Object(_) => {
                let version = self.txn.version();
                refs.condemned = Some(version);
                self.txn.put_plain(OBJECT, &key, &refs.encode()?);
                let row = Condemned { flags: 0, since: version, bytes };
                self.txn.put_plain(CONDEMNED, &key, &row.encode()?);
                self.tally.condemned.add(bytes);
            }
            Named::Staged(_) => {
                self.txn.delete_plain(SHARED, &key);
                self.txn.delete_plain(STAGED, &key);
                if let Some(moved) = self.get::<Moved>(MOVED, &key)? {
                    self.txn.delete_plain(MOVED, &key);
                    self.unname(&moved)?;
                }
            }
        }
        Ok(())
    }

    /// A slice that was moved into the object is gone.
    fn unname(&mut self, moved: &Moved) -> Result<(), ReadStop> {
        let (named, key) = (Named::Object(moved.object), object_key(moved.object));
        let refs = self.get::<Refs>(OBJECT, &key)?.filter(|refs| refs.rows > 0 && refs.condemned.is_none());
        let mut refs = refs.ok_or_else(|| damaged(named))?;
        refs.rows -= 1;
        refs.named = refs.named.saturating_sub(u64::from(moved.len));
        refs.changed = self.txn.version();
        if refs.rows == 0 {
            self.retire(named, &mut refs)?;
        }
        self.txn.put_plain(OBJECT, &key, &refs.encode()?);
        Ok(())
    }
}

fn parse_retired(key: &[u8]) -> Result<Named, ReadStop> {
    let id = key.get(9..).unwrap_or_default();
    let object = parse_object_key(id);
    match key.get(8) {
        Some(&Named::OBJECT_KIND) => Ok(Named::Object(object)),
        Some(&Named::STAGED_KIND) => Ok(Named::Staged(parse_staged_key(id))),
        _ => {
            let what = format!("row {} of table {}", key.escape_ascii(), RETIRED.name);
            let detail = "a newer chronofs wrote it; start the newer one".to_owned();
            Err(ReadStop::Failed(EngineError::Damaged { what, detail }))
        }
    }
}
