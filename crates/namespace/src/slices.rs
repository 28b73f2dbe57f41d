//! The slices of a block: which bytes of which slice show, and how many are no holes.

use crate::rows::{Format, SLICE, SliceRow, block_key, parse_slice_key, slice_key};
use chronofs_core::Ino;
use chronofs_core::slice::{Place, Slice, SliceKey};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::Snapshot;

const PAGE: usize = 128;

/// Ranges that are covered: sorted, disjoint, not touching.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Coverage(Vec<(u32, u32)>);

impl Coverage {
    /// Covers `from..to` and says how many bytes of it were not covered before.
    pub(crate) fn add(&mut self, mut from: u32, mut to: u32) -> u64 {
        let first = self.0.partition_point(|range| range.1 < from);
        let last = self.0.partition_point(|range| range.0 <= to);
        let before: u64 = self.0[first..last].iter().map(|range| u64::from(range.1 - range.0)).sum();
        if let (Some(low), Some(high)) = (self.0.get(first), self.0[..last].last())
            && first < last
        {
            (from, to) = (from.min(low.0), to.max(high.1));
        }
        self.0.splice(first..last, [(from, to)]);
        u64::from(to - from) - before
    }
}

/// What shows of the slices of one block, given oldest first: for each the bytes that no newer one covers, and
/// the bytes in all that are no hole.
pub(crate) fn visible<'s>(slices: impl DoubleEndedIterator<Item = &'s Slice>) -> (Vec<u64>, u64) {
    let mut coverage = Coverage::default();
    let mut allocated = 0;
    let mut shown: Vec<u64> = slices
        .rev()
        .map(|slice| {
            let bytes = coverage.add(slice.offset, slice.offset + slice.len);
            allocated += if slice.place == Place::Hole { 0 } else { bytes };
            bytes
        })
        .collect();
    shown.reverse();
    (shown, allocated)
}

/// Up to `limit` slices of a file from `start` (a key or the start of one, behind the inode) on.
pub(crate) fn page<R: Reads>(
    tables: &Snapshot<R>,
    ino: Ino,
    start: &[u8],
    limit: usize,
) -> Result<Vec<(SliceKey, Slice)>, ReadStop> {
    let rows = tables.scan(SLICE, &ino.0.to_be_bytes(), start, limit)?;
    rows.into_iter()
        .map(|(key, row)| Ok((parse_slice_key(&key).1, SliceRow::decode(SLICE, &key, &row.value)?.slice)))
        .collect()
}

/// Where the page after `key` starts.
pub(crate) fn after(ino: Ino, key: SliceKey) -> Vec<u8> {
    [&slice_key(ino, key)[8..], &[0]].concat()
}

/// The slices of a block, oldest first.
pub(crate) fn of_block<R: Reads>(
    tables: &Snapshot<R>,
    ino: Ino,
    block: u32,
) -> Result<Vec<(SliceKey, Slice)>, ReadStop> {
    let prefix = block_key(ino, block);
    let mut found = Vec::new();
    let mut start = Vec::new();
    loop {
        let rows = tables.scan(SLICE, &prefix, &start, PAGE)?;
        let last_page = rows.len() < PAGE;
        if let Some((key, _)) = rows.last() {
            start = [&key[prefix.len()..], &[0]].concat();
        }
        for (key, row) in rows {
            found.push((parse_slice_key(&key).1, SliceRow::decode(SLICE, &key, &row.value)?.slice));
        }
        if last_page {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_counts_each_byte_once() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.add(10, 20), 10);
        assert_eq!(coverage.add(30, 40), 10);
        assert_eq!(coverage.add(15, 35), 10);
        assert_eq!(coverage, Coverage(vec![(10, 40)]));
        assert_eq!(coverage.add(12, 18), 0);
        assert_eq!(coverage.add(40, 41), 1);
        assert_eq!(coverage.add(0, 5), 5);
        assert_eq!(coverage, Coverage(vec![(0, 5), (10, 41)]));
        assert_eq!(coverage.add(0, 100), 64);
    }

    #[test]
    fn coverage_equals_a_bitmap() {
        let mut state = 1u64;
        let mut random = |below: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) % u64::from(below)) as u32
        };
        for _ in 0..200 {
            let (mut coverage, mut bitmap) = (Coverage::default(), [false; 64]);
            for _ in 0..12 {
                let from = random(63);
                let to = from + 1 + random(64 - from - 1 + 1).min(63 - from);
                let fresh = bitmap[from as usize..to as usize].iter().filter(|set| !**set).count() as u64;
                bitmap[from as usize..to as usize].fill(true);
                assert_eq!(coverage.add(from, to), fresh);
            }
        }
    }
}
