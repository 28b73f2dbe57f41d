//! Bytes on their way: sealed, put into the object store, then published, in the order they were written.
//!
//! Seals and puts of several batches run at once; publishes of a file run one after the other. What fails in a way
//! that another try may mend stays where it is, and everything behind it too.

use super::counters::InUse;
use super::file::FileData;
use super::lock;
use super::merge;
use super::meta::{Meta, Publish, PublishError};
use super::parked::is_hopeless;
use crate::clock::jittered_by;
use bytes::Bytes;
use chronofs_blocks::plan::{Content, Draft, Piece, Sealed, Target};
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{StoreError, Trouble, object_name};
use chronofs_core::ops::SLICES_PER_PUBLISH_MAX;
use chronofs_core::slice::{NewSlice, Place, PlacedSlice, SliceKey};
use chronofs_core::{Attr, Errno, ObjectId};
use futures::StreamExt;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

/// Fewer raw bytes than this are sealed on the spot, and make no object.
const SEAL_BLOCKING_MIN: u64 = 64 << 10;
/// How often a put is tried before its batch waits for the next write-back, how long between, and for how long tries
/// begin: most ways to a store have tried for long when they fail.
const PUT_TRIES: u32 = 3;
const PUT_RETRY: Duration = Duration::from_millis(100);
const PUT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a publish is tried that the server answers with EAGAIN, and the first and the longest pause between.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(10);
const PUBLISH_RETRY: Duration = Duration::from_millis(10);
const PUBLISH_RETRY_MAX: Duration = Duration::from_secs(1);
/// How often to look whether the grant of a new session is known, and for how long.
const SESSION_CHECK: Duration = Duration::from_millis(10);
const SESSION_PATIENCE: Duration = Duration::from_secs(30);

/// Written ranges that go on their way together. They do not overlap.
#[derive(Debug)]
pub(super) struct Batch {
    /// Its place among the batches of the file.
    pub(super) seq: u64,
    pub(super) pieces: Vec<Piece>,
    /// Bytes of memory, given back when it is published.
    pub(super) bytes: u64,
    progress: tokio::sync::Mutex<Progress>,
    /// The slices, once their objects are stored.
    stored: Mutex<Option<Arc<Sealed>>>,
}

#[derive(Debug, Default)]
struct Progress {
    sealed: Option<Sealed>,
    /// The ids that name them, for as long as they may be published.
    _ids: Option<InUse>,
    /// Objects of `sealed` that are in the store.
    put: usize,
}

/// Why a batch is not published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// Another try may mend it.
    Passing(Errno),
    /// It never will be.
    Final(Errno),
    /// It is to be sealed and published again under the ids of a new session.
    SessionOver,
}

impl Failure {
    /// What it means that a publish did not succeed. Bytes may be given up only for what the server said of them.
    fn of(error: PublishError) -> Failure {
        let errno = match error {
            PublishError::Answered(errno) => errno,
            PublishError::NoAnswer(errno) => return Failure::Passing(errno),
            PublishError::SessionOver => return Failure::SessionOver,
        };
        match errno {
            Errno::EAGAIN | Errno::EINTR | Errno::ETIMEDOUT | Errno::ECANCELED | Errno::EBUSY => {
                Failure::Passing(errno)
            }
            _ => Failure::Final(errno),
        }
    }
}

impl Batch {
    pub(super) fn new(seq: u64, pieces: Vec<Piece>, bytes: u64) -> Self {
        Batch { seq, pieces, bytes, progress: Default::default(), stored: Mutex::new(None) }
    }

    /// Seals the batch and puts its objects, or goes on where an earlier try stopped.
    pub(super) async fn prepare<M: Meta>(&self, file: &FileData<M>) -> Result<Arc<Sealed>, Failure> {
        let mut progress = self.progress.lock().await;
        let done = lock(&self.stored).clone();
        if let Some(stored) = done.filter(|stored| is_own(file, stored)) {
            return Ok(stored);
        }
        // What makes no object waits for none: those of others may wait for their store.
        let _permit = match self.bytes < SEAL_BLOCKING_MIN {
            true => None,
            false => {
                let permit = file.data.uploads.acquire().await;
                Some(permit.map_err(|_| Failure::Passing(Errno::ECANCELED))?)
            }
        };
        if progress.sealed.as_ref().is_none_or(|sealed| !is_own(file, sealed)) {
            let (sealed, ids) = self.seal(file).await?;
            *progress = Progress { sealed: Some(sealed), _ids: ids, put: 0 };
        }
        let Progress { sealed: Some(sealed), put, .. } = &mut *progress else {
            return Err(Failure::Passing(Errno::ECANCELED));
        };
        while let Some((id, bytes)) = sealed.objects.get(*put) {
            match put_object(file, *id, bytes.clone()).await {
                Ok(()) => {
                    keep_on_disk(file, sealed, *id, bytes);
                    *put += 1;
                }
                Err(error) if error.trouble == Trouble::SessionOver => {
                    progress.sealed = None;
                    return Err(Failure::SessionOver);
                }
                // Under this name something else is stored: the next try takes other names.
                Err(error) if error.trouble != Trouble::Unavailable => {
                    progress.sealed = None;
                    return Err(Failure::Passing(error.errno));
                }
                Err(error) => return Err(Failure::Passing(error.errno)),
            }
        }
        let slices = std::mem::take(&mut sealed.slices);
        let stored = Arc::new(Sealed { slices, objects: Vec::new() });
        progress.sealed = None;
        *lock(&self.stored) = Some(stored.clone());
        Ok(stored)
    }

    /// A publish of it has no answer, and may have been done all the same. Staged slices come with it, and the server takes
    /// each of their ids once: they are sealed again, under others.
    fn unseal_staged(&self) {
        let is_staged = |new: &NewSlice| matches!(new.slice.place, Place::Staged(_));
        let mut stored = lock(&self.stored);
        if stored.as_ref().is_some_and(|sealed| sealed.slices.iter().any(is_staged)) {
            *stored = None;
        }
    }

    /// Whether what was sealed, if anything, may still be published.
    fn is_sealed_for<M: Meta>(&self, file: &FileData<M>) -> bool {
        lock(&self.stored).as_ref().is_none_or(|stored| is_own(file, stored))
    }

    async fn seal<M: Meta>(&self, file: &FileData<M>) -> Result<(Sealed, Option<InUse>), Failure> {
        let config = &file.data.config;
        let draft = Draft::new(&self.pieces, config.block_size);
        let (ids, in_use) = file.data.object_ids(draft.ids_needed()).await.map_err(Failure::Passing)?;
        let keys = config.keys.as_ref().map(|ring| ring.now());
        let target = Target { volume: config.volume, ino: file.ino, compression: config.compression, keys };
        let sealed = match self.bytes < SEAL_BLOCKING_MIN {
            true => draft.seal(&target, &ids),
            false => {
                let sealing = off_thread(move || draft.seal(&target, &ids)).await;
                sealing.map_err(|_| Failure::Passing(Errno::ECANCELED))?
            }
        };
        sealed.map(|sealed| (sealed, in_use)).map_err(|error| {
            tracing::error!("what was written cannot be encrypted, and waits: {error}");
            Failure::Passing(Errno::EIO)
        })
    }

    /// The first of the batch's bytes at or after `from`, if the file was cut at `cut` since.
    pub(super) fn next(&self, from: u64, cut: u64) -> Option<u64> {
        let bytes = self.pieces.iter().filter(|piece| matches!(piece.content, Content::Bytes(_)));
        let after = bytes.filter(|piece| piece.offset + piece.content.len() > from);
        after.map(|piece| piece.offset.max(from)).min().filter(|at| *at < cut)
    }

    /// What the batch shows of `from..to`, if the file was cut at `cut` since: in no order.
    pub(super) fn overlap(&self, from: u64, to: u64, cut: u64) -> impl Iterator<Item = (u64, Content)> + '_ {
        let to = to.min(cut);
        self.pieces.iter().filter_map(move |piece| {
            let (start, end) = (piece.offset.max(from), (piece.offset + piece.content.len()).min(to));
            (start < end).then(|| (start, piece.content.slice(start - piece.offset, end - piece.offset)))
        })
    }
}

/// Whether every slice has an id of the session that writes now: the server refuses others.
fn is_own<M: Meta>(file: &FileData<M>, sealed: &Sealed) -> bool {
    let mut seals = sealed.slices.iter().filter_map(|new| new.slice.place.seal());
    seals.all(|seal| file.data.is_own(seal.id.object))
}

/// Keeps the slices of an object that is stored, so that reading them needs no request.
fn keep_on_disk<M: Meta>(file: &FileData<M>, sealed: &Sealed, id: ObjectId, object: &Bytes) {
    let Some(disk) = &file.data.config.disk else { return };
    for new in &sealed.slices {
        let Place::Object(seal, at) = &new.slice.place else { continue };
        let range = *at as usize..*at as usize + seal.stored_len as usize;
        if seal.id.object == id && range.end <= object.len() {
            disk.put(file.data.config.volume, seal, object.slice(range));
        }
    }
}

async fn put_object<M: Meta>(file: &FileData<M>, id: ObjectId, bytes: Bytes) -> Result<(), StoreError> {
    let name = object_name(file.data.config.volume, id);
    let (mut tries, give_up) = (1, Instant::now() + PUT_PATIENCE);
    loop {
        let Err(error) = file.data.port.put(&name, bytes.clone()).await else { return Ok(()) };
        if error.trouble == Trouble::SessionOver {
            return Err(error);
        }
        if error.trouble != Trouble::Unavailable || tries == PUT_TRIES || Instant::now() >= give_up {
            tracing::warn!(ino = %file.ino, tries, "written bytes are kept in memory: {error}");
            return Err(error);
        }
        let share = (file.data.config.tuning.random_share)();
        tokio::time::sleep(jittered_by(share, PUT_RETRY, tries, PUT_RETRY * 4)).await;
        tries += 1;
    }
}

impl<M: Meta> FileData<M> {
    /// Publishes everything written before the call.
    pub(super) async fn write_back(self: &Arc<Self>) -> Result<(), Errno> {
        let Some(last) = self.state().freeze_all() else {
            // What another call is just publishing was written before this one, too.
            drop(self.order.lock().await);
            return Ok(());
        };
        self.publish_through(last).await
    }

    /// Publishes every batch up to number `last`, in order. Gives the first error.
    pub(super) async fn publish_through(self: &Arc<Self>, last: u64) -> Result<(), Errno> {
        self.prepare_through(last + 1).await;
        let order = self.order.lock().await;
        self.publish_in_order(&order, last + 1).await
    }

    /// Seals and puts every batch below number `end`, many at once. What fails here is tried once more when it is
    /// published, where it matters.
    pub(super) async fn prepare_through(self: &Arc<Self>, end: u64) {
        let waiting: Vec<_> = {
            let state = self.state();
            state.frozen.iter().map(|frozen| frozen.batch.clone()).filter(|batch| batch.seq < end).collect()
        };
        if waiting.len() > 1 {
            let puts =
                futures::stream::iter(waiting).map(|batch| async move { batch.prepare(self).await.is_ok() });
            puts.buffer_unordered(self.data.config.tuning.uploads_max).count().await;
        }
    }

    /// Publishes every batch below number `end`, for whoever holds [`FileData::order`]. Gives the first error.
    pub(super) async fn publish_in_order(
        self: &Arc<Self>,
        order: &MutexGuard<'_, ()>,
        end: u64,
    ) -> Result<(), Errno> {
        let mut first_error = None;
        let mut session_by = None;
        loop {
            let next = self.state().frozen.front().map(|frozen| frozen.batch.clone());
            let Some(batch) = next.filter(|batch| batch.seq < end) else { break };
            match self.publish(&batch, order).await {
                Ok(()) => (self.state().stuck, session_by) = (None, None),
                // Whoever waits for the bytes is not to wait for ever; they stay, and are tried again.
                Err(Failure::SessionOver)
                    if Instant::now()
                        >= *session_by.get_or_insert_with(|| Instant::now() + SESSION_PATIENCE) =>
                {
                    self.state().stuck = Some(Errno::EIO);
                    return Err(first_error.unwrap_or(Errno::EIO));
                }
                Err(Failure::SessionOver) => {
                    // The news may be on its way still; until it is here, it would be sealed for the old session.
                    if batch.is_sealed_for(self) {
                        tokio::time::sleep(SESSION_CHECK).await;
                    }
                }
                Err(Failure::Passing(errno)) => {
                    self.state().stuck = Some(errno);
                    return Err(first_error.unwrap_or(errno));
                }
                Err(Failure::Final(errno)) if self.is_lost(errno) => match self.park(&batch).await {
                    Ok(true) => {
                        first_error.get_or_insert(Errno::ESTALE);
                    }
                    // Somebody has discarded it meanwhile.
                    Ok(false) => {}
                    Err(errno) if is_hopeless(errno) => {
                        first_error.get_or_insert(Errno::ESTALE);
                        self.give_up(&batch, Errno::ESTALE);
                    }
                    Err(errno) => {
                        self.state().stuck = Some(errno);
                        return Err(first_error.unwrap_or(errno));
                    }
                },
                Err(Failure::Final(errno)) => {
                    first_error.get_or_insert(errno);
                    self.give_up(&batch, errno);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Publishes the batch in front.
    async fn publish(
        self: &Arc<Self>,
        batch: &Arc<Batch>,
        order: &MutexGuard<'_, ()>,
    ) -> Result<(), Failure> {
        let sealed = batch.prepare(self).await?;
        let (slices, cut, size_min, mtime_ns, kill_priv) = {
            let state = self.state();
            // Gone: the file was discarded meanwhile.
            let Some(frozen) = state.frozen.front().filter(|f| f.batch.seq == batch.seq) else {
                return Ok(());
            };
            let block_size = u64::from(self.data.config.block_size);
            let cut = |slice: &NewSlice| cut_slice(slice, frozen.cut, block_size);
            let slices: Vec<NewSlice> = sealed.slices.iter().filter_map(cut).collect();
            (slices, frozen.cut, frozen.size_min, frozen.mtime_ns, frozen.kill_priv)
        };
        let mut chunks: Vec<&[NewSlice]> = slices.chunks(SLICES_PER_PUBLISH_MAX).collect();
        // Of what a truncation cut nothing is left to say, unless that a write was to take setuid.
        if chunks.is_empty() && (kill_priv || cut == u64::MAX) {
            chunks.push(&[]);
        }
        let (last, restores) = (chunks.len(), self.data.meta.restores());
        for (chunk, n) in chunks.into_iter().zip(1..) {
            let publish = Publish {
                ino: self.ino,
                slices: chunk.to_vec(),
                size_min: size_min.filter(|_| n == last),
                mtime_ns,
                kill_priv,
                merge: None,
            };
            let exclusive = self.data.meta.exclusive();
            let attr = self.ask_to_publish(publish, order).await.map_err(|error| {
                if matches!(error, PublishError::NoAnswer(_)) {
                    batch.unseal_staged();
                }
                match is_own(self, &sealed) {
                    true => Failure::of(error),
                    // Refused for its ids: it is sealed again under those of the new session.
                    false => Failure::SessionOver,
                }
            })?;
            self.is_there(restores);
            self.published(&attr, chunk, exclusive && self.data.meta.exclusive());
        }
        let mut state = self.state();
        if state.frozen.front().is_some_and(|frozen| frozen.batch.seq == batch.seq) {
            state.frozen.pop_front();
            self.data.budget.release(batch.bytes);
            drop(state);
            self.remember(batch, &slices);
        }
        Ok(())
    }

    /// Asks the server, again and again for a while when it answers that it may be done later: a program that closes
    /// its file cannot do anything about that. Blocks that have too many slices are merged in between.
    async fn ask_to_publish(
        self: &Arc<Self>,
        publish: Publish,
        order: &MutexGuard<'_, ()>,
    ) -> Result<Attr, PublishError> {
        let give_up = Instant::now() + PUBLISH_PATIENCE;
        let mut pause = PUBLISH_RETRY;
        loop {
            let answer = self.data.meta.publish(publish.clone()).await;
            match answer {
                Err(PublishError::Answered(Errno::EBUSY)) if Instant::now() < give_up => {
                    let blocks: BTreeSet<u32> = publish.slices.iter().map(|new| new.block).collect();
                    for block in blocks {
                        match merge::now(self, block, order).await {
                            Ok(()) => {}
                            // Waiting makes no room: as with every write for which there is none.
                            Err(Errno::EDQUOT) => return Err(PublishError::Answered(Errno::EDQUOT)),
                            Err(errno) => {
                                tracing::debug!(ino = %self.ino, block, %errno, "a full block is not merged yet");
                            }
                        }
                    }
                }
                Err(PublishError::Answered(Errno::EAGAIN)) if Instant::now() < give_up => {}
                answer => return answer,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PUBLISH_RETRY_MAX);
        }
    }

    /// Takes in that `slices` are part of the file now.
    fn published(self: &Arc<Self>, attr: &Attr, slices: &[NewSlice], exclusive: bool) {
        let mut state = self.state();
        if attr.data_version < state.version {
            // Something newer was seen meanwhile; what is cached is of that or will be.
            state.map.clear();
            state.exact = None;
            return;
        }
        let first_unpublished = state.published_size.div_ceil(u64::from(self.data.config.block_size));
        let known = state.exact == Some(state.version) && exclusive;
        let mut newer: HashMap<u32, Vec<PlacedSlice>> = HashMap::new();
        for (new, n) in slices.iter().zip(0..) {
            let key = SliceKey { block: new.block, version: attr.data_version, n };
            let placed = PlacedSlice { key, slice: new.slice.clone(), staged: None };
            newer.entry(new.block).or_default().push(placed);
        }
        let mut crowded = Vec::new();
        for (block, slices) in newer {
            if u64::from(block) >= first_unpublished && state.map.get(block).is_none() {
                // Past the end of what was published nothing was.
                state.map.set(block, Vec::new());
            }
            if state.map.add(block, slices) > self.data.config.tuning.slices_per_block_max {
                crowded.push(block);
            }
        }
        state.exact = known.then_some(attr.data_version);
        state.version = attr.data_version;
        state.published_size = attr.size;
        drop(state);
        for block in crowded {
            merge::start(self, block);
        }
    }

    /// Keeps published bytes where a read finds them.
    fn remember(&self, batch: &Batch, slices: &[NewSlice]) {
        let block_size = u64::from(self.data.config.block_size);
        for new in slices {
            let Some(seal) = new.slice.place.seal() else { continue };
            let from = u64::from(new.block) * block_size + u64::from(new.slice.offset);
            let to = from + u64::from(seal.full_len);
            let whole = batch.overlap(from, to, u64::MAX).next();
            if let Some((_, Content::Bytes(bytes))) = whole
                && bytes.len() == seal.full_len as usize
                && !matches!(new.slice.place, Place::Inline(..))
            {
                self.data.cache.insert(seal.id, bytes);
            }
        }
    }

    /// Drops a batch that can never be published and notes the error for every handle.
    fn give_up(&self, batch: &Batch, errno: Errno) {
        tracing::error!(ino = %self.ino, bytes = batch.bytes, %errno, "written bytes are lost: the server refused them");
        self.data.refused.fetch_add(batch.bytes, Ordering::Relaxed);
        self.take_leave(batch, errno, 0);
    }

    /// A batch is not this file's any more; every handle is told why. Of its memory so many bytes go with it to another file.
    pub(super) fn take_leave(&self, batch: &Batch, errno: Errno, go: u64) {
        let mut state = self.state();
        if state.frozen.front().is_some_and(|frozen| frozen.batch.seq == batch.seq) {
            state.frozen.pop_front();
            self.data.budget.release(batch.bytes.saturating_sub(go));
        }
        state.errors += 1;
        state.last_error = errno;
        // A reader must see what is published, also where a part of the batch was.
        state.map.clear();
        state.exact = None;
    }
}

/// What of a slice is left when its file was cut at `cut` after it was written.
fn cut_slice(new: &NewSlice, cut: u64, block_size: u64) -> Option<NewSlice> {
    let start = u64::from(new.block) * block_size + u64::from(new.slice.offset);
    let len = u64::from(new.slice.len).min(cut.saturating_sub(start));
    let mut new = new.clone();
    new.slice.len = len as u32;
    (len > 0).then_some(new)
}
