//! What each byte of a block shows: the newest slice that covers it, or a hole.

use chronofs_core::slice::{Place, PlacedSlice};
use std::collections::BTreeMap;

/// What a segment of a block shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shows {
    /// Zeros that are nowhere stored.
    Hole,
    /// Bytes of a slice.
    Slice {
        /// Its place in the list that was laid out.
        index: usize,
        /// Bytes of the opened slice before the first one shown.
        skip: u32,
    },
}

/// A run of bytes within a block that comes from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First byte within the block.
    pub offset: u32,
    /// Bytes; never 0.
    pub len: u32,
    /// Where they come from.
    pub shows: Shows,
}

impl Segment {
    /// The first byte after it.
    pub fn end(&self) -> u32 {
        self.offset + self.len
    }

    /// The part of it within `from..to` of the block, if any.
    pub fn clip(&self, from: u32, to: u32) -> Option<Segment> {
        let start = self.offset.max(from);
        let end = self.end().min(to);
        (start < end).then(|| Segment {
            offset: start,
            len: end - start,
            shows: match self.shows {
                Shows::Hole => Shows::Hole,
                Shows::Slice { index, skip } => Shows::Slice { index, skip: skip + (start - self.offset) },
            },
        })
    }
}

/// Lays `slices` of one block over each other, oldest first, and gives the segments that cover
/// `0..block_size` in order. Neighbours are never both holes.
pub fn layout(slices: &[PlacedSlice], block_size: u32) -> Vec<Segment> {
    // Start of a segment -> its end, the slice on top, and where in the block that slice begins.
    let mut top: BTreeMap<u32, (u32, usize, u32)> = BTreeMap::new();
    for (index, placed) in slices.iter().enumerate() {
        let start = placed.slice.offset;
        let end = start.saturating_add(placed.slice.len).min(block_size);
        if start < end {
            cover(&mut top, start, end);
            top.insert(start, (end, index, start));
        }
    }
    let mut segments: Vec<Segment> = Vec::with_capacity(top.len() * 2 + 1);
    let mut at = 0;
    for (start, (end, index, origin)) in top {
        push_hole(&mut segments, at, start);
        let slice = &slices[index].slice;
        match slice.place {
            Place::Hole => push_hole(&mut segments, start, end),
            _ => segments.push(Segment {
                offset: start,
                len: end - start,
                shows: Shows::Slice { index, skip: slice.skip.saturating_add(start - origin) },
            }),
        }
        at = end;
    }
    push_hole(&mut segments, at, block_size);
    segments
}

/// Takes `start..end` away from every segment of `top`.
fn cover(top: &mut BTreeMap<u32, (u32, usize, u32)>, start: u32, end: u32) {
    let touched: Vec<u32> = top
        .range(..end)
        .rev()
        .take_while(|(_, (covered_end, ..))| *covered_end > start)
        .map(|(offset, _)| *offset)
        .collect();
    for offset in touched {
        let Some((old_end, index, origin)) = top.remove(&offset) else { continue };
        if offset < start {
            top.insert(offset, (start, index, origin));
        }
        if old_end > end {
            top.insert(end, (old_end, index, origin));
        }
    }
}

fn push_hole(segments: &mut Vec<Segment>, start: u32, end: u32) {
    if start >= end {
        return;
    }
    match segments.last_mut() {
        Some(last) if last.shows == Shows::Hole => last.len = end - last.offset,
        _ => segments.push(Segment { offset: start, len: end - start, shows: Shows::Hole }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slice_id;
    use bytes::Bytes;
    use chronofs_core::Version;
    use chronofs_core::slice::{Codec, Seal, Slice, SliceKey};
    use proptest::prelude::*;

    const BLOCK_SIZE: u32 = 64;

    fn placed(n: usize, offset: u32, len: u32, skip: u32, hole: bool) -> PlacedSlice {
        let full_len = skip + len;
        let seal =
            Seal { id: slice_id(n as u64, 0), codec: Codec::Raw, stored_len: full_len, full_len, crc32c: 0 };
        let place = if hole { Place::Hole } else { Place::Inline(seal, Bytes::new()) };
        PlacedSlice {
            key: SliceKey { block: 0, version: Version(n as u64), n: 0 },
            slice: Slice { offset, len, skip, place },
            staged: None,
        }
    }

    /// A byte of a block: the slice and the byte within it.
    type Model = Vec<Option<(usize, u32)>>;

    fn model(slices: &[PlacedSlice]) -> Model {
        let mut bytes = vec![None; BLOCK_SIZE as usize];
        for (index, placed) in slices.iter().enumerate() {
            let slice = &placed.slice;
            for i in 0..slice.len.min(BLOCK_SIZE.saturating_sub(slice.offset)) {
                bytes[(slice.offset + i) as usize] =
                    (slice.place != Place::Hole).then_some((index, slice.skip + i));
            }
        }
        bytes
    }

    fn shown(segments: &[Segment]) -> Model {
        let byte = |segment: &Segment, i: u32| match segment.shows {
            Shows::Hole => None,
            Shows::Slice { index, skip } => Some((index, skip + i)),
        };
        segments.iter().flat_map(|s| (0..s.len).map(move |i| byte(s, i))).collect()
    }

    #[test]
    fn an_empty_block_is_one_hole() {
        assert_eq!(layout(&[], 64), [Segment { offset: 0, len: 64, shows: Shows::Hole }]);
    }

    #[test]
    fn a_newer_slice_splits_an_older_one() {
        let segments = layout(&[placed(0, 0, 64, 0, false), placed(1, 16, 8, 4, false)], 64);
        let expected = [(0, 16, 0, 0), (16, 8, 1, 4), (24, 40, 0, 24)]
            .map(|(offset, len, index, skip)| Segment { offset, len, shows: Shows::Slice { index, skip } });
        assert_eq!(segments, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(512)))]

        #[test]
        fn every_byte_shows_the_newest_slice_over_it(
            runs in prop::collection::vec((0u32..70, 1u32..70, 0u32..5, prop::bool::weighted(0.2)), 0..20),
            from in 0u32..64, len in 0u32..64,
        ) {
            let slices: Vec<_> = runs.iter().enumerate()
                .map(|(n, (offset, len, skip, hole))| placed(n, *offset, *len, *skip, *hole)).collect();
            let segments = layout(&slices, BLOCK_SIZE);
            prop_assert_eq!(shown(&segments), model(&slices));
            prop_assert!(segments.iter().all(|s| s.len > 0));
            prop_assert!(segments.windows(2).all(|w| w[0].end() == w[1].offset
                && !(w[0].shows == Shows::Hole && w[1].shows == Shows::Hole)));
            let to = (from + len).min(BLOCK_SIZE);
            let clipped: Vec<_> = segments.iter().filter_map(|s| s.clip(from, to)).collect();
            prop_assert_eq!(shown(&clipped), &model(&slices)[from as usize..to as usize]);
        }
    }
}
