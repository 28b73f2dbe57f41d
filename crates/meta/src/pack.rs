//! Puts slices of a volume together into an object: staged ones, or what is needed of objects of which little is. Stored
//! bytes are checked on the way, never opened.

use crate::machine::{MOVED_AT_ONCE, Move, PACK_SLICES_MAX, PackJob, Packed, SharedView};
use bytes::Bytes;
use chronofs_blocks::object::{Entry, Object, ObjectWriter};
use chronofs_blocks::seal;
use chronofs_core::ops::MovedSlice;
use chronofs_core::{ObjectId, SessionId, Version};
use chronofs_engine::{ReadStop, View};
use chronofs_namespace::rows::Staged;
use chronofs_namespace::{IndexedSlice, PoorObject, needed_slices};
use std::sync::Arc;

/// The object for a job of staged slices from the key `from` on, and what lies in it. Slices whose bytes are damaged stay
/// where they are.
pub fn build_pack(job: &PackJob, from: &[u8], view: Arc<dyn View>) -> Result<(Bytes, Packed), String> {
    let as_of = view.version();
    let reads = SharedView(view);
    let found =
        chronofs_namespace::staged_slices(&reads, job.index, from.to_vec(), job.bytes_max, PACK_SLICES_MAX);
    let (found, next) = found.map_err(told)?;
    let capacity = found.iter().map(|(_, row)| row.bytes.len() + 64).sum();
    let mut writer = ObjectWriter::new(job.volume, job.object, capacity);
    let mut slices = Vec::with_capacity(found.len());
    for (id, row) in found {
        let seal = row.seal(id);
        let Staged { ino, block, offset, len, bytes, .. } = row;
        if let Err(error) = seal::verify(&seal, &bytes) {
            tracing::error!(%ino, block, slice = %id, "staged bytes are damaged and stay where they are: {error}");
            continue;
        }
        slices.push((id, writer.push(Entry { ino, at: 0, block, offset, len, seal }, &bytes)));
    }
    let count = slices.len();
    let moves = slices.chunks(MOVED_AT_ONCE).map(|slices| Move::Staged(slices.to_vec())).collect();
    Ok((writer.finish(), Packed { as_of, moves, slices: count, next, left: Vec::new() }))
}

/// Puts what is needed of objects together.
pub struct Repacker {
    job: PackJob,
    view: Arc<dyn View>,
    writer: ObjectWriter,
    moves: Vec<Move>,
    slices: usize,
    left: Vec<(ObjectId, String)>,
}

impl Repacker {
    /// A new object with nothing in it.
    pub fn new(job: &PackJob, view: Arc<dyn View>) -> Repacker {
        let writer = ObjectWriter::new(job.volume, job.object, 0);
        Repacker { job: job.clone(), view, writer, moves: Vec::new(), slices: 0, left: Vec::new() }
    }

    /// Takes what is needed of an object, whose bytes these are. It is taken whole or, if anything is not as it must be,
    /// left alone.
    pub fn add(&mut self, source: &PoorObject, bytes: Bytes) -> Result<(), String> {
        let added = self.try_add(source, bytes);
        added.inspect_err(|reason| self.leave(source.id, reason))
    }

    /// An object stays as it is.
    pub fn leave(&mut self, object: ObjectId, reason: &str) {
        self.left.push((object, reason.to_owned()));
    }

    fn try_add(&mut self, source: &PoorObject, bytes: Bytes) -> Result<(), String> {
        let object = Object::read(bytes).map_err(|error| error.to_string())?;
        if (object.label.volume, object.label.id) != (self.job.volume, source.id) {
            return Err("it is another object than its name says".to_owned());
        }
        let indexed = |entry: &Entry| IndexedSlice {
            seal: entry.seal,
            at: entry.at,
            ino: entry.ino,
            block: entry.block,
        };
        let slices: Vec<IndexedSlice> = object.entries.iter().map(indexed).collect();
        let reads = SharedView(self.view.clone());
        let needed = needed_slices(&reads, self.job.index, source.id, &slices).map_err(told)?;
        let needed = needed.ok_or(
            "something that is kept needs it (a disk snapshot or a backup), or rows name it where its index does not say so",
        )?;
        let mut stored = Vec::with_capacity(needed.len());
        for (n, rows) in needed {
            let entry = &object.entries[n];
            let bytes = object.stored(entry).ok_or("its index points outside of it")?;
            seal::verify(&entry.seal, &bytes).map_err(|error| error.to_string())?;
            stored.push((entry, bytes, rows));
        }
        let moved = stored.into_iter().map(|(entry, bytes, rows)| {
            let at = self.writer.push(*entry, &bytes);
            MovedSlice { id: entry.seal.id, at, len: entry.seal.stored_len, rows }
        });
        let moved: Vec<MovedSlice> = moved.collect();
        self.slices += moved.len();
        // What a session put is taken in one commit; it is not that much.
        let at_once = if source.id.session == SessionId::SERVER { MOVED_AT_ONCE } else { moved.len().max(1) };
        let parts =
            moved.chunks(at_once).map(|slices| Move::Slices { from: source.id, slices: slices.to_vec() });
        self.moves.extend(parts);
        Ok(())
    }

    /// The object, and what lies in it.
    pub fn finish(self) -> (Bytes, Packed) {
        let Repacker { view, writer, moves, slices, left, .. } = self;
        let as_of: Version = view.version();
        (writer.finish(), Packed { as_of, moves, slices, next: None, left })
    }
}

fn told(stop: ReadStop) -> String {
    match stop {
        ReadStop::Failed(error) => error.to_string(),
        ReadStop::Need(_) => "the view has not all rows".to_owned(),
    }
}
