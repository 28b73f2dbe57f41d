//! What the disk cache holds and what goes next: plain decisions, no I/O.
//!
//! S3-FIFO over segments. What is new goes to the *small* queue; what was asked for there, or is asked for again soon
//! after it went, is carried over to the *main* queue, and so a scan passes through the small queue only. Queues lose
//! whole segments, oldest first; what was used in the meantime is written anew, at most half a segment of it, so that
//! each segment that goes makes room.

use super::record::Row;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Uses of a slice beyond this many are not counted.
const HITS_MAX: u8 = 3;
/// The part of the quota that the small queue is cut back to.
const SMALL_PART: u64 = 10;
/// For this part of the slices that may be kept it is remembered that they went.
const GHOST_PART: usize = 2;

/// One of the two queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Queue {
    Small,
    Main,
}

/// A segment: its place in the order in which segments were begun, and its queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct SegmentId {
    pub(super) number: u32,
    pub(super) queue: Queue,
}

/// Where a slice lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) segment: SegmentId,
    pub(super) at: u32,
    pub(super) stored_len: u32,
}

/// A slice that outlives its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Survivor {
    pub(super) row: Row,
    /// Uses that still count for it.
    pub(super) hits: u8,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u32,
    at: u32,
    stored_len: u32,
    hits: u8,
}

#[derive(Debug)]
struct Segment {
    queue: Queue,
    /// Bytes that it takes of the quota.
    bytes: u64,
    hashes: Vec<u64>,
    /// It is being written to, and cannot go.
    open: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    entries: HashMap<u64, Entry>,
    segments: BTreeMap<u32, Segment>,
    ghost: Ghost,
    small_bytes_max: u64,
    entries_max: usize,
}

impl Index {
    pub(super) fn new(bytes_max: u64, entries_max: usize) -> Self {
        Index {
            entries: HashMap::new(),
            segments: BTreeMap::new(),
            ghost: Ghost { max: entries_max / GHOST_PART, ..Ghost::default() },
            small_bytes_max: bytes_max / SMALL_PART,
            entries_max,
        }
    }

    /// Takes in a segment that was found. A slice that is known already stays where it is.
    pub(super) fn found(&mut self, id: SegmentId, bytes: u64, rows: &[Row]) {
        self.begin(id, bytes);
        for row in rows {
            if !self.is_full() && !self.has(row.hash) {
                self.add(id, *row, 0);
            }
        }
        self.close(id, bytes);
    }

    /// Takes in a segment that is going to be written and may take up to `bytes`.
    pub(super) fn begin(&mut self, id: SegmentId, bytes: u64) {
        let segment = Segment { queue: id.queue, bytes, hashes: Vec::new(), open: true };
        self.segments.insert(id.number, segment);
    }

    /// A slice was written to an open segment.
    pub(super) fn add(&mut self, id: SegmentId, row: Row, hits: u8) {
        let Some(segment) = self.segments.get_mut(&id.number) else { return };
        segment.hashes.push(row.hash);
        let entry = Entry { number: id.number, at: row.at, stored_len: row.stored_len, hits };
        self.entries.insert(row.hash, entry);
    }

    /// Nothing is written to the segment any more; it takes `bytes`.
    pub(super) fn close(&mut self, id: SegmentId, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&id.number) {
            (segment.open, segment.bytes) = (false, bytes);
        }
    }

    /// Where the slice lies, for whoever is going to use it.
    pub(super) fn find(&mut self, hash: u64) -> Option<Place> {
        let entry = self.entries.get_mut(&hash)?;
        let queue = self.segments.get(&entry.number)?.queue;
        entry.hits = (entry.hits + 1).min(HITS_MAX);
        let segment = SegmentId { number: entry.number, queue };
        Some(Place { segment, at: entry.at, stored_len: entry.stored_len })
    }

    /// Where a slice that is new belongs.
    pub(super) fn queue_for(&mut self, hash: u64) -> Queue {
        if self.ghost.take(hash) { Queue::Main } else { Queue::Small }
    }

    /// What lies at `place` is not what it should be.
    pub(super) fn forget(&mut self, hash: u64, place: Place) {
        let is_there = |entry: &Entry| (entry.number, entry.at) == (place.segment.number, place.at);
        if self.entries.get(&hash).is_some_and(is_there) {
            self.entries.remove(&hash);
        }
    }

    /// The segment that is to go next: the oldest of the small queue while that has more than its part, else of the
    /// main one. Open ones and those in `kept` stay.
    pub(super) fn victim(&self, kept: &HashSet<SegmentId>) -> Option<SegmentId> {
        let oldest = |queue| {
            let ids = self.segments.iter().filter(|(_, segment)| !segment.open && segment.queue == queue);
            ids.map(|(number, _)| SegmentId { number: *number, queue }).find(|id| !kept.contains(id))
        };
        let small_bytes: u64 =
            self.segments.values().filter(|s| s.queue == Queue::Small).map(|s| s.bytes).sum();
        match small_bytes > self.small_bytes_max {
            true => oldest(Queue::Small).or_else(|| oldest(Queue::Main)),
            false => oldest(Queue::Main).or_else(|| oldest(Queue::Small)),
        }
    }

    /// Lets a segment go; what of it is to be written anew to the main queue, most used first, at most
    /// `survivors_bytes_max` of stored bytes. Also how many slices are gone.
    pub(super) fn evict(&mut self, id: SegmentId, survivors_bytes_max: u64) -> (Vec<Survivor>, usize) {
        let Some(segment) = self.segments.remove(&id.number) else { return (Vec::new(), 0) };
        let mut gone = Vec::new();
        for hash in segment.hashes {
            // It may be known elsewhere, or twice here.
            if let Some(entry) = self.entries.get(&hash).copied().filter(|entry| entry.number == id.number) {
                self.entries.remove(&hash);
                gone.push((hash, entry));
            }
        }
        // Of those that were used alike the older ones come first.
        gone.sort_by_key(|(_, entry)| (std::cmp::Reverse(entry.hits), entry.at));
        let (mut survivors, mut bytes, mut dropped) = (Vec::new(), 0, 0);
        for (hash, entry) in gone {
            bytes += u64::from(entry.stored_len);
            if entry.hits > 0 && bytes <= survivors_bytes_max {
                // In the main queue a slice stays for as many rounds as it was used; there it begins with none.
                let hits = if id.queue == Queue::Main { entry.hits - 1 } else { 0 };
                let row = Row { hash, at: entry.at, stored_len: entry.stored_len };
                survivors.push(Survivor { row, hits });
            } else {
                dropped += 1;
                if entry.hits > 0 || id.queue == Queue::Small {
                    self.ghost.add(hash);
                }
            }
        }
        (survivors, dropped)
    }

    pub(super) fn has(&self, hash: u64) -> bool {
        self.entries.contains_key(&hash)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no more slices may be kept, whatever room there is: their entries are in memory.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.entries_max
    }

    pub(super) fn knows(&self, id: SegmentId) -> bool {
        self.segments.get(&id.number).is_some_and(|segment| segment.queue == id.queue)
    }

    /// Every segment that is known.
    pub(super) fn segments(&self) -> Vec<SegmentId> {
        let id = |(number, segment): (&u32, &Segment)| SegmentId { number: *number, queue: segment.queue };
        self.segments.iter().map(id).collect()
    }
}

/// Hashes of slices that went lately, so many at most.
#[derive(Debug, Default)]
struct Ghost {
    order: VecDeque<u64>,
    known: HashSet<u64>,
    max: usize,
}

impl Ghost {
    fn add(&mut self, hash: u64) {
        if self.known.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn take(&mut self, hash: u64) -> bool {
        self.known.remove(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: u64 = 400;
    const ENTRIES_MAX: usize = 24;
    const SURVIVORS_MAX: u64 = 30;

    #[derive(Clone, Debug)]
    enum Step {
        Begin { main: bool, bytes: u64 },
        Add { hash: u64, len: u32 },
        Close { bytes: u64 },
        Find(u64),
        Forget { hash: u64, stale: bool },
        Evict,
    }

    fn step() -> impl Strategy<Value = Step> {
        let hash = 0u64..40;
        prop_oneof![
            1 => (any::<bool>(), 1u64..100).prop_map(|(main, bytes)| Step::Begin { main, bytes }),
            6 => (hash.clone(), 1u32..20).prop_map(|(hash, len)| Step::Add { hash, len }),
            1 => (1u64..100).prop_map(|bytes| Step::Close { bytes }),
            4 => hash.clone().prop_map(Step::Find),
            1 => (hash, any::<bool>()).prop_map(|(hash, stale)| Step::Forget { hash, stale }),
            1 => Just(Step::Evict),
        ]
    }

    /// The same without any cleverness: every slice with its segment, in the order of writing.
    #[derive(Default)]
    struct Model {
        slices: Vec<(SegmentId, Row, u8)>,
        segments: Vec<(SegmentId, u64, bool)>,
        ghost: Vec<u64>,
    }

    impl Model {
        fn victim(&self) -> Option<SegmentId> {
            let of = |queue| self.segments.iter().filter(move |(id, ..)| id.queue == queue);
            let over = of(Queue::Small).map(|(_, bytes, _)| bytes).sum::<u64>() > BYTES_MAX / 10;
            let order = if over { [Queue::Small, Queue::Main] } else { [Queue::Main, Queue::Small] };
            order.into_iter().find_map(|queue| of(queue).find(|(.., open)| !open)).map(|(id, ..)| *id)
        }

        fn evict(&mut self, id: SegmentId) -> Vec<(u64, u8)> {
            self.segments.retain(|(segment, ..)| *segment != id);
            let (mut gone, kept): (Vec<_>, _) =
                self.slices.drain(..).partition(|(segment, ..)| *segment == id);
            self.slices = kept;
            gone.sort_by_key(|(.., hits)| 10 - hits);
            let (mut survivors, mut bytes) = (Vec::new(), 0);
            for (_, row, hits) in gone {
                bytes += u64::from(row.stored_len);
                if hits > 0 && bytes <= SURVIVORS_MAX {
                    survivors.push((row.hash, if id.queue == Queue::Main { hits - 1 } else { 0 }));
                } else if hits > 0 || id.queue == Queue::Small {
                    self.ghost.push(row.hash);
                }
            }
            survivors
        }

        fn find(&mut self, hash: u64) -> Option<&mut (SegmentId, Row, u8)> {
            self.slices.iter_mut().find(|(_, row, _)| row.hash == hash)
        }
    }

    fn check(index: &mut Index, model: &mut Model, step: Step, open: &mut Option<SegmentId>, at: u32) {
        match step {
            Step::Begin { main, bytes } => {
                let queue = if main { Queue::Main } else { Queue::Small };
                let id = SegmentId { number: at, queue };
                if let Some(old) = open.replace(id) {
                    index.close(old, 1);
                    model.segments.iter_mut().filter(|s| s.0 == old).for_each(|s| (s.1, s.2) = (1, false));
                }
                index.begin(id, bytes);
                model.segments.push((id, bytes, true));
            }
            Step::Add { hash, len } => {
                let Some(id) = *open else { return };
                if index.has(hash) || index.is_full() {
                    return;
                }
                let row = Row { hash, at, stored_len: len };
                index.add(id, row, 0);
                model.slices.push((id, row, 0));
            }
            Step::Close { bytes } => {
                let Some(id) = open.take() else { return };
                index.close(id, bytes);
                model.segments.iter_mut().filter(|s| s.0 == id).for_each(|s| (s.1, s.2) = (bytes, false));
            }
            Step::Find(hash) => {
                let found = index.find(hash);
                let expected = model.find(hash).map(|(id, row, hits)| {
                    *hits = (*hits + 1).min(3);
                    Place { segment: *id, at: row.at, stored_len: row.stored_len }
                });
                assert_eq!(found, expected);
            }
            Step::Forget { hash, stale } => {
                let Some((id, row, _)) = model.find(hash).copied() else { return };
                let at = if stale { row.at + 1 } else { row.at };
                index.forget(hash, Place { segment: id, at, stored_len: row.stored_len });
                if !stale {
                    model.slices.retain(|(_, row, _)| row.hash != hash);
                }
            }
            Step::Evict => {
                let victim = index.victim(&HashSet::new());
                assert_eq!(victim, model.victim());
                let Some(id) = victim else { return };
                let (survivors, _) = index.evict(id, SURVIVORS_MAX);
                let got: Vec<_> = survivors.iter().map(|s| (s.row.hash, s.hits)).collect();
                assert_eq!(got, model.evict(id));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(512)))]

        #[test]
        fn the_index_equals_a_plain_list_after_any_steps(steps in prop::collection::vec(step(), 1..120)) {
            let mut index = Index::new(BYTES_MAX, ENTRIES_MAX);
            let (mut model, mut open) = (Model::default(), None);
            for (step, at) in steps.into_iter().zip(1..) {
                check(&mut index, &mut model, step, &mut open, at * 10);
                prop_assert_eq!(index.len(), model.slices.len());
                prop_assert!(index.len() <= ENTRIES_MAX);
                prop_assert!(index.ghost.order.len() <= ENTRIES_MAX / 2);
                prop_assert!(model.slices.iter().all(|(_, row, _)| index.has(row.hash)));
            }
            // The last few that went are remembered, and what never was there is not.
            let last: Vec<u64> = model.ghost.iter().rev().take(1).copied().collect();
            for hash in last {
                prop_assert_eq!(index.queue_for(hash), Queue::Main);
                prop_assert_eq!(index.queue_for(hash), Queue::Small, "once");
            }
            prop_assert_eq!(index.queue_for(1000), Queue::Small);
        }
    }

    #[test]
    fn a_segment_that_was_found_does_not_take_over_what_is_known() {
        let mut index = Index::new(BYTES_MAX, 3);
        let [first, second] =
            [(1, Queue::Main), (2, Queue::Small)].map(|(number, queue)| SegmentId { number, queue });
        let row = |hash, at| Row { hash, at, stored_len: 5 };
        index.found(first, 50, &[row(1, 0), row(2, 69)]);
        index.found(second, 50, &[row(2, 0), row(3, 69), row(4, 138)]);
        assert_eq!(index.find(2).unwrap().segment, first);
        assert_eq!(index.find(3).unwrap().segment, second);
        assert!(!index.has(4) && index.is_full(), "no more than may be known");
        assert!(index.knows(first) && !index.knows(SegmentId { queue: Queue::Small, ..first }));
        assert_eq!(index.evict(second, 100).0.len(), 1);
        assert_eq!(index.find(2).unwrap().segment, first);
    }
}
