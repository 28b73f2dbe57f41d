//! Names for things that are never used twice: inodes, sessions, objects and slices.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The place of a volume in its metadata store's keys. Given once at creation and never again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct VolumeIndex(pub u32);

/// A session of a client with a metadata store. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// An inode number: bit 63 marks a view of the past, then 15 bits of incarnation, then 48 bits of counter.
///
/// The mark is set only on what a mount of the past shows, so that `cp .at/T/f f` within one mount is not
/// "the same file"; no row and no request carries it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of every volume.
    pub const ROOT: Ino = Ino(1);
    const COUNTER_BITS: u32 = 48;
    /// Counters of inode numbers lie below this.
    pub const COUNTER_END: u64 = 1 << Self::COUNTER_BITS;
    const PAST: u64 = 1 << 63;

    /// The inode number of `counter` (below 2^48) in `incarnation` (below 2^15).
    pub fn new(incarnation: u16, counter: u64) -> Self {
        assert!(incarnation < 1 << 15 && counter < 1 << Self::COUNTER_BITS, "inode number out of range");
        Ino(u64::from(incarnation) << Self::COUNTER_BITS | counter)
    }

    /// Its counter.
    pub fn counter(self) -> u64 {
        self.0 & (Self::COUNTER_END - 1)
    }

    /// This inode as a view of the past shows it.
    pub fn in_past(self) -> Self {
        Ino(self.0 | Self::PAST)
    }

    /// This inode without the mark of the past.
    pub fn live(self) -> Self {
        Ino(self.0 & !Self::PAST)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ino {}", self.0)
    }
}

impl SessionId {
    /// The metadata server's own, of no client: objects that it packs are named after it.
    pub const SERVER: SessionId = SessionId(0);
}

/// An object of a volume: `n` is drawn from the grant of `session` under the volume's `incarnation`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// The volume's incarnation: new at every restore and clone.
    pub incarnation: u16,
    /// The session whose grant explains the object.
    pub session: SessionId,
    /// Counter within the grant.
    pub n: u64,
}

/// A slice: its birth address, the `index`-th slice of `object`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SliceId {
    /// The object the slice was born in (or would have been, while it is inline or staged).
    pub object: ObjectId,
    /// Its place in the object's index.
    pub index: u32,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{:x}/{:x}", self.incarnation, self.session.0, self.n)
    }
}

impl fmt::Display for SliceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.object, self.index)
    }
}
