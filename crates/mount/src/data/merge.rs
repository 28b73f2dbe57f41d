//! Blocks that consist of too many slices are written anew as few: new data, published on the condition that no
//! newer slice has come.

use super::file::FileData;
use super::meta::{Meta, Publish, PublishError};
use super::read::{Part, Source};
use super::slice_map::Block;
use super::write_back::Batch;
use chronofs_blocks::layout::{Segment, Shows};
use chronofs_blocks::plan::{Content, Piece};
use chronofs_core::Errno;
use chronofs_core::ops::{Merge, SLICES_PER_PUBLISH_MAX};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

/// With more runs than this, the holes between them are filled with zeros: else little would be merged.
const RUNS_MAX: usize = 16;

/// What becomes of the holes between more than [`RUNS_MAX`] runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holes {
    Fill,
    Keep,
}

/// After a merge that came to nothing, because somebody else writes the file, so long nothing is merged in the background: what was
/// stored for it is of no use to anybody.
const OVERTAKEN_PAUSE: Duration = Duration::from_secs(60);

/// A merge in the background that is not stored by then is given up: what is written meanwhile waits for it, and needs no store.
const WITHIN: Duration = Duration::from_secs(2);

/// Starts to merge `block` in the background, unless this file is being merged already. Nothing of it is published by this mount
/// meanwhile: else each slice that comes would overtake the merge, and have it made again.
pub(super) fn start<M: Meta>(file: &Arc<FileData<M>>, block: u32) {
    if file.data.config.read_only {
        return;
    }
    let file = file.clone();
    file.data.runtime.clone().spawn(async move {
        let Ok(mut merging) = file.merging.try_lock() else { return };
        if merging.is_some_and(|again| Instant::now() < again) {
            return;
        }
        let order = file.order.lock().await;
        match merge(&file, block, &order, WITHIN).await {
            Ok(()) => {}
            Err(Errno::EAGAIN) => *merging = Some(Instant::now() + OVERTAKEN_PAUSE),
            Err(errno) => {
                tracing::warn!(ino = %file.ino, block, %errno, "the slices of a block were not merged")
            }
        }
    });
}

/// Merges `block` for whoever publishes: the server takes no more slices of it. Errors: EDQUOT when there is no room
/// for the zeros that it takes to make fewer of them.
pub(super) async fn now<M: Meta>(
    file: &Arc<FileData<M>>,
    block: u32,
    order: &MutexGuard<'_, ()>,
) -> Result<(), Errno> {
    merge(file, block, order, Duration::MAX).await
}

async fn merge<M: Meta>(
    file: &Arc<FileData<M>>,
    number: u32,
    order: &MutexGuard<'_, ()>,
    within: Duration,
) -> Result<(), Errno> {
    match attempt(file, number, order, within, Holes::Fill).await {
        // Zeros are content, and count.
        Err(Errno::EDQUOT) => attempt(file, number, order, within, Holes::Keep).await,
        result => result,
    }
}

async fn attempt<M: Meta>(
    file: &Arc<FileData<M>>,
    number: u32,
    order: &MutexGuard<'_, ()>,
    within: Duration,
    holes: Holes,
) -> Result<(), Errno> {
    match tokio::time::timeout(within, Merged::of(file, number, holes)).await {
        Ok(merged) => match merged? {
            Some(merged) => merged.publish(file, order).await,
            None => Ok(()),
        },
        Err(_) => Err(Errno::EAGAIN),
    }
}

/// A block written anew, and when it was read.
struct Merged {
    publish: Publish,
    /// It holds the ids of what is published.
    batch: Batch,
    truncations: u64,
}

impl Merged {
    /// `None` when the block does not consist of that many slices. Errors: EDQUOT when it has as many runs, or
    /// more than a publish takes.
    async fn of<M: Meta>(
        file: &Arc<FileData<M>>,
        number: u32,
        holes: Holes,
    ) -> Result<Option<Merged>, Errno> {
        let data = &file.data;
        let truncations = file.state().truncations;
        let mut list = data.meta.slices(file.ino, number, 1).await?;
        data.keep_staged(&mut list.slices);
        let block = Block::new(list.slices, data.config.block_size);
        let Some(newest) = block.slices.last().map(|placed| placed.key) else { return Ok(None) };
        if block.slices.len() <= data.config.tuning.slices_per_block_max / 2 {
            return Ok(None);
        }
        let runs = runs(&block.segments, holes);
        if runs.len() >= block.slices.len() || runs.len() > SLICES_PER_PUBLISH_MAX {
            return Err(Errno::EDQUOT);
        }
        let start = u64::from(number) * u64::from(data.config.block_size);
        let mut pieces = Vec::new();
        for run in runs {
            let part = |segment: &Segment| Part {
                offset: u64::from(segment.offset),
                len: u64::from(segment.len),
                source: match segment.shows {
                    Shows::Hole => Source::Zeros,
                    Shows::Slice { index, skip } => {
                        Source::Slice { placed: block.slices[index].clone(), skip }
                    }
                },
            };
            let offset = start + u64::from(run[0].offset);
            let bytes = file.assemble(run.iter().map(part).collect()).await?;
            pieces.push(Piece { offset, content: Content::Bytes(bytes) });
        }
        let bytes = pieces.iter().map(|piece| piece.content.len()).sum();
        let batch = Batch::new(0, pieces, bytes);
        let sealed = batch.prepare(file).await.map_err(|_| Errno::EIO)?;
        let publish = Publish {
            ino: file.ino,
            slices: sealed.slices.clone(),
            size_min: None,
            mtime_ns: None,
            kill_priv: false,
            merge: Some(Merge { block: number, newest }),
        };
        Ok(Some(Merged { publish, batch, truncations }))
    }

    /// EAGAIN when a newer slice came.
    async fn publish<M: Meta>(self, file: &FileData<M>, _order: &MutexGuard<'_, ()>) -> Result<(), Errno> {
        // What was read is not what the file holds any more: a cut block must not get its tail back.
        if file.state().truncations != self.truncations {
            return Err(Errno::EAGAIN);
        }
        let block = self.publish.merge.as_ref().map(|merge| merge.block);
        file.data.meta.publish(self.publish).await.map_err(|error| match error {
            PublishError::Answered(errno) | PublishError::NoAnswer(errno) => errno,
            PublishError::SessionOver => Errno::EAGAIN,
        })?;
        drop(self.batch);
        block.into_iter().for_each(|block| file.state().map.forget(block));
        Ok(())
    }
}

/// Segments that are to become one slice each: what is between two holes, or, when those are many and to be filled,
/// everything from the first byte of data to the last.
fn runs(segments: &[Segment], holes: Holes) -> Vec<&[Segment]> {
    let runs: Vec<&[Segment]> =
        segments.split(|segment| segment.shows == Shows::Hole).filter(|run| !run.is_empty()).collect();
    if runs.len() <= RUNS_MAX || holes == Holes::Keep {
        return runs;
    }
    let is_data = |segment: &Segment| segment.shows != Shows::Hole;
    let first = segments.iter().position(is_data).unwrap_or(0);
    let last = segments.iter().rposition(is_data).unwrap_or(0);
    vec![&segments[first..=last]]
}
