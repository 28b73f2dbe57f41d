//! The content of one inode as this mount sees it, shared by all open handles: published slices, bytes on their
//! way, and bytes just written, each lying over the one before.
//!
//! One lock guards it all and is never held while waiting. A second, [`FileData::order`], is held while
//! something is published or truncated, so that these happen one after the other and in order.

use super::dirty::Dirty;
use super::lock;
use super::lost::ErrorMark;
use super::meta::Meta;
use super::parked::Parking;
use super::read::ReadAhead;
use super::slice_map::SliceMap;
use super::volume::Data;
use super::write_back::Batch;
use chronofs_blocks::plan::{Content, Piece};
use chronofs_core::slice::PlacedSlice;
use chronofs_core::{Attr, Errno, Ino, SetAttr, Version};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// The most raw bytes that go on their way together: what fits into one object.
const BATCH_BYTES_MAX: u64 = chronofs_blocks::object::OBJECT_BYTES_MAX as u64;
/// The most pieces that go on their way together.
const BATCH_PIECES_MAX: usize = 1024;
/// With more batches than this waiting, they are written back at once: a read looks through all of them.
const BATCHES_WAITING_MAX: usize = 64;
/// How often a writer that waits for memory looks again, whatever was released.
const ROOM_CHECK: Duration = Duration::from_secs(1);

/// The content of one inode.
pub struct FileData<M: Meta> {
    pub(super) data: Arc<Data<M>>,
    pub(super) ino: Ino,
    state: Mutex<State>,
    /// Held while something of this file is published, and while it is truncated.
    pub(super) order: tokio::sync::Mutex<()>,
    /// Held while slices are asked for, so that a crowd of readers asks once.
    pub(super) asking: tokio::sync::Mutex<()>,
    /// Held while a block is merged in the background; says when that may be tried again.
    pub(super) merging: tokio::sync::Mutex<Option<Instant>>,
    /// It was there after so many restores of the server.
    pub(super) there: AtomicU64,
    /// A later one has lost it: nothing is taken for it any more.
    pub(super) gone: AtomicBool,
    /// Where its bytes went then.
    pub(super) parking: tokio::sync::Mutex<Parking<M>>,
}

/// Bytes on their way, and what has become of them since.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) batch: Arc<Batch>,
    /// The file was truncated to this since: nothing from here on counts any more.
    pub(super) cut: u64,
    pub(super) size_min: Option<u64>,
    pub(super) mtime_ns: Option<i64>,
    pub(super) kill_priv: bool,
}

#[derive(Debug)]
pub(super) struct State {
    /// The run of the server that said what follows.
    pub(super) boot: u64,
    /// It was said by an earlier run: what it says may have been lost since, and is asked for again.
    pub(super) stale: bool,
    /// The newest change of content that this mount knows of, and the size it left.
    pub(super) version: Version,
    pub(super) published_size: u64,
    pub(super) map: SliceMap,
    /// What `map` holds is all there is at this version. `None` when another session may have published unseen.
    pub(super) exact: Option<Version>,
    pub(super) frozen: VecDeque<Frozen>,
    pub(super) next_seq: u64,
    dirty: Dirty,
    mtime_ns: Option<i64>,
    kill_priv: bool,
    /// How often this mount truncated the file.
    pub(super) truncations: u64,
    /// In the flusher's queue, or being written back by it.
    queued: bool,
    /// How often bytes were given up, and the last reason.
    pub(super) errors: u64,
    pub(super) last_error: Errno,
    /// Why the last try to publish failed, if it did.
    pub(super) stuck: Option<Errno>,
    pub(super) ahead: ReadAhead,
}

impl State {
    /// The size as programs of this mount see it.
    pub(super) fn size(&self) -> u64 {
        let on_the_way = self.frozen.iter().filter_map(|frozen| frozen.size_min).max().unwrap_or(0);
        self.published_size.max(on_the_way).max(self.dirty.end())
    }

    pub(super) fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// The server runs anew. What is written and not published is as before.
    fn restarted(&mut self, boot: u64) {
        (self.boot, self.stale) = (boot, true);
        self.forget_published(Version::ZERO);
    }

    /// As if the server ran anew: whoever reads asks for the attributes first.
    pub(super) fn restarted_unheard(&mut self) {
        self.restarted(self.boot);
    }

    pub(super) fn forget_published(&mut self, version: Version) {
        self.version = version;
        self.map.clear();
        self.exact = None;
        self.ahead = ReadAhead::default();
    }

    fn is_unclean(&self) -> bool {
        !self.dirty.is_empty() || !self.frozen.is_empty()
    }

    /// Sends `pieces` on their way, in batches of a size that fits one object. Written bytes lengthen the file by
    /// themselves.
    fn freeze(&mut self, pieces: Vec<Piece>) {
        let mut rest = pieces.into_iter().peekable();
        while rest.peek().is_some() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(piece) = rest.next_if(|piece| {
                let more = stored_bytes(piece);
                batch.is_empty() || (bytes + more <= BATCH_BYTES_MAX && batch.len() < BATCH_PIECES_MAX)
            }) {
                bytes += stored_bytes(&piece);
                batch.push(piece);
            }
            let end = |piece: &Piece| piece.offset + piece.content.len();
            let size_min = batch.iter().map(end).max();
            self.push(batch, bytes, size_min);
        }
        self.sent();
    }

    /// What is noted of bytes not on their way goes with the last of them.
    fn sent(&mut self) {
        if self.dirty.is_empty() {
            self.mtime_ns = None;
            self.kill_priv = false;
        }
    }

    /// A batch on its way, of `bytes` bytes of memory.
    fn push(&mut self, pieces: Vec<Piece>, bytes: u64, size_min: Option<u64>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.frozen.push_back(Frozen {
            batch: Arc::new(Batch::new(seq, pieces, bytes)),
            cut: u64::MAX,
            size_min,
            mtime_ns: self.mtime_ns,
            kill_priv: self.kill_priv,
        });
    }

    /// Sends everything written on its way; the number of the last batch, if any waits.
    pub(super) fn freeze_all(&mut self) -> Option<u64> {
        let pieces = self.dirty.take_all();
        self.freeze(pieces);
        self.frozen.back().map(|frozen| frozen.batch.seq)
    }

    /// The file was truncated to `size` after the batches below number `before` were written and before all others.
    /// Gives the memory of those of which nothing is left.
    fn cut(&mut self, size: u64, before: u64) -> u64 {
        let mut released = 0;
        self.frozen.retain_mut(|frozen| {
            if frozen.batch.seq >= before {
                return true;
            }
            frozen.cut = frozen.cut.min(size);
            frozen.size_min = frozen.size_min.map(|min| min.min(size));
            let gone = !frozen.kill_priv && frozen.batch.pieces.iter().all(|piece| piece.offset >= size);
            released += if gone { frozen.batch.bytes } else { 0 };
            !gone
        });
        released
    }

    /// Takes in what a reply says of the inode, unless something newer is known.
    pub(super) fn observe(&mut self, attr: &Attr) {
        if self.stale {
            // It may be an answer from before. Whoever reads asks.
            self.published_size = attr.size;
            return;
        }
        if attr.data_version >= self.version {
            if attr.data_version > self.version {
                self.map.clear();
                self.exact = None;
            }
            self.version = attr.data_version;
            self.published_size = attr.size;
        }
    }
}

pub(super) fn stored_bytes(piece: &Piece) -> u64 {
    match &piece.content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::Hole(_) => 0,
    }
}

impl<M: Meta> FileData<M> {
    pub(super) fn new(data: Arc<Data<M>>, attr: &Attr) -> Self {
        let block_size = data.config.block_size;
        let state = State {
            boot: data.meta.boot(),
            stale: false,
            version: attr.data_version,
            published_size: attr.size,
            map: SliceMap::new(block_size),
            exact: None,
            frozen: VecDeque::new(),
            next_seq: 0,
            dirty: Dirty::new(block_size),
            mtime_ns: None,
            kill_priv: false,
            truncations: 0,
            queued: false,
            errors: 0,
            last_error: Errno::EIO,
            stuck: None,
            ahead: ReadAhead::default(),
        };
        FileData {
            there: AtomicU64::new(0),
            data,
            ino: attr.ino,
            state: Mutex::new(state),
            order: tokio::sync::Mutex::new(()),
            asking: tokio::sync::Mutex::new(()),
            merging: tokio::sync::Mutex::default(),
            gone: AtomicBool::new(false),
            parking: Default::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        let boot = self.data.meta.boot();
        let mut state = lock(&self.state);
        if state.boot != boot {
            state.restarted(boot);
        }
        state
    }

    /// Takes in the reply of an open: what other mounts closed or synced before is seen from now on. `slices` are
    /// all of the file's, if the reply brought them.
    pub fn opened(&self, attr: &Attr, slices: Option<Vec<PlacedSlice>>) {
        let mut slices = slices;
        self.data.keep_staged(slices.as_deref_mut().unwrap_or_default());
        let mut state = self.state();
        if attr.data_version < state.version {
            return;
        }
        state.observe(attr);
        if state.stale || state.exact == Some(attr.data_version) {
            return;
        }
        state.map.clear();
        state.exact = slices.map(|slices| {
            state.map.set_all(slices);
            attr.data_version
        });
        if state.exact.is_none() {
            // Blocks are asked for from here on; all of them will be of this version or newer.
            state.exact = self.data.meta.exclusive().then_some(attr.data_version);
        }
    }

    /// `attr` as programs of this mount must see it: with what is written and not yet published.
    pub fn overlay(&self, attr: Attr) -> Attr {
        let mut attr = attr;
        let mut state = self.state();
        state.observe(&attr);
        attr.size = state.size();
        let on_the_way = state.frozen.iter().rev().find_map(|frozen| frozen.mtime_ns);
        if let Some(mtime_ns) = state.mtime_ns.or(on_the_way) {
            attr.mtime_ns = mtime_ns;
            attr.ctime_ns = attr.ctime_ns.max(mtime_ns);
        }
        if state.kill_priv || state.frozen.iter().any(|frozen| frozen.kill_priv) {
            let set_gid = if attr.mode & 0o010 != 0 { 0o2000 } else { 0 };
            attr.mode &= !(0o4000 | set_gid);
        }
        attr
    }

    /// The size as programs of this mount see it.
    pub fn size(&self) -> u64 {
        self.state().size()
    }

    /// Whether something written is not yet published.
    pub fn is_unclean(&self) -> bool {
        self.state().is_unclean()
    }

    /// Takes over `bytes` at `offset`. Waits when all files together hold too much that is not published.
    pub async fn write(self: &Arc<Self>, offset: u64, bytes: &[u8], kill_priv: bool) -> Result<(), Errno> {
        self.check_range(offset, bytes.len() as u64)?;
        self.take_room(bytes.len() as u64).await?;
        self.take(|_| Ok(offset), bytes, kill_priv).map(drop)
    }

    /// As [`FileData::write`], or `None` where that would wait.
    pub fn try_write(
        self: &Arc<Self>,
        offset: u64,
        bytes: &[u8],
        kill_priv: bool,
    ) -> Option<Result<(), Errno>> {
        if let Err(errno) = self.check_range(offset, bytes.len() as u64) {
            return Some(Err(errno));
        }
        let room = self.data.budget.try_take(bytes.len() as u64);
        room.then(|| self.take(|_| Ok(offset), bytes, kill_priv).map(drop))
    }

    /// Writes at the end of the file as this mount sees it; gives where that was.
    pub async fn append(self: &Arc<Self>, bytes: &[u8], kill_priv: bool) -> Result<u64, Errno> {
        self.refresh_if_stale().await?;
        self.take_room(bytes.len() as u64).await?;
        let end = |state: &State| {
            let offset = state.size();
            self.check_range(offset, bytes.len() as u64).map(|()| offset)
        };
        self.take(end, bytes, kill_priv)
    }

    /// Takes over bytes whose room is taken, at the offset that `place` gives, or gives the room back.
    fn take(
        self: &Arc<Self>,
        place: impl FnOnce(&State) -> Result<u64, Errno>,
        bytes: &[u8],
        kill_priv: bool,
    ) -> Result<u64, Errno> {
        let taken = self.data.admit().and_then(|_admitted| {
            let mut state = self.state();
            let offset = place(&state)?;
            self.apply(&mut state, offset, bytes, kill_priv);
            Ok(offset)
        });
        if taken.is_err() {
            self.data.budget.release(bytes.len() as u64);
        }
        taken
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), Errno> {
        if self.data.config.read_only {
            return Err(Errno::EROFS);
        }
        if self.gone.load(Ordering::SeqCst) {
            return Err(Errno::ESTALE);
        }
        let size_max = (u64::from(u32::MAX) * u64::from(self.data.config.block_size)).min(i64::MAX as u64);
        match offset.checked_add(len) {
            Some(end) if end <= size_max => Ok(()),
            _ => Err(Errno::EFBIG),
        }
    }

    /// Takes `bytes` from the budget.
    async fn take_room(self: &Arc<Self>, bytes: u64) -> Result<(), Errno> {
        loop {
            let released = self.data.budget.released();
            if self.data.budget.try_take(bytes) {
                return Ok(());
            }
            // What this file holds cannot be published: more of it would wait for ever.
            if let Some(errno) = self.state().stuck {
                return Err(errno);
            }
            self.data.press();
            let _ = tokio::time::timeout(ROOM_CHECK, released).await;
        }
    }

    /// Buffers bytes whose room is taken; sends blocks that became full on their way.
    fn apply(self: &Arc<Self>, state: &mut State, offset: u64, bytes: &[u8], kill_priv: bool) {
        if bytes.is_empty() {
            return;
        }
        let before = state.dirty.bytes();
        state.dirty.write(offset, bytes);
        self.data.budget.release(before + bytes.len() as u64 - state.dirty.bytes());
        self.touched(state, kill_priv);
        let block_size = u64::from(self.data.config.block_size);
        let end = offset + bytes.len() as u64;
        let mut full = false;
        for block in offset / block_size..end.div_ceil(block_size) {
            // A full block that is still being written to (its end was not the last) waits for its age.
            if end >= (block + 1) * block_size && state.dirty.is_full(block) {
                let pieces = state.dirty.take_block(block);
                state.freeze(pieces);
                full = true;
            }
        }
        if full || state.frozen.len() > BATCHES_WAITING_MAX {
            self.start_batches(state);
        }
    }

    /// Takes over what was written to another file, which is not there any more, with its `bytes` of memory.
    pub(super) fn adopt(self: &Arc<Self>, pieces: Vec<Piece>, bytes: u64) {
        let size_min = pieces.iter().map(|piece| piece.offset + piece.content.len()).max();
        let mut state = self.state();
        self.touched(&mut state, false);
        state.push(pieces, bytes, size_min);
        state.sent();
    }

    /// Notes that something was written.
    fn touched(self: &Arc<Self>, state: &mut State, kill_priv: bool) {
        state.mtime_ns = Some(self.data.meta.now_ns());
        state.kill_priv |= kill_priv;
        if !state.queued {
            state.queued = true;
            self.data.enqueue(self.clone(), self.data.config.tuning.dirty_age_max);
        }
    }

    /// Starts to seal, put and publish what is on its way, in the background.
    fn start_batches(self: &Arc<Self>, state: &State) {
        let Some(last) = state.frozen.back().map(|frozen| frozen.batch.clone()) else { return };
        let file = self.clone();
        self.data.runtime.spawn(async move {
            // What fails here is tried again by the flusher, in whose queue the file is.
            let _ = last.prepare(&file).await;
            let _ = file.publish_through(last.seq).await;
        });
    }

    /// Called by the flusher when it is done with the file: back into its queue if there is more.
    pub(super) fn requeue(self: &Arc<Self>) {
        let mut state = self.state();
        state.queued = state.is_unclean();
        if state.queued {
            self.data.enqueue(self.clone(), self.data.config.tuning.dirty_age_max);
        }
    }

    /// Makes `offset..offset + len` read as zeros and takes no space for it. With `extend` the file is at least
    /// that long afterwards, else what lies past its end is left out.
    pub async fn zero(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        extend: bool,
        kill_priv: bool,
    ) -> Result<(), Errno> {
        self.check_range(offset, len)?;
        self.refresh_if_stale().await?;
        let _admitted = self.data.admit()?;
        let mut state = self.state();
        let end = if extend { offset + len } else { (offset + len).min(state.size()) };
        if offset >= end {
            return Ok(());
        }
        // What is written before a truncation that is under way lies in batches; the bytes here come after it. Where
        // they lengthen the file, they do so even when they are cleared.
        let written_end = state.dirty.end();
        let size_min =
            if extend { Some(end) } else { Some(written_end).filter(|at| offset < *at && *at <= end) };
        let before = state.dirty.bytes();
        state.dirty.clear(offset, end);
        self.data.budget.release(before - state.dirty.bytes());
        state.freeze_all();
        self.touched(&mut state, kill_priv);
        state.push(vec![Piece { offset, content: Content::Hole(end - offset) }], 0, size_min);
        state.sent();
        if state.frozen.len() > BATCHES_WAITING_MAX {
            self.start_batches(&state);
        }
        Ok(())
    }

    /// Sees to it that the file is at least `end` long. What others make longer meanwhile stays longer.
    pub fn extend(self: &Arc<Self>, end: u64, kill_priv: bool) -> Result<(), Errno> {
        self.check_range(0, end)?;
        let _admitted = self.data.admit()?;
        let mut state = self.state();
        state.freeze_all();
        self.touched(&mut state, kill_priv);
        state.push(Vec::new(), 0, Some(end));
        state.sent();
        if state.frozen.len() > BATCHES_WAITING_MAX {
            self.start_batches(&state);
        }
        Ok(())
    }

    /// Has `request` (a SetAttr of `set` to the server) done in order with what this mount writes: a truncation cuts
    /// what was written before the call and nothing that is written after it, however long the request takes; and
    /// what was written before, published later, leaves the times alone that the request sets.
    pub async fn set_attr<F>(self: &Arc<Self>, set: &SetAttr, request: F) -> Result<Attr, Errno>
    where
        F: Future<Output = Result<Attr, Errno>>,
    {
        let before = {
            let mut state = self.state();
            state.freeze_all();
            state.next_seq
        };
        // Asked for before anybody can wait who wants to publish what is written from here on: it is fair.
        let order = self.order.lock().await;
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            // A write before chown or chmod may still have to take setuid: not after it. A failure is told to
            // whoever closes the file.
            self.prepare_through(before).await;
            let _ = self.publish_in_order(&order, before).await;
        }
        let attr = request.await?;
        let exclusive = self.data.meta.exclusive();
        let mut state = self.state();
        if set.mtime.is_some() || set.size.is_some() {
            let earlier = state.frozen.iter_mut().filter(|frozen| frozen.batch.seq < before);
            earlier.for_each(|frozen| frozen.mtime_ns = None);
        }
        if let Some(size) = set.size {
            state.truncations += 1;
            let released = state.cut(size, before);
            self.data.budget.release(released);
            let first = size.min(state.published_size) / u64::from(self.data.config.block_size);
            state.map.forget_from(u32::try_from(first).unwrap_or(u32::MAX));
            state.ahead = ReadAhead::default();
        }
        if attr.data_version >= state.version {
            let known = state.exact == Some(state.version) && exclusive;
            state.exact = known.then_some(attr.data_version);
            state.version = attr.data_version;
            state.published_size = attr.size;
        }
        drop(state);
        Ok(self.overlay(attr))
    }

    /// Publishes everything written before the call. An error says that bytes are not in the volume: given up (and
    /// then it is told once to each handle), or kept and tried again.
    pub async fn flush(self: &Arc<Self>, mark: &ErrorMark) -> Result<(), Errno> {
        let written = self.write_back().await;
        self.check(mark).and(written)
    }

    /// The same for close(2) of one descriptor, which leaves the error to a later fsync: the descriptor may be that of a child
    /// process, which inherited it and hears of nothing.
    pub async fn close(self: &Arc<Self>, mark: &ErrorMark) -> Result<(), Errno> {
        let written = self.write_back().await;
        self.untold(mark).0.and(written)
    }

    /// Forgets what is not published: nobody can ever read it.
    pub fn discard(&self) {
        let mut state = self.state();
        let before = state.dirty.bytes();
        state.dirty.clear(0, u64::MAX);
        let frozen: u64 = state.frozen.drain(..).map(|frozen| frozen.batch.bytes).sum();
        self.data.budget.release(before + frozen);
        state.mtime_ns = None;
        state.kill_priv = false;
        state.stuck = None;
    }
}

impl<M: Meta> fmt::Debug for FileData<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileData").field("ino", &self.ino).finish_non_exhaustive()
    }
}

impl<M: Meta> Drop for FileData<M> {
    fn drop(&mut self) {
        self.data.forget(self.ino);
    }
}
