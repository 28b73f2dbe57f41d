//! Reading: from what lies on top down to published slices, and reading ahead of sequential readers.

use super::file::{FileData, State};
use super::merge;
use super::meta::Meta;
use super::slices::NOT_SHOWN;
use bytes::{Bytes, BytesMut};
use chronofs_blocks::layout::Shows;
use chronofs_blocks::plan::Content;
use chronofs_core::Errno;
use chronofs_core::slice::{Place, PlacedSlice};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;

/// How many blocks are asked for at a time, and how many by a search for holes.
const ASK_BLOCKS: u32 = 32;
const ASK_BLOCKS_SEEK: u32 = 1024;
/// A search for data looks at this many times more blocks after each look that found nothing: a hole may be as large as
/// the largest file.
const LOOK_FARTHER: u32 = 16;
/// Slices of one read that are fetched at once.
const FETCHES_MAX: usize = 8;
/// How often the slices of a read are asked for anew because others have replaced them before they were fetched.
const NOT_SHOWN_TRIES: u32 = 8;
/// How often slices are asked for again that are older than what this mount knows of, and the pause between.
const OVERTAKEN_MAX: u32 = 100;
const OVERTAKEN_RETRY: Duration = Duration::from_millis(20);
/// A read that begins this close to the end of the one before goes on with it: kernels read ahead in parallel.
const SEQUENTIAL_SLACK: u64 = 1 << 20;
/// Reads in sequence before anything is read ahead.
const SEQUENTIAL_MIN: u32 = 2;

/// What lseek(2) looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE; the end of the file counts as one.
    Hole,
}

/// The sequential reader of a file, as far as there is one.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    expected: u64,
    in_sequence: u32,
    /// Blocks below this one were asked for ahead.
    asked: u32,
}

/// Where the bytes of a part of a read come from.
#[derive(Debug)]
pub(super) enum Source {
    Bytes(Bytes),
    Zeros,
    Slice { placed: PlacedSlice, skip: u32 },
}

/// A part of a read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) source: Source,
}

impl Part {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Blocks whose slices are not known.
#[derive(Debug)]
struct Unknown {
    block: u32,
}

impl State {
    /// The parts of `from..to`, in order; they cover all of it.
    fn parts(&self, from: u64, to: u64, block_size: u64) -> Result<Vec<Part>, Unknown> {
        let mut parts = Vec::new();
        let mut gaps = vec![(from, to)];
        if !self.dirty().is_empty() {
            gaps = fill(gaps, &mut parts, |from, to| {
                self.dirty()
                    .read(from, to)
                    .into_iter()
                    .map(|(at, bytes)| (at, Content::Bytes(bytes)))
                    .collect()
            });
        }
        for frozen in self.frozen.iter().rev() {
            if gaps.is_empty() {
                break;
            }
            gaps = fill(gaps, &mut parts, |from, to| frozen.batch.overlap(from, to, frozen.cut).collect());
        }
        for (from, to) in gaps {
            self.published_parts(from, to, block_size, &mut parts)?;
        }
        parts.sort_unstable_by_key(|part| part.offset);
        Ok(parts)
    }

    /// The first byte at or after `from` that is written and not published.
    fn next_unpublished(&self, from: u64) -> Option<u64> {
        let frozen = self.frozen.iter().filter_map(|frozen| frozen.batch.next(from, frozen.cut));
        frozen.chain(self.dirty().next(from)).min()
    }

    /// From where on, at or after `from`, there may be data.
    fn next_data(&self, from: u64, block_size: u64) -> Option<u64> {
        let block = u32::try_from(from / block_size).ok().filter(|_| from < self.published_size);
        let published = block.and_then(|block| self.map.next(block));
        let published = published.map(|block| from.max(u64::from(block) * block_size));
        published.into_iter().chain(self.next_unpublished(from)).min()
    }

    fn published_parts(
        &self,
        from: u64,
        to: u64,
        block_size: u64,
        parts: &mut Vec<Part>,
    ) -> Result<(), Unknown> {
        let mut at = from;
        while at < to {
            let start = at / block_size * block_size;
            let end = (start + block_size).min(to);
            if start >= self.published_size {
                // Past the end of what is published there is nothing to ask for.
                parts.push(Part { offset: at, len: to - at, source: Source::Zeros });
                return Ok(());
            }
            let number = (at / block_size) as u32;
            let Some(block) = self.map.get(number) else { return Err(Unknown { block: number }) };
            let (first, last) = ((at - start) as u32, (end - start) as u32);
            let segments = block.segments.iter().skip_while(|segment| segment.end() <= first);
            for segment in segments.map_while(|segment| segment.clip(first, last)) {
                let source = match segment.shows {
                    Shows::Hole => Source::Zeros,
                    Shows::Slice { index, skip } => {
                        Source::Slice { placed: block.slices[index].clone(), skip }
                    }
                };
                let offset = start + u64::from(segment.offset);
                parts.push(Part { offset, len: u64::from(segment.len), source });
            }
            at = end;
        }
        Ok(())
    }
}

/// Covers what it can of `gaps` by `find`; gives the gaps that are left.
fn fill(
    gaps: Vec<(u64, u64)>,
    parts: &mut Vec<Part>,
    find: impl Fn(u64, u64) -> Vec<(u64, Content)>,
) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for (from, to) in gaps {
        let mut found = find(from, to);
        found.sort_unstable_by_key(|(offset, _)| *offset);
        let mut at = from;
        for (offset, content) in found {
            if at < offset {
                left.push((at, offset));
            }
            let len = content.len();
            at = offset + len;
            let source = match content {
                Content::Bytes(bytes) => Source::Bytes(bytes),
                Content::Hole(_) => Source::Zeros,
            };
            parts.push(Part { offset, len, source });
        }
        if at < to {
            left.push((at, to));
        }
    }
    left
}

impl<M: Meta> FileData<M> {
    /// `len` bytes from `offset`, fewer only at the end of the file. EIO if a byte of them is damaged or missing.
    pub async fn read(self: &Arc<Self>, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let mut tries = 1;
        loop {
            self.refresh_if_stale().await?;
            let planned = {
                let mut state = self.state();
                let Some(end) = read_end(&state, offset, len) else { return Ok(Bytes::new()) };
                self.read_ahead(&mut state, offset, end);
                state.parts(offset, end, self.block_size())
            };
            let parts = match planned {
                Ok(parts) => parts,
                Err(unknown) => {
                    self.ask(unknown.block, ASK_BLOCKS).await?;
                    continue;
                }
            };
            match self.assemble(parts).await {
                Err(NOT_SHOWN) if tries < NOT_SHOWN_TRIES => self.forget_blocks(offset, len),
                Err(NOT_SHOWN) => {
                    tracing::error!(ino = %self.ino, offset, len, "the server shows slices and does not let them be read");
                    return Err(Errno::EIO);
                }
                result => return result,
            }
            tries += 1;
        }
    }

    /// What is known of the slices of a range has passed.
    fn forget_blocks(&self, offset: u64, len: u32) {
        let last = offset.saturating_add(u64::from(len)).saturating_sub(1) / self.block_size();
        let mut state = self.state();
        for block in offset / self.block_size()..=last {
            state.map.forget(u32::try_from(block).unwrap_or(u32::MAX));
        }
    }

    /// As [`FileData::read`], or `None` where that would wait.
    pub fn try_read(self: &Arc<Self>, offset: u64, len: u32) -> Option<Result<Bytes, Errno>> {
        let parts = {
            let mut state = self.state();
            if state.stale {
                return None;
            }
            let Some(end) = read_end(&state, offset, len) else { return Some(Ok(Bytes::new())) };
            let parts = state.parts(offset, end, self.block_size()).ok()?;
            self.read_ahead(&mut state, offset, end);
            parts
        };
        let now = |part: Part| match &part.source {
            Source::Bytes(bytes) => Some(Ok(bytes.clone())),
            Source::Zeros => Some(Ok(Bytes::from(vec![0; part.len as usize]))),
            Source::Slice { placed, skip } => {
                let opened = self.data.cache.get(&placed.slice.place.seal()?.id)?;
                Some(shown(&opened, *skip, part.len))
            }
        };
        let found: Option<Result<Vec<Bytes>, Errno>> = parts.into_iter().map(now).collect();
        Some(found?.map(joined))
    }

    fn block_size(&self) -> u64 {
        u64::from(self.data.config.block_size)
    }

    /// Fetches the parts and puts them together.
    pub(super) async fn assemble(self: &Arc<Self>, parts: Vec<Part>) -> Result<Bytes, Errno> {
        self.prefetch_staged(&parts).await;
        let fetch = |part: Part| async move {
            match part.source {
                Source::Bytes(bytes) => Ok(bytes),
                Source::Zeros => Ok(Bytes::from(vec![0; part.len as usize])),
                Source::Slice { placed, skip } => {
                    let opened = self.data.load(self.ino, &placed).await?;
                    shown(&opened, skip, part.len)
                }
            }
        };
        let fetched = futures::stream::iter(parts).map(fetch).buffered(FETCHES_MAX);
        Ok(joined(fetched.try_collect().await?))
    }

    /// Asks the server for the slices of the blocks around `block`, unless somebody else just did.
    async fn ask(self: &Arc<Self>, block: u32, count: u32) -> Result<(), Errno> {
        let _asking = self.asking.lock().await;
        let (mut most, mut overtaken) = (count, 0);
        loop {
            let count = {
                let state = self.state();
                if state.map.get(block).is_some() {
                    return Ok(());
                }
                let blocks = state.published_size.div_ceil(self.block_size());
                let left = u32::try_from(blocks).unwrap_or(u32::MAX).saturating_sub(block);
                most.min(left).max(1)
            };
            let exclusive = self.data.meta.exclusive();
            let mut list = match self.data.meta.slices(self.ino, block, count).await {
                // More than one reply carries; of a single block it carries all.
                Err(Errno::EOVERFLOW) if count > 1 => {
                    most = count / 2;
                    continue;
                }
                other => other?,
            };
            self.data.keep_staged(&mut list.slices);
            if overtaken > 1 && list.version < self.state().version {
                tokio::time::sleep(OVERTAKEN_RETRY).await;
            }
            let mut state = self.state();
            // Read before something that this mount knows of: ask again.
            if list.version < state.version {
                if overtaken == OVERTAKEN_MAX {
                    // It never comes: what is known is of a server that is lost.
                    state.restarted_unheard();
                    return Ok(());
                }
                overtaken += 1;
                continue;
            }
            if !exclusive {
                state.exact = None;
            }
            state.map.set_range(block, count, list.slices);
            let crowded = |number: &u32| {
                let known = state.map.get(*number);
                known.is_some_and(|known| known.slices.len() > self.data.config.tuning.slices_per_block_max)
            };
            let merges: Vec<u32> = (block..block + count).filter(crowded).collect();
            drop(state);
            merges.into_iter().for_each(|number| merge::start(self, number));
            return Ok(());
        }
    }

    /// Notes a read of `offset..end` and, if it goes on where others ended, starts to fetch the next blocks.
    fn read_ahead(self: &Arc<Self>, state: &mut State, offset: u64, end: u64) {
        let ahead = &mut state.ahead;
        if offset.abs_diff(ahead.expected) > SEQUENTIAL_SLACK.min(self.block_size()) {
            *ahead = ReadAhead::default();
        } else {
            ahead.in_sequence = ahead.in_sequence.saturating_add(1);
        }
        ahead.expected = ahead.expected.max(end);
        if ahead.in_sequence < SEQUENTIAL_MIN {
            return;
        }
        let depth = (self.data.config.tuning.read_ahead_bytes / self.block_size()).max(1);
        let last = state.published_size.div_ceil(self.block_size());
        // With the rest of the block that is being read, which may have slices of its own.
        let first = (end / self.block_size()).max(u64::from(ahead.asked));
        // One more block for each block read, up to the depth.
        let until = (end.div_ceil(self.block_size()) + depth.min(u64::from(ahead.in_sequence)))
            .min(last)
            .min(u64::from(u32::MAX));
        for block in first..until {
            let Ok(permit) = self.data.read_aheads.clone().try_acquire_owned() else { return };
            let block = block as u32;
            state.ahead.asked = block + 1;
            let file = self.clone();
            self.data.runtime.spawn(async move {
                file.fetch_ahead(block, end).await;
                drop(permit);
            });
        }
    }

    /// Brings the slices of a block into the cache, as far as it lies behind `end`. What goes wrong shows when somebody
    /// reads it.
    async fn fetch_ahead(self: &Arc<Self>, block: u32, end: u64) {
        let (from, to) = (u64::from(block) * self.block_size(), (u64::from(block) + 1) * self.block_size());
        let from = from.max(end);
        let mut planned = self.state().parts(from, to, self.block_size());
        if planned.is_err() {
            if self.ask(block, ASK_BLOCKS).await.is_err() {
                return;
            }
            planned = self.state().parts(from, to, self.block_size());
        }
        let parts = planned.unwrap_or_default();
        self.prefetch_staged(&parts).await;
        let slices = parts.into_iter().filter_map(|part| match part.source {
            Source::Slice { placed, .. } => Some(Ok(placed)),
            _ => None,
        });
        let fetch = |placed| async move { self.data.load(self.ino, &placed).await.map(drop) };
        let _ = futures::stream::iter(slices).try_for_each_concurrent(FETCHES_MAX, fetch).await;
    }

    /// Staged slices that are not here come with few requests.
    async fn prefetch_staged(&self, parts: &[Part]) {
        let staged = parts.iter().filter_map(|part| match &part.source {
            Source::Slice { placed, .. } if matches!(placed.slice.place, Place::Staged(_)) => {
                Some(placed.clone())
            }
            _ => None,
        });
        let staged: Vec<PlacedSlice> = staged.collect();
        if staged.len() > 1 {
            self.data.prefetch_staged(self.ino, &staged).await;
        }
    }

    /// The next byte at or after `offset` that is data, or within a hole. ENXIO at or past the end of the file, and
    /// when no data follows.
    pub async fn seek(self: &Arc<Self>, offset: u64, what: Seek) -> Result<u64, Errno> {
        let mut at = offset;
        // How many blocks a search for data looks at next, once it has found a hole.
        let mut look = 0;
        loop {
            self.refresh_if_stale().await?;
            let planned = {
                let state = self.state();
                let size = state.size();
                if offset >= size {
                    return Err(Errno::ENXIO);
                }
                if at >= size {
                    return if what == Seek::Hole { Ok(size) } else { Err(Errno::ENXIO) };
                }
                let end = ((at / self.block_size() + 1) * self.block_size()).min(size);
                state.parts(at, end, self.block_size())
            };
            match planned {
                Err(Unknown { block }) if what == Seek::Data && look > 0 => {
                    at = self.skip_hole(at, block, &mut look).await?;
                }
                Err(Unknown { block }) => {
                    let count = if what == Seek::Data { ASK_BLOCKS } else { ASK_BLOCKS_SEEK };
                    self.ask(block, count).await?;
                }
                Ok(parts) => {
                    let wanted = |part: &&Part| matches!(part.source, Source::Zeros) == (what == Seek::Hole);
                    if let Some(part) = parts.iter().find(wanted) {
                        return Ok(part.offset);
                    }
                    at = parts.last().map_or(at + 1, Part::end);
                    if what == Seek::Data {
                        look = look.max(ASK_BLOCKS);
                        at = self.state().next_data(at, self.block_size()).ok_or(Errno::ENXIO)?;
                    }
                }
            }
        }
    }

    /// From where on, at or after `at`, there may be data: looks for slices in `look` blocks from the unknown `block` of
    /// `at` on. If it gives `at`, the block is known.
    async fn skip_hole(self: &Arc<Self>, at: u64, block: u32, look: &mut u32) -> Result<u64, Errno> {
        loop {
            let list = match self.data.meta.slices(self.ino, block, *look).await {
                // More than one reply carries.
                Err(Errno::EOVERFLOW) if *look > 1 => {
                    *look = (*look / LOOK_FARTHER).max(1);
                    continue;
                }
                other => other?,
            };
            let found = list.slices.iter().map(|placed| placed.key.block).min();
            let published = u64::from(found.unwrap_or(block.saturating_add(*look))) * self.block_size();
            let next = {
                let state = self.state();
                // Read before something that this mount knows of: ask again.
                if list.version < state.version {
                    continue;
                }
                state.next_unpublished(at).map_or(published, |at| at.min(published)).max(at)
            };
            if found.is_none() {
                *look = look.saturating_mul(LOOK_FARTHER);
            }
            if next == at {
                self.ask(block, ASK_BLOCKS).await?;
            }
            return Ok(next);
        }
    }
}

/// Where a read of `len` bytes from `offset` ends, or `None` past the end of the file.
fn read_end(state: &State, offset: u64, len: u32) -> Option<u64> {
    let end = offset.saturating_add(u64::from(len)).min(state.size());
    (offset < end).then_some(end)
}

/// `len` bytes of an opened slice after `skip`. A row that shows more than its slice has is damage.
fn shown(opened: &Bytes, skip: u32, len: u64) -> Result<Bytes, Errno> {
    let start = skip as usize;
    let end = start + len as usize;
    if end > opened.len() {
        tracing::error!(start, end, opened = opened.len(), "a row shows bytes that its slice does not have");
        return Err(Errno::EIO);
    }
    Ok(opened.slice(start..end))
}

/// The parts one after the other; a single one as it is.
fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.freeze()
}
