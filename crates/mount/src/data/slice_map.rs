//! What is known of a file's published slices, block by block.

use chronofs_blocks::layout::{Segment, layout};
use chronofs_core::slice::PlacedSlice;
use std::collections::HashMap;
use std::sync::Arc;

/// The most blocks that a file remembers; beyond, it asks again.
const BLOCKS_MAX: usize = 4096;

/// The slices of one block, oldest first, and what they show.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) slices: Vec<PlacedSlice>,
    pub(super) segments: Vec<Segment>,
}

impl Block {
    pub(super) fn new(mut slices: Vec<PlacedSlice>, block_size: u32) -> Block {
        slices.sort_by_key(|placed| placed.key);
        Block { segments: layout(&slices, block_size), slices }
    }
}

/// Blocks by number. What it does not hold is not known, unless it is complete: then it is empty.
#[derive(Debug)]
pub(super) struct SliceMap {
    block_size: u32,
    blocks: HashMap<u32, Arc<Block>>,
    complete: bool,
}

impl SliceMap {
    pub(super) fn new(block_size: u32) -> Self {
        SliceMap { block_size, blocks: HashMap::new(), complete: false }
    }

    /// The block, if it is known.
    pub(super) fn get(&self, block: u32) -> Option<Arc<Block>> {
        match self.blocks.get(&block) {
            Some(known) => Some(known.clone()),
            None if self.complete => Some(Arc::new(Block::new(Vec::new(), self.block_size))),
            None => None,
        }
    }

    /// The first block from `block` on that may show anything.
    pub(super) fn next(&self, block: u32) -> Option<u32> {
        if !self.complete {
            return Some(block);
        }
        let known =
            self.blocks.iter().filter(|(number, known)| **number >= block && !known.slices.is_empty());
        known.map(|(number, _)| *number).min()
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.complete = false;
    }

    /// All slices of the file.
    pub(super) fn set_all(&mut self, slices: Vec<PlacedSlice>) {
        self.clear();
        for (block, slices) in by_block(slices) {
            self.set(block, slices);
        }
        self.complete = self.blocks.len() < BLOCKS_MAX;
    }

    /// The slices of blocks `first..first + count`.
    pub(super) fn set_range(&mut self, first: u32, count: u32, slices: Vec<PlacedSlice>) {
        let mut found = by_block(slices);
        for block in first..first.saturating_add(count) {
            self.set(block, found.remove(&block).unwrap_or_default());
        }
    }

    pub(super) fn set(&mut self, block: u32, slices: Vec<PlacedSlice>) {
        if self.blocks.len() >= BLOCKS_MAX {
            self.clear();
        }
        self.blocks.insert(block, Arc::new(Block::new(slices, self.block_size)));
    }

    /// Adds newer slices to a block, if it is known; gives how many it has then.
    pub(super) fn add(&mut self, block: u32, newer: Vec<PlacedSlice>) -> usize {
        let Some(known) = self.get(block) else { return 0 };
        let mut slices = known.slices.clone();
        slices.extend(newer);
        let count = slices.len();
        self.set(block, slices);
        count
    }

    /// Forgets a block.
    pub(super) fn forget(&mut self, block: u32) {
        self.blocks.remove(&block);
        self.complete = false;
    }

    /// Forgets every block from `first` on.
    pub(super) fn forget_from(&mut self, first: u32) {
        self.blocks.retain(|block, _| *block < first);
        self.complete = false;
    }
}

/// Sorts slices by their block.
pub(super) fn by_block(slices: Vec<PlacedSlice>) -> HashMap<u32, Vec<PlacedSlice>> {
    let mut blocks: HashMap<u32, Vec<PlacedSlice>> = HashMap::new();
    for placed in slices {
        blocks.entry(placed.key.block).or_default().push(placed);
    }
    blocks
}
