//! Rows of what is counted, kept, and on its way out.

use super::Format;
use chronofs_core::{ObjectId, Version};
use serde::{Deserialize, Serialize};

/// How often an object or a small slice is named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refs {
    /// None known.
    pub flags: u16,
    /// Rows, live and past, that name it; of an object that the server packed: slices that were moved there.
    pub rows: u32,
    /// Stored bytes, as far as rows ever told; of a slice that was moved none, since they are the object's.
    pub bytes: u64,
    /// The commit since which no row names it.
    pub retired: Option<Version>,
    /// The commit since which none can any more. The row of a deleted object stays while its session could name it.
    pub condemned: Option<Version>,
    /// Of an object: stored bytes of the slices that rows name; of a slice that several name as often.
    pub named: u64,
    /// The last commit that changed this row.
    pub changed: Version,
}

impl Refs {
    /// Of what no row names yet.
    pub(crate) fn new(changed: Version) -> Refs {
        Refs { flags: 0, rows: 0, bytes: 0, retired: None, condemned: None, named: 0, changed }
    }
}

/// What no row names any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retired {
    /// None known.
    pub flags: u16,
    /// Stored bytes.
    pub bytes: u64,
}

/// An object that is to be deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Condemned {
    /// None known.
    pub flags: u16,
    /// The commit that condemned it.
    pub since: Version,
    /// Stored bytes; 0 where no row ever named it.
    pub bytes: u64,
}

/// Where the bytes of a slice lie that was staged, or that was in another object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// None known.
    pub flags: u16,
    /// The object.
    pub object: ObjectId,
    /// Where in it the stored bytes begin.
    pub at: u64,
    /// Stored bytes.
    pub len: u32,
}

/// Names of objects that the server has granted itself.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Packs {
    /// None known.
    pub flags: u16,
    /// Counters below this are taken.
    pub granted: u64,
    /// The one that slices may still be said to lie in.
    pub open: Option<u64>,
    /// Counters below this are another's.
    pub first: u64,
}

/// A number of objects and small slices, and their stored bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sum {
    /// How many.
    pub count: u64,
    /// Stored bytes.
    pub bytes: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(crate) fn take(&mut self, bytes: u64) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What objects and small slices there are in a volume. A slice that was moved into an object is counted with no bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// [`Tally::REPACKED`] and [`Tally::BRAKED`].
    pub flags: u16,
    /// Named by rows, live or past.
    pub held: Sum,
    /// Named by none, and not condemned yet.
    pub retired: Sum,
    /// Condemned, and not known to be deleted.
    pub condemned: Sum,
    /// What was retired up to here goes, however much it is.
    pub released: Version,
    /// Of what is held: slices whose bytes are still in the metadata.
    pub staged: Sum,
}

impl Tally {
    /// Slices that were born in objects may lie elsewhere.
    pub const REPACKED: u16 = 1;
    /// So much was retired at once that only what was released goes.
    pub const BRAKED: u16 = 2;
}

/// Instants that are kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// [`Kept::WHOLE`] and [`Kept::UNSURE`].
    pub flags: u16,
    /// The first instant.
    pub at: Version,
    /// The last one; the same if it is just one.
    pub to: Version,
    /// The commit that made it.
    pub made: Version,
    /// When a hold ends by itself; a pin does not.
    pub ends: Option<Version>,
    /// What for, in words.
    pub note: String,
}

impl Kept {
    /// It has been kept without a break since all of its instants were in the window: they can be mounted wherever the
    /// horizon is. Without this it was found in the block store when some of them had left the window, or a build made it that did
    /// not tell the two apart: it protects what is there, but rows of them may be forgotten already.
    pub const WHOLE: u16 = 2;
    /// What a build wrote of one that was found so late, before there was [`Kept::WHOLE`]. It says no more than the lack of that.
    pub const UNSURE: u16 = 1;
}

/// The metadata of a volume may be an old copy: its pins in the block store were not read since it was started on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unproven {
    /// None known.
    pub flags: u16,
    /// The last commit that the first such start had found, or the one that made the volume.
    pub survived: Version,
}

row_format!(Refs, 0);
row_format!(Retired, 0);
row_format!(Condemned, 0);
row_format!(Moved, 0);
row_format!(Packs, 0);
row_format!(Tally, Tally::REPACKED | Tally::BRAKED);
row_format!(Kept, Kept::WHOLE | Kept::UNSURE);
row_format!(Unproven, 0);
