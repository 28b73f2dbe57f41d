//! Bytes written to one file and not yet on their way: pure bookkeeping, no I/O.
//!
//! Runs never cross the border of a block, so that a block written from start to end is one buffer that goes on
//! without being copied again.

use bytes::{Bytes, BytesMut};
use chronofs_blocks::plan::{Content, Piece};
use std::collections::{BTreeMap, HashMap};

/// The written runs of a file by their first byte. They do not overlap.
#[derive(Debug)]
pub(super) struct Dirty {
    block_size: u64,
    runs: BTreeMap<u64, BytesMut>,
    /// Written bytes of each block.
    blocks: HashMap<u64, u64>,
    bytes: u64,
}

impl Dirty {
    pub(super) fn new(block_size: u32) -> Self {
        Dirty { block_size: u64::from(block_size), runs: BTreeMap::new(), blocks: HashMap::new(), bytes: 0 }
    }

    /// Written bytes, each counted once.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The first byte after all written ones, or 0.
    pub(super) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(start, run)| start + run.len() as u64)
    }

    /// The first written byte at or after `from`.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let within =
            self.runs.range(..=from).next_back().filter(|(start, run)| *start + run.len() as u64 > from);
        within.map(|_| from).or_else(|| self.runs.range(from..).next().map(|(start, _)| *start))
    }

    /// Takes over `data`, which lies over what was written before.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.block_size - at % self.block_size;
            let (part, more) = rest.split_at(rest.len().min(room as usize));
            self.write_within_block(at, part);
            at += part.len() as u64;
            rest = more;
        }
    }

    fn write_within_block(&mut self, start: u64, data: &[u8]) {
        let end = start + data.len() as u64;
        let block = start / self.block_size;
        let before = self.runs.range(..=start).next_back().map(|(s, run)| (*s, s + run.len() as u64));
        match before.filter(|(s, e)| *e >= start && s / self.block_size == block) {
            Some((run_start, run_end)) => {
                // Within or at the end of a run: what fits goes over it, the rest behind it.
                self.clear(run_end.max(start), end.max(run_end));
                let over = (run_end.min(end) - start) as usize;
                if let Some(run) = self.runs.get_mut(&run_start) {
                    let from = (start - run_start) as usize;
                    run[from..from + over].copy_from_slice(&data[..over]);
                    run.extend_from_slice(&data[over..]);
                }
                self.count(block, (data.len() - over) as u64);
            }
            None => {
                self.clear(start, end);
                let mut run = BytesMut::with_capacity(self.capacity_for(start, data.len()));
                run.extend_from_slice(data);
                self.runs.insert(start, run);
                self.count(block, data.len() as u64);
            }
        }
    }

    /// Someone who begins a block with a large write is likely to write all of it.
    fn capacity_for(&self, start: u64, len: usize) -> usize {
        let streaming = start.is_multiple_of(self.block_size) && len >= 64 << 10;
        if streaming { (self.block_size as usize).max(len) } else { len }
    }

    fn count(&mut self, block: u64, bytes: u64) {
        *self.blocks.entry(block).or_default() += bytes;
        self.bytes += bytes;
    }

    fn uncount(&mut self, start: u64, bytes: u64) {
        let block = start / self.block_size;
        self.bytes -= bytes;
        if let Some(count) = self.blocks.get_mut(&block) {
            *count -= bytes;
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Forgets what was written to `from..to`.
    pub(super) fn clear(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let touched: Vec<u64> = self
            .runs
            .range(..to)
            .rev()
            .take_while(|(start, run)| **start + run.len() as u64 > from)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let Some(mut run) = self.runs.remove(&start) else { continue };
            let end = start + run.len() as u64;
            if end > to {
                let tail = run.split_off((to - start) as usize);
                self.runs.insert(to, tail);
            }
            if start < from {
                run.truncate((from - start) as usize);
                self.runs.insert(start, run);
            }
            self.uncount(start, end.min(to) - start.max(from));
        }
    }

    /// Whether every byte of `block` is written.
    pub(super) fn is_full(&self, block: u64) -> bool {
        self.blocks.get(&block) == Some(&self.block_size)
    }

    /// The written parts of `from..to`, copied, in order.
    pub(super) fn read(&self, from: u64, to: u64) -> Vec<(u64, Bytes)> {
        let first = self.runs.range(..=from).next_back().map_or(from, |(start, _)| *start);
        let overlap = |(start, run): (&u64, &BytesMut)| {
            let (s, e) = ((*start).max(from), (start + run.len() as u64).min(to));
            (s < e).then(|| (s, Bytes::copy_from_slice(&run[(s - start) as usize..(e - start) as usize])))
        };
        self.runs.range(first..to).filter_map(overlap).collect()
    }

    /// Takes out what was written to `block`.
    pub(super) fn take_block(&mut self, block: u64) -> Vec<Piece> {
        let (from, to) = (block * self.block_size, (block + 1) * self.block_size);
        let starts: Vec<u64> = self.runs.range(from..to).map(|(start, _)| *start).collect();
        let runs: Vec<_> =
            starts.into_iter().filter_map(|start| Some((start, self.runs.remove(&start)?))).collect();
        let taken = self.blocks.remove(&block).unwrap_or(0);
        self.bytes -= taken;
        self.joined(runs)
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<Piece> {
        self.blocks.clear();
        self.bytes = 0;
        let runs = std::mem::take(&mut self.runs);
        self.joined(runs)
    }

    /// Runs as pieces; neighbours within a block become one, so that they are one slice.
    fn joined(&self, runs: impl IntoIterator<Item = (u64, BytesMut)>) -> Vec<Piece> {
        let mut joined: Vec<(u64, BytesMut)> = Vec::new();
        for (start, run) in runs {
            match joined.last_mut() {
                Some((s, last))
                    if *s + last.len() as u64 == start && *s / self.block_size == start / self.block_size =>
                {
                    last.extend_from_slice(&run);
                }
                _ => joined.push((start, run)),
            }
        }
        let piece = |(offset, run): (u64, BytesMut)| Piece { offset, content: Content::Bytes(run.freeze()) };
        joined.into_iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::cases;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Clear(u64, u64),
        TakeBlock(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..100, prop::collection::vec(1u8.., 1..50)).prop_map(|(at, data)| Op::Write(at, data)),
            1 => (0u64..120, 0u64..120).prop_map(|(from, to)| Op::Clear(from, to)),
            1 => (0u64..8).prop_map(Op::TakeBlock),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases(256)))]

        #[test]
        fn written_bytes_are_as_in_a_plain_array(ops in prop::collection::vec(op(), 1..40)) {
            let mut dirty = Dirty::new(16);
            let mut model = [0u8; 160];
            for op in ops {
                match op {
                    Op::Write(at, data) => {
                        dirty.write(at, &data);
                        model[at as usize..at as usize + data.len()].copy_from_slice(&data);
                    }
                    Op::Clear(from, to) => {
                        dirty.clear(from, to);
                        (from..to).for_each(|i| model[i as usize] = 0);
                    }
                    Op::TakeBlock(block) => {
                        let range = block as usize * 16..block as usize * 16 + 16;
                        let full = model[range.clone()].iter().all(|b| *b != 0);
                        prop_assert_eq!(dirty.is_full(block), full);
                        let mut taken = [0u8; 16];
                        for piece in dirty.take_block(block) {
                            let Content::Bytes(bytes) = piece.content else { panic!("only bytes are dirty") };
                            taken[piece.offset as usize % 16..][..bytes.len()].copy_from_slice(&bytes);
                        }
                        prop_assert_eq!(&taken[..], &model[range.clone()]);
                        model[range].fill(0);
                    }
                }
                let mut shown = [0u8; 160];
                for (at, bytes) in dirty.read(0, 160) {
                    shown[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                }
                prop_assert_eq!(shown, model);
                prop_assert_eq!(dirty.bytes(), model.iter().filter(|b| **b != 0).count() as u64);
                prop_assert_eq!(dirty.end(), model.iter().rposition(|b| *b != 0).map_or(0, |i| i as u64 + 1));
                prop_assert_eq!(dirty.is_empty(), dirty.bytes() == 0);
                for from in [0, 15, 16, 50, 159] {
                    let next = model[from..].iter().position(|b| *b != 0).map(|i| (from + i) as u64);
                    prop_assert_eq!(dirty.next(from as u64), next);
                }
            }
        }
    }
}
