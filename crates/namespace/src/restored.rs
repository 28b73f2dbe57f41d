//! A store that was put back from images of it goes on as another one: beside it its source may live, and whatever both
//! name from here on has to have different names.
//!
//! So every volume gets a new incarnation, and with it inode numbers and objects of its own. Sessions, inodes and objects of the
//! server are counted from a number drawn far ahead, so that two stores that were put back from one set differ as well: beside each
//! other, or one after the other in the same place, where mounts may mean a file of the first.
//! Who was connected to the source is not connected here. Instants between the images and now were another's.
//!
//! Holds stay as they are. The set keeps the past that could be had without them; objects of what was older are the source's to keep, and
//! are gone when its hold ends.

use crate::pack::packs;
use crate::rows::{
    CLOSED, COUNTERS, Closed, Counters, Format, PACKS, Packs, SESSION, STORE, STORE_WIDE, Store, VOLUME,
    Volume,
};
use crate::system::{list_sessions, list_volumes};
use chronofs_core::{Ino, Version, VolumeIndex};
use chronofs_engine::{Batch, EngineError, ReadStop, Reads};
use chronofs_history::{Snapshot, Txn};

/// Incarnations are a part of inode numbers, 15 bits of them.
const INCARNATION_END: u16 = 1 << 15;
/// A new one is one of so many that follow.
const INCARNATIONS_DRAWN: u64 = 1 << 10;
/// Numbers that are left out are fewer than this, and fewer than a store gives in its life.
const NUMBERS_DRAWN: u64 = 1 << 44;

/// Inode numbers that are left out are fewer than this: a restore takes no more than a 256th of those that there are.
const INOS_DRAWN: u64 = 1 << 40;

/// What is to be committed at `version` on a store whose last commit is `cut`; `draw` are random. All of it, and nothing
/// before it.
pub fn restored<R: Reads>(
    reads: &R,
    cut: Version,
    version: Version,
    draw: [u64; 2],
) -> Result<Batch, ReadStop> {
    let mut store = Txn::new(reads, STORE_WIDE, version, false);
    let mut batch = Batch::default();
    let sessions = list_sessions(reads)?;
    for (id, session) in &sessions {
        let closed = Closed { flags: 0, volume: session.volume, granted: session.granted, ended: version };
        store.delete_plain(SESSION, &id.0.to_be_bytes());
        store.put_plain(CLOSED, &id.0.to_be_bytes(), &closed.encode()?);
    }
    for (index, mut volume) in list_volumes(reads)? {
        if volume.flags & Volume::GONE != 0 {
            continue;
        }
        let leases = sessions.iter().filter(|(_, session)| session.volume == index && session.at.is_some());
        volume.leases = volume.leases.saturating_sub(leases.count() as u32);
        let before = volume.incarnation;
        let next = u64::from(before) + 1 + draw[0] % INCARNATIONS_DRAWN;
        volume.incarnation = u16::try_from(next)
            .ok()
            .filter(|next| *next < INCARNATION_END)
            .ok_or_else(|| exhausted(&volume.spec.name))?;
        volume.gaps.push((cut, version));
        store.put_plain(VOLUME, &index.0.to_be_bytes(), &volume.encode()?);
        batch.0.extend(numbered(reads, index, version, (before, volume.incarnation), draw[1])?.0);
    }
    let row = store.get_plain(STORE, &[])?;
    let row = row.map(|row| Store::decode(STORE, &[], &row)).transpose()?;
    let mut row = row.unwrap_or(Store { flags: 0, next_volume: 1, next_session: 1 });
    row.next_session = row.next_session.saturating_add(draw[1] % NUMBERS_DRAWN);
    row.flags |= Store::RESTORED;
    store.put_plain(STORE, &[], &row.encode()?);
    let mut all = store.into_batch();
    all.0.extend(batch.0);
    Ok(all)
}

/// Nothing more is said to lie in an object that the server granted itself before; those of now are counted from afar.
fn numbered<R: Reads>(
    reads: &R,
    index: VolumeIndex,
    version: Version,
    (before, now): (u16, u16),
    draw: u64,
) -> Result<Batch, ReadStop> {
    let tables = Snapshot::new(reads, index, None);
    let mut txn = Txn::new(reads, index, version, false);
    let mut old = packs(&tables, before)?;
    if old.open.take().is_some() {
        txn.put_plain(PACKS, &before.to_be_bytes(), &old.encode()?);
    }
    if let Some(row) = tables.get_plain(COUNTERS, &[])? {
        let mut counters = Counters::decode(COUNTERS, &[], &row)?;
        counters.next_ino = counters.next_ino.saturating_add(draw % INOS_DRAWN).min(Ino::COUNTER_END);
        txn.put_plain(COUNTERS, &[], &counters.encode()?);
    }
    let mut new = packs(&tables, now)?;
    new.first = draw % NUMBERS_DRAWN;
    new.granted = new.first;
    txn.put_plain(PACKS, &now.to_be_bytes(), &new.encode()?);
    Ok(txn.into_batch())
}

/// Incarnation and objects of the server of a volume that is made in a store that was put back: its source may have made
/// the volume as well, after the images and before the admin server's.
pub(crate) fn of_new_volume(store: &Store) -> Option<(u16, Packs)> {
    let first = store.next_session;
    let incarnation = 1 + (first % INCARNATIONS_DRAWN) as u16;
    let packs = Packs { flags: 0, granted: first, open: None, first };
    (store.flags & Store::RESTORED != 0).then_some((incarnation, packs))
}

/// Since when volumes that are made in this store have numbers far from all that one of the same id may have had before: it was
/// put back then, as far as a volume tells that was there.
///
/// # Errors
/// Rows cannot be read.
pub fn drawn_apart_since<R: Reads + ?Sized>(reads: &R) -> Result<Option<Version>, ReadStop> {
    let row = Snapshot::new(reads, STORE_WIDE, None).get_plain(STORE, &[])?;
    let store = row.map(|row| Store::decode(STORE, &[], &row)).transpose()?;
    if store.is_none_or(|store| store.flags & Store::RESTORED == 0) {
        return Ok(None);
    }
    let volumes = list_volumes(reads)?;
    Ok(volumes.iter().flat_map(|(_, volume)| &volume.gaps).map(|(_, began)| *began).max())
}

fn exhausted(volume: &str) -> ReadStop {
    let what = format!("volume {volume}");
    let detail =
        "it was restored so often that there is no further incarnation; copy it into a new one".to_owned();
    ReadStop::Failed(EngineError::Damaged { what, detail })
}
