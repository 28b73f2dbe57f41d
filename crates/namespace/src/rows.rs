//! Tables, keys and rows of a volume: what lies on disk. Formats are described in docs/arch/namespace.md and each
//! is held by a golden test below.
//!
//! A row is its fields in order, as `postcard` writes them (varints, little overhead), behind the row format byte
//! and the version that `chronofs-history` puts in front. Every row has flags, whose unknown bits say that a newer
//! program wrote the row: it is then refused, not misread.

use bytes::Bytes;
use chronofs_core::name::Position;
use chronofs_core::ops::{Missed, Scope};
use chronofs_core::slice::{Codec, Seal, Slice, SliceKey};
use chronofs_core::volume::VolumeSpec;
use chronofs_core::{Attr, Errno, FileKind, Ino, ObjectId, SessionId, SliceId, Version, VolumeIndex};
use chronofs_engine::{EngineError, ReadStop};
use chronofs_history::Table;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Inodes. Versioned. Key: ino u64.
pub const INODE: Table = Table { number: 1, key_len: 8, name: "inode" };
/// What changes of a directory when its entries change. Versioned. Key: ino u64.
pub const DIR: Table = Table { number: 2, key_len: 8, name: "dir" };
/// Directory entries. Versioned. Key: dir u64, position u64.
pub const ENTRY: Table = Table { number: 3, key_len: 16, name: "entry" };
/// Links of a file beyond the one in its inode row. Versioned. Key: ino u64, parent u64, position u64.
pub const LINK: Table = Table { number: 4, key_len: 24, name: "link" };
/// Slices. Versioned. Key: ino u64, block u32, version u64, n u16.
pub const SLICE: Table = Table { number: 5, key_len: 22, name: "slice" };
/// Extended attributes, ACLs among them. Versioned. Key: ino u64, position u64.
pub const XATTR: Table = Table { number: 6, key_len: 16, name: "xattr" };

/// Stored bytes of staged slices; a row never changes. Key: incarnation u16, session u64, n u64, index u32.
pub const STAGED: Table = Table { number: 0x20, key_len: 22, name: "staged" };
/// Inodes without links that were open when they lost the last one. Key: ino u64.
pub const ORPHAN: Table = Table { number: 0x21, key_len: 8, name: "orphan" };
/// The volume's counters, one row. Key: none.
pub const COUNTERS: Table = Table { number: 0x22, key_len: 0, name: "counters" };
/// Where the bytes of slices lie that were staged or in an object, and then put into another. Key: as of [`STAGED`].
pub const MOVED: Table = Table { number: 0x23, key_len: 22, name: "moved" };
/// How many rows, live and past, name a staged or moved slice; where there is none, one row does. Key: as of [`STAGED`].
pub const SHARED: Table = Table { number: 0x24, key_len: 22, name: "shared" };
// 0x25 locks, 0x26 leases on objects: taken for later.
/// Inodes that are gone and whose other rows are still being removed. Key: ino u64.
pub const PURGE: Table = Table { number: 0x27, key_len: 8, name: "purge" };
/// How many rows, live and past, name slices of an object. Key: incarnation u16, session u64, n u64.
pub const OBJECT: Table = Table { number: 0x28, key_len: 18, name: "object" };
/// What no row names any more, by time. Key: since when u64, kind u8 (1 object, 2 staged), key as of [`STAGED`].
pub const RETIRED: Table = Table { number: 0x29, key_len: 31, name: "retired" };
/// Objects that are to be deleted in their store: nothing can name them again. Key: as of [`OBJECT`].
pub const CONDEMNED: Table = Table { number: 0x2a, key_len: 18, name: "condemned" };
/// What objects and staged slices there are in sum, one row. Key: none.
pub const TALLY: Table = Table { number: 0x2b, key_len: 0, name: "tally" };
/// Names of objects that the server has granted itself, one row for each incarnation. Key: incarnation u16.
pub const PACKS: Table = Table { number: 0x2c, key_len: 2, name: "packs" };

/// The store's own counters, one row, in [`STORE_WIDE`]. Key: none.
pub const STORE: Table = Table { number: 0x30, key_len: 0, name: "store" };
/// Volumes, in [`STORE_WIDE`]. Key: index u32.
pub const VOLUME: Table = Table { number: 0x31, key_len: 4, name: "volume" };
/// Live sessions, in [`STORE_WIDE`]. Key: session u64.
pub const SESSION: Table = Table { number: 0x32, key_len: 8, name: "session" };
/// Grants of sessions that are over, in [`STORE_WIDE`]. Key: session u64.
pub const CLOSED: Table = Table { number: 0x33, key_len: 8, name: "closed" };
/// Instants that are kept until they are released, in [`STORE_WIDE`]. Key: volume u32, id (16 bytes).
pub const PIN: Table = Table { number: 0x34, key_len: 20, name: "pin" };
/// Instants that are kept for a time, in [`STORE_WIDE`]. Key: volume u32, id (16 bytes).
pub const HOLD: Table = Table { number: 0x35, key_len: 20, name: "hold" };
/// Volumes whose pins in the block store were not read since a start, in [`STORE_WIDE`]. Key: volume u32.
pub const UNPROVEN: Table = Table { number: 0x36, key_len: 4, name: "unproven" };

/// Sealed keys of encrypted volumes, in [`STORE_WIDE`]. Key: volume u32.
pub const KEYS: Table = Table { number: 0x37, key_len: 4, name: "keys" };

/// The pseudo volume of rows that belong to the whole store. Volumes count from 1.
pub const STORE_WIDE: VolumeIndex = VolumeIndex(0);

/// Every versioned table.
pub const VERSIONED: [Table; 6] = [INODE, DIR, ENTRY, LINK, SLICE, XATTR];

/// A row with its place.
pub(crate) trait Format: Serialize + DeserializeOwned {
    /// The bits of its flags that this program knows.
    const FLAGS: u16;

    fn flags(&self) -> u16;

    fn encode(&self) -> Result<Vec<u8>, ReadStop> {
        postcard::to_stdvec(self)
            .map_err(|e| ReadStop::Failed(EngineError::Store(format!("a row cannot be written: {e}"))))
    }

    fn decode(table: Table, key: &[u8], row: &[u8]) -> Result<Self, ReadStop> {
        let problem = match postcard::take_from_bytes::<Self>(row) {
            Ok((row, [])) if row.flags() & !Self::FLAGS == 0 => return Ok(row),
            Ok((_, [])) => "a newer chronofs wrote it; start the newer one",
            _ => "its bytes are not a row; run `chronofs meta verify`",
        };
        let what = format!("row {} of table {}", key.escape_ascii(), table.name);
        Err(ReadStop::Failed(EngineError::Damaged { what, detail: problem.to_owned() }))
    }
}

macro_rules! row_format {
    ($row:ty, $flags:expr) => {
        impl Format for $row {
            const FLAGS: u16 = $flags;
            fn flags(&self) -> u16 {
                self.flags
            }
        }
    };
}

mod collected;

pub use collected::{Condemned, Kept, Moved, Packs, Refs, Retired, Sum, Tally, Unproven};

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    /// [`Inode::HAS_XATTR`] and its like.
    pub flags: u16,
    /// Twelve permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The directory of its first link. Of a removed one: where it was.
    pub parent: Ino,
    /// The position of its first link's entry; 0 for the root.
    pub position: Position,
    /// Birth.
    pub crtime_ns: i64,
    /// Last access, as last set.
    pub atime_ns: i64,
    /// What depends on the type.
    pub body: Body,
}

impl Inode {
    /// There are rows in [`XATTR`], ACLs among them.
    pub const HAS_XATTR: u16 = 1;
    /// One of them is an access ACL.
    pub const HAS_ACL: u16 = 2;
    /// One of them is a default ACL.
    pub const HAS_DEFAULT_ACL: u16 = 4;

    /// Its type.
    pub fn kind(&self) -> FileKind {
        match &self.body {
            Body::Dir => FileKind::Dir,
            Body::File { .. } => FileKind::File,
            Body::Symlink { .. } => FileKind::Symlink,
            Body::Special { kind, .. } => *kind,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir)
    }

    /// Times and links of what is no directory.
    pub(crate) fn node(&self) -> Option<&Node> {
        match &self.body {
            Body::Dir => None,
            Body::File { node, .. } | Body::Symlink { node, .. } | Body::Special { node, .. } => Some(node),
        }
    }

    pub(crate) fn node_mut(&mut self) -> Option<&mut Node> {
        match &mut self.body {
            Body::Dir => None,
            Body::File { node, .. } | Body::Symlink { node, .. } | Body::Special { node, .. } => Some(node),
        }
    }

    /// Its attributes; a directory's need its [`Dir`] row with the version since which that holds.
    pub(crate) fn attr(&self, ino: Ino, dir: Option<(&Dir, Version)>) -> Attr {
        let mut attr = Attr {
            ino,
            kind: self.kind(),
            mode: self.mode,
            nlink: 0,
            uid: self.uid,
            gid: self.gid,
            size: 0,
            allocated: 0,
            rdev: 0,
            atime_ns: self.atime_ns,
            mtime_ns: 0,
            ctime_ns: 0,
            crtime_ns: self.crtime_ns,
            data_version: Version::ZERO,
        };
        if let Some((dir, since)) = dir {
            (attr.nlink, attr.size) = (dir.nlink, dir.entries);
            (attr.mtime_ns, attr.ctime_ns, attr.data_version) = (dir.mtime_ns, dir.ctime_ns, since);
        }
        if let Some(node) = self.node() {
            (attr.nlink, attr.mtime_ns, attr.ctime_ns) = (node.nlink, node.mtime_ns, node.ctime_ns);
        }
        match &self.body {
            Body::Dir => {}
            Body::File { size, allocated, data_version, .. } => {
                (attr.size, attr.allocated, attr.data_version) = (*size, *allocated, *data_version);
            }
            Body::Symlink { target, .. } => attr.size = target.len() as u64,
            Body::Special { rdev, .. } => attr.rdev = *rdev,
        }
        attr
    }
}

/// What an inode row holds for its type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// A directory; the rest is in its [`Dir`] row.
    Dir,
    /// A regular file.
    File {
        /// Links and times.
        node: Node,
        /// Bytes.
        size: u64,
        /// Bytes that are not holes.
        allocated: u64,
        /// The version that last changed the content.
        data_version: Version,
    },
    /// A symbolic link.
    Symlink {
        /// Links and times.
        node: Node,
        /// Where it points.
        target: Bytes,
    },
    /// Pipe, socket or device.
    Special {
        /// Links and times.
        node: Node,
        /// Which of them.
        kind: FileKind,
        /// Number of a device.
        rdev: u32,
    },
}

/// Links and times of what is no directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Links.
    pub nlink: u32,
    /// Last change of the content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
}

/// What changes of a directory with its entries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dir {
    /// None known.
    pub flags: u16,
    /// Last change of the entries.
    pub mtime_ns: i64,
    /// Last change of entries or inode.
    pub ctime_ns: i64,
    /// 2 + subdirectories; 0 once removed.
    pub nlink: u32,
    /// Entries.
    pub entries: u64,
}

/// A directory entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// [`MORE`] and [`TOMBSTONE`].
    pub flags: u16,
    /// Type of the inode.
    pub kind: FileKind,
    /// The inode.
    pub ino: Ino,
    /// The name.
    pub name: Bytes,
}

/// Flag of an entry or extended attribute: the next tie slot was used at some time.
pub const MORE: u16 = 1;
/// Flag of an entry or extended attribute: the slot is free, and stands here only for its [`MORE`].
pub const TOMBSTONE: u16 = 2;

/// A further link of a file: all is in the key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// None known.
    pub flags: u16,
}

/// A slice of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SliceRow {
    /// None known; one will say that the slice is shared with other rows.
    pub flags: u16,
    /// The slice.
    pub slice: Slice,
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Xattr {
    /// [`MORE`] and [`TOMBSTONE`].
    pub flags: u16,
    /// Its whole name.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// Stored bytes of a staged slice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Staged {
    /// None known.
    pub flags: u16,
    /// The file the slice was published to.
    pub ino: Ino,
    /// The block.
    pub block: u32,
    /// First byte within the block that it showed when it was published.
    pub offset: u32,
    /// Bytes that it showed then.
    pub len: u32,
    /// How it was compressed.
    pub codec: Codec,
    /// Bytes once opened.
    pub full_len: u32,
    /// CRC32C over the bytes.
    pub crc32c: u32,
    /// The bytes as stored.
    pub bytes: Bytes,
}

impl Staged {
    /// What it takes to open the slice.
    pub fn seal(&self, id: SliceId) -> Seal {
        let stored_len = self.bytes.len() as u32;
        Seal { id, codec: self.codec, stored_len, full_len: self.full_len, crc32c: self.crc32c }
    }
}

/// An inode without links.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Orphan {
    /// None known.
    pub flags: u16,
    /// When it lost its last link.
    pub since: Version,
}

/// An inode that is gone, with rows left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Purge {
    /// None known.
    pub flags: u16,
    /// When it went. Its rows end later, which nobody sees: they are found through the inode alone.
    pub since: Version,
}

/// A volume's counters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// None known.
    pub flags: u16,
    /// Next counter of an inode number.
    pub next_ino: u64,
    /// Bytes of allocated content, orphans included.
    pub used_bytes: u64,
    /// Inodes, root and orphans included.
    pub used_inodes: u64,
}

/// The store's counters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Store {
    /// [`Store::RESTORED`].
    pub flags: u16,
    /// Next index of a volume.
    pub next_volume: u32,
    /// Next session.
    pub next_session: u64,
}

impl Store {
    /// It was put back from images of it. A volume that is made here may be known to its source, too, and is named apart.
    pub const RESTORED: u16 = 1;
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// [`Volume::COUNTED`] and its like.
    pub flags: u16,
    /// Its definition.
    pub spec: VolumeSpec,
    /// Part of inode numbers and object ids; new at every restore and clone.
    pub incarnation: u16,
    /// The commit that made it.
    pub born: Version,
    /// What lies before it may be forgotten, unless it is leased. Only moves forward.
    pub horizon: Version,
    /// Since when its history is kept without a break; `None` while it is not.
    pub history_since: Option<Version>,
    /// Instants between these pairs, both excluded, cannot be had.
    pub gaps: Vec<(Version, Version)>,
    /// Sessions that lease an instant, holds and pins. While there are any, history is kept whatever the retention.
    pub leases: u32,
    /// The commit that deleted it.
    pub deleted: Option<Version>,
}

impl Volume {
    /// All its objects and staged slices are counted, from its birth on: only then are they collected.
    pub const COUNTED: u16 = 1;
    /// It is deleted for good: all that it holds is to go.
    pub const GIVEN_UP: u16 = 2;
    /// Nothing of it is left but this row.
    pub const GONE: u16 = 4;
    /// Its clients seal content and names, and a row of [`KEYS`] has its sealed keys.
    pub const ENCRYPTED: u16 = 8;

    /// Whether its clients seal content and names.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.flags & Volume::ENCRYPTED != 0
    }

    /// The commit with which it went on when its metadata was last put back from a copy.
    #[must_use]
    pub fn put_back(&self) -> Option<Version> {
        self.gaps.last().map(|(_, began)| *began)
    }
}

/// The sealed keys of an encrypted volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeKeys {
    /// None known.
    pub flags: u16,
    /// Rises with every change.
    pub revision: u64,
    /// JSON, which clients understand.
    pub sealed: String,
}

/// A live session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// [`Session::READ_ONLY`].
    pub flags: u16,
    /// Its volume.
    pub volume: VolumeIndex,
    /// What the client calls itself.
    pub client: u128,
    /// The instant it leases.
    pub at: Option<Version>,
    /// It ends when it is not heard of for so long.
    pub ttl_ms: u32,
    /// The commit that opened it.
    pub opened: Version,
    /// The commit that last renewed it.
    pub renewed: Version,
    /// Object counters `0..granted` are its own.
    pub granted: u64,
    /// Of those below it published what it will.
    pub floor: u64,
    /// What it may see.
    pub scope: Scope,
    /// It has not replayed yet what a power cut took.
    pub missed: Option<Missed>,
    /// Calls that a power cut took for good, by id, until the client says that it knows.
    pub parked: Vec<(u64, Errno)>,
}

impl Session {
    /// The session does not write.
    pub const READ_ONLY: u16 = 1;
}

/// The grant of a session that is over: objects it explains and no row names are garbage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// None known.
    pub flags: u16,
    /// Its volume.
    pub volume: VolumeIndex,
    /// Object counters `0..granted` were its own.
    pub granted: u64,
    /// The commit that ended it.
    pub ended: Version,
}

row_format!(Inode, Inode::HAS_XATTR | Inode::HAS_ACL | Inode::HAS_DEFAULT_ACL);
row_format!(Dir, 0);
row_format!(Entry, MORE | TOMBSTONE);
row_format!(Link, 0);
row_format!(SliceRow, 0);
row_format!(Xattr, MORE | TOMBSTONE);
row_format!(Staged, 0);
row_format!(Orphan, 0);
row_format!(Purge, 0);
row_format!(Counters, 0);
row_format!(Store, Store::RESTORED);
row_format!(Volume, Volume::COUNTED | Volume::GIVEN_UP | Volume::GONE | Volume::ENCRYPTED);
row_format!(VolumeKeys, 0);
row_format!(Session, Session::READ_ONLY);
row_format!(Closed, 0);

/// Joins big-endian numbers into a key.
macro_rules! key {
    ($len:literal; $($part:expr),+) => {{
        let mut key = [0u8; $len];
        let mut at = 0;
        $(
            let part = $part.to_be_bytes();
            key[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        )+
        debug_assert_eq!(at, $len);
        key
    }};
}

/// Key of an inode, a directory row or an orphan.
pub fn ino_key(ino: Ino) -> [u8; 8] {
    ino.0.to_be_bytes()
}

/// Key of an entry (of a directory) or an extended attribute (of an inode).
pub fn position_key(ino: Ino, position: Position) -> [u8; 16] {
    key!(16; ino.0, position.0)
}

/// Key of a further link.
pub fn link_key(ino: Ino, parent: Ino, position: Position) -> [u8; 24] {
    key!(24; ino.0, parent.0, position.0)
}

/// Key of a slice.
pub fn slice_key(ino: Ino, key: SliceKey) -> [u8; 22] {
    key!(22; ino.0, key.block, key.version.0, key.n)
}

/// Start of the keys of a block's slices.
pub fn block_key(ino: Ino, block: u32) -> [u8; 12] {
    key!(12; ino.0, block)
}

/// Key of a staged slice's bytes.
pub fn staged_key(id: SliceId) -> [u8; 22] {
    key!(22; id.object.incarnation, id.object.session.0, id.object.n, id.index)
}

/// Key of an object.
pub fn object_key(id: ObjectId) -> [u8; 18] {
    key!(18; id.incarnation, id.session.0, id.n)
}

/// The object of a key of [`OBJECT`], or of the start of one of [`STAGED`].
pub(crate) fn parse_object_key(key: &[u8]) -> ObjectId {
    let incarnation = key.first_chunk().map_or(0, |part| u16::from_be_bytes(*part));
    ObjectId { incarnation, session: SessionId(number_at(key, 2)), n: number_at(key, 10) }
}

/// Reads the key of a staged slice.
pub(crate) fn parse_staged_key(key: &[u8]) -> SliceId {
    let index = key.last_chunk().map_or(0, |part| u32::from_be_bytes(*part));
    SliceId { object: parse_object_key(key), index }
}

/// The big-endian number at `from` of a key.
pub(crate) fn number_at(key: &[u8], from: usize) -> u64 {
    key.get(from..from + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Reads a slice's key.
pub(crate) fn parse_slice_key(key: &[u8]) -> (Ino, SliceKey) {
    let block = (number_at(key, 8) >> 32) as u32;
    let n = (number_at(key, 14) & 0xffff) as u16;
    (Ino(number_at(key, 0)), SliceKey { block, version: Version(number_at(key, 12)), n })
}

#[cfg(test)]
mod golden;
