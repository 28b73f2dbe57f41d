//! What the slices of each block take, live and past together: a slice that several rows name is counted once.

use crate::look::inode_in;
use crate::rows::{Format, INODE, Inode, SLICE, SliceRow, ino_key, number_at, parse_slice_key};
use chronofs_core::slice::{Place, SliceKey};
use chronofs_core::{Ino, SliceId, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;
use std::collections::BTreeMap;

/// Where the bytes of a slice are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lies {
    /// In its row.
    Inline,
    /// In the metadata, until it is packed. It may be packed by now.
    Staged,
    /// In an object.
    Object,
}

/// A slice of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpentSlice {
    /// Its stored bytes.
    pub stored: u32,
    /// Its bytes once opened.
    pub full: u32,
    /// Where they are.
    pub lies: Lies,
    /// When the first of the rows that name it began.
    pub since: Version,
    /// Until when a row named it; `None`: one does now.
    pub until: Option<Version>,
}

/// The slices of a block of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpentBlock {
    /// The file.
    pub ino: Ino,
    /// The block.
    pub block: u32,
    /// They, each once.
    pub slices: Vec<SpentSlice>,
}

/// Bytes of inode and block at the begin of a slice's key.
const GROUP: usize = 12;

type Group = BTreeMap<SliceId, SpentSlice>;

/// Blocks of a volume from the key `from` on (empty: from the first), about `limit` rows, and where the next begin.
/// Rows that cannot be read as slices are left out.
pub fn spent_blocks<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    from: &[u8],
    limit: usize,
) -> Result<(Vec<SpentBlock>, Option<Vec<u8>>), ReadStop> {
    let tables = Snapshot::new(reads, volume, None);
    let mut limit = limit.max(1);
    loop {
        let live = tables.scan(SLICE, &[], from, limit)?;
        let past = tables.history(SLICE, from, limit)?;
        // Of the last block of a page that is full there may be more.
        let group = |key: &[u8]| key.get(..GROUP).unwrap_or(key).to_vec();
        let ends = [
            live.last().filter(|_| live.len() == limit).map(|(key, _)| group(key)),
            past.last().filter(|_| past.len() == limit).map(|past| group(past.key())),
        ];
        let end = ends.into_iter().flatten().min();
        let mut groups: BTreeMap<Vec<u8>, Group> = BTreeMap::new();
        let live = live.iter().map(|(key, row)| (&key[..], row, None));
        let past = past.iter().map(|past| (past.key(), &past.row, Some(past.until())));
        for (key, row, until) in live.chain(past) {
            let Ok(SliceRow { slice, .. }) = SliceRow::decode(SLICE, key, &row.value) else { continue };
            let (lies, Some(seal)) = (lies(&slice.place), slice.place.seal()) else { continue };
            let place = group(key);
            if key.len() != SLICE.key_len || end.as_ref().is_some_and(|end| place >= *end) {
                continue;
            }
            let (_, SliceKey { version: since, .. }) = parse_slice_key(key);
            let (stored, full) = (seal.stored_len, seal.full_len);
            let known = groups.entry(place).or_default().entry(seal.id);
            let known = known.or_insert(SpentSlice { stored, full, lies, since, until });
            known.since = known.since.min(since);
            known.until = known.until.zip(until).map(|(a, b)| a.max(b));
        }
        // A block with more rows than a page: the next look is at more.
        if groups.is_empty() && end.as_ref().is_some_and(|end| end[..] <= *from) {
            limit *= 2;
            continue;
        }
        let blocks = groups.into_iter().map(|(place, group)| {
            let key = [&place[..], &[0; 10]].concat();
            let (ino, SliceKey { block, .. }) = parse_slice_key(&key);
            SpentBlock { ino, block, slices: group.into_values().collect() }
        });
        return Ok((blocks.collect(), end));
    }
}

fn lies(place: &Place) -> Lies {
    match place {
        Place::Hole | Place::Inline(..) => Lies::Inline,
        Place::Staged(_) => Lies::Staged,
        Place::Object(..) | Place::Moved(..) => Lies::Object,
    }
}

/// Who owns an inode, or owned it last, and in which directory it is, or was last.
pub fn last_known<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    ino: Ino,
) -> Result<Option<(u32, Ino)>, ReadStop> {
    let tables = Snapshot::new(reads, volume, None);
    if let Some(inode) = inode_in(&tables, ino)? {
        return Ok(Some((inode.uid, inode.parent)));
    }
    let (key, mut last) = (ino_key(ino), None);
    let mut start = key.to_vec();
    loop {
        let page = tables.history(INODE, &start, 64)?;
        let whole = page.len() == 64;
        for past in page {
            if past.key() != key {
                return Ok(last);
            }
            last = Inode::decode(INODE, &key, &past.row.value).ok().map(|inode| (inode.uid, inode.parent));
            start = [&past.place[..], &[0]].concat();
        }
        if !whole {
            return Ok(last);
        }
    }
}

/// Up to `limit` inodes of a volume whose number is `from` or above, and the next one to begin at. Rows that cannot be read
/// are left out.
pub fn inode_page<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    from: Ino,
    limit: usize,
) -> Result<(Vec<Inode>, Option<Ino>), ReadStop> {
    let page = Snapshot::new(reads, volume, None).scan(INODE, &[], &ino_key(from), limit)?;
    let last = page.last().filter(|_| page.len() == limit);
    let next = last.and_then(|(key, _)| number_at(key, 0).checked_add(1)).map(Ino);
    let inodes = page.iter().filter_map(|(key, row)| Inode::decode(INODE, key, &row.value).ok());
    Ok((inodes.collect(), next))
}
