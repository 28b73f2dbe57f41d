//! What clients keep between requests, listings and blocks to be merged, and how they see content.

use crate::world::{BLOCK_SIZE, Check, World, ensure, object_bytes};
use bytes::Bytes;
use chronofs_core::ops::{Merge, Reply, Request};
use chronofs_core::slice::{Place, PlacedSlice, Slice, SliceKey};
use chronofs_core::{Caller, Ino, SliceId, Version};
use std::collections::BTreeMap;

/// A listing of a directory over time.
#[derive(Clone)]
pub struct Cursor {
    dir: Ino,
    after: u64,
    end: bool,
    seen: Vec<Bytes>,
    /// Entries that were there at the start and still are.
    stable: BTreeMap<Bytes, Ino>,
}

/// A block as a client read it.
#[derive(Clone)]
pub struct Note {
    ino: Ino,
    block: u32,
    newest: SliceKey,
    read_at: Version,
    content: BTreeMap<u64, u8>,
}

impl World {
    pub fn list(&mut self, dir: Ino, cursor: usize) {
        let stable = self.now().nodes.get(&dir).map(|node| node.entries.clone()).unwrap_or_default();
        self.cursors[cursor] = Some(Cursor { dir, after: 0, end: false, seen: Vec::new(), stable });
    }

    pub fn keep_stable(&mut self) {
        self.forget_cookies();
        let now = self.now().clone();
        for cursor in self.cursors.iter_mut().flatten() {
            let entries = now.nodes.get(&cursor.dir).map(|node| node.entries.clone()).unwrap_or_default();
            cursor.stable.retain(|name, ino| entries.get(name) == Some(ino));
        }
    }

    pub fn page(&mut self, cursor: usize, limit: u32, attrs: bool) -> Check {
        let Some(mut listing) = self.cursors[cursor].take() else { return Ok(()) };
        if listing.end
            || !self.now().nodes.get(&listing.dir).is_some_and(|node| node.is_dir() && !node.removed)
        {
            return Ok(());
        }
        let request = Request::ReadDir { dir: listing.dir, after: listing.after, limit, attrs };
        let reply = self.query(&Caller::ROOT, Ino::ROOT, false, None, &request)?;
        let Ok(Reply::Entries { entries, end }) = reply else {
            return Err(format!("{request:?} of a directory: {reply:?}"));
        };
        ensure!(entries.len() <= limit as usize, "{request:?}: more entries than asked for");
        ensure!(end || !entries.is_empty(), "{request:?}: no entry and no end");
        for entry in entries {
            ensure!(entry.cookie > listing.after, "{request:?}: cookie {} comes late", entry.cookie);
            listing.after = entry.cookie;
            listing.seen.push(entry.name);
        }
        if end {
            listing.end = true;
            for name in listing.stable.keys() {
                let times = listing.seen.iter().filter(|seen| *seen == name).count();
                ensure!(
                    times == 1,
                    "{:?}: {name:?} was there all the time and was listed {times} times",
                    listing.dir
                );
            }
        }
        self.cursors[cursor] = Some(listing);
        Ok(())
    }

    pub fn read_block(&mut self, ino: Ino, block: u32, note: usize) -> Check {
        self.notes[note] = None;
        let request = Request::Slices { ino, first: block, count: 1, staged: true };
        let Ok(Reply::Slices(slices)) = self.query(&Caller::ROOT, Ino::ROOT, false, None, &request)? else {
            return Ok(());
        };
        let Some(newest) = slices.last().map(|slice| slice.key) else { return Ok(()) };
        let content = self.content(&slices)?;
        let read_at = self.now().version;
        self.notes[note] = Some(Note { ino, block, newest, read_at, content });
        Ok(())
    }

    /// Writes a block that was read some time ago as one, as a client does that found too many slices in it.
    pub fn merge(&mut self, note: usize, tick: u64, one: bool, id: SliceId) -> Check {
        let Some(Note { ino, block, newest, read_at, content }) = self.notes[note].take() else {
            return Ok(());
        };
        if !self.now().nodes.contains_key(&ino) {
            return Ok(());
        }
        let start = u64::from(block) * u64::from(BLOCK_SIZE);
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (at, byte) in &content {
            match runs.last_mut() {
                Some((first, run)) if *first + run.len() as u64 == *at => run.push(*byte),
                Some((first, run)) if one && at - *first < 400 => {
                    run.resize((at - *first) as usize, 0);
                    run.push(*byte);
                }
                _ => runs.push((*at, vec![*byte])),
            }
        }
        let slices = runs.into_iter().zip(0..).map(|((first, run), n)| {
            let id = SliceId { index: id.index + n, ..id };
            crate::generate::inline(block, (first - start) as u32, run.into(), id)
        });
        let request = Request::Publish {
            ino,
            slices: slices.collect(),
            size_min: None,
            mtime_ns: None,
            kill_priv: false,
            merge: Some(Merge { block, newest }),
        };
        self.mutate(&Caller::ROOT, Ino::ROOT, false, tick, 0, &request, Some((&content, read_at)))
    }

    /// The bytes that a slice shows.
    pub fn shown(&self, slice: &Slice, staged: Option<&Bytes>) -> Vec<u8> {
        let full = match &slice.place {
            Place::Hole => return vec![0; slice.len as usize],
            Place::Inline(_, bytes) => bytes.to_vec(),
            Place::Staged(_) => staged.map(|bytes| bytes.to_vec()).unwrap_or_default(),
            Place::Moved(seal, object, at) => {
                assert!(!self.deleted.contains(object), "{seal:?} is in {object}, which was deleted");
                self.packed.get(&(*object, *at)).map(|bytes| bytes.to_vec()).unwrap_or_default()
            }
            Place::Object(seal, _) => {
                assert!(!self.deleted.contains(&seal.id.object), "{seal:?} is named and was deleted");
                object_bytes(seal.id, seal.full_len)
            }
        };
        let range = slice.skip as usize..(slice.skip + slice.len) as usize;
        full.get(range).map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// The bytes that slices make, each byte that is no hole.
    pub fn content(&self, slices: &[PlacedSlice]) -> Result<BTreeMap<u64, u8>, String> {
        ensure!(slices.is_sorted_by(|a, b| a.key < b.key), "slices out of order: {slices:?}");
        let mut content = BTreeMap::new();
        for PlacedSlice { key, slice, staged } in slices {
            let start = u64::from(key.block) * u64::from(BLOCK_SIZE) + u64::from(slice.offset);
            let end = start + u64::from(slice.len);
            ensure!(
                slice.len > 0 && slice.offset + slice.len <= BLOCK_SIZE,
                "a slice out of its block: {slice:?}"
            );
            content.retain(|at, _| !(start..end).contains(at));
            if slice.place != Place::Hole {
                let bytes = self.shown(slice, staged.as_ref());
                ensure!(bytes.len() == slice.len as usize, "a slice without its bytes: {slice:?} {staged:?}");
                content.extend((start..end).zip(bytes));
            }
        }
        Ok(content)
    }

    /// Fetches what a reply left out of the stored bytes of staged slices.
    pub fn with_staged(&self, ino: Ino, at: Option<Version>, slices: &mut [PlacedSlice]) -> Check {
        for placed in slices {
            if let (Place::Staged(seal), None) = (&placed.slice.place, &placed.staged) {
                let request = Request::Staged { ino, ids: vec![seal.id] };
                match self.query(&Caller::ROOT, Ino::ROOT, false, at, &request)? {
                    Ok(Reply::Staged(mut bytes)) if bytes.len() == 1 => placed.staged = bytes.pop(),
                    other => return Err(format!("{request:?}: {other:?}")),
                }
            }
        }
        Ok(())
    }

    pub fn cookie(&mut self, key: (Ino, Bytes, Ino), cookie: u64) -> Check {
        let first = *self.cookies.entry(key.clone()).or_insert(cookie);
        ensure!(first == cookie, "the cookie of {key:?} was {first} and is {cookie}");
        Ok(())
    }

    /// Cookies of entries that are gone may be given again.
    pub fn forget_cookies(&mut self) {
        let now = self.now().clone();
        self.cookies.retain(|(dir, name, ino), _| {
            now.nodes.get(dir).is_some_and(|node| node.entries.get(name) == Some(ino))
        });
    }
}
