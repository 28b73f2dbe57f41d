//! What can be asked of a metadata store: the requests of clients and of the server itself, and their replies.
//!
//! These are also the bodies of the wire protocol and the input of the namespace's state machine, so the enums
//! only grow, at their end.

// The fields of a request are named after what they are; a comment stands where the name does not say it.
#![allow(missing_docs)]

use crate::slice::{NewSlice, Place, PlacedSlice, SliceKey};
use crate::volume::VolumeSpec;
use crate::{Attr, Caller, Errno, FileKind, Ino, Name, ObjectId, SessionId, SetAttr, SliceId, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A request of a client on its volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The entry `name` of `parent` (`..` is asked with [`Request::Parent`]). -> [`Reply::Attr`]
    Lookup { parent: Ino, name: Name },
    /// A directory's parent. -> [`Reply::Attr`]
    Parent { dir: Ino },
    /// -> [`Reply::Attr`]
    GetAttr { ino: Ino },
    /// Entries of `dir` whose cookie is above `after` (0: from the start), in cookie order. Cookie 1 is `.`, 2 is
    /// `..`, an entry's is its position. At most `limit` entries. -> [`Reply::Entries`]
    ReadDir { dir: Ino, after: u64, limit: u32, attrs: bool },
    /// -> [`Reply::Bytes`]
    ReadLink { ino: Ino },
    /// -> [`Reply::Bytes`]
    GetXattr { ino: Ino, name: Bytes },
    /// -> [`Reply::Names`]
    ListXattr { ino: Ino },
    /// The slices of blocks `first..first + count`, oldest first within a block. With `staged`, the stored bytes of
    /// staged slices come along as far as the reply's budget goes ([`REPLY_BYTES_MAX`]). -> [`Reply::Slices`]
    Slices { ino: Ino, first: u32, count: u32, staged: bool },
    /// The stored bytes of staged slices of `ino`. -> [`Reply::Staged`]
    Staged { ino: Ino, ids: Vec<SliceId> },
    /// -> [`Reply::StatFs`]
    StatFs,
    /// access(2): may the caller do `mask` (bits of R_OK, W_OK, X_OK)? -> [`Reply::Done`]
    Access { ino: Ino, mask: u8 },
    /// Registers an open file, checks the caller's right to it (`read`, `write`, or neither for O_PATH-like uses),
    /// and brings what a first read needs. -> [`Reply::Opened`]
    Open { ino: Ino, read: bool, write: bool },
    /// Ends `count` opens of `ino`. -> [`Reply::Done`]
    Close { ino: Ino, count: u32 },
    /// Makes an inode and its entry. -> [`Reply::Attr`], or [`Reply::Opened`] when `open`
    Create {
        parent: Ino,
        name: Name,
        node: NewNode,
        /// Twelve permission bits as the program gave them.
        mode: u16,
        /// The caller's umask, applied unless a default ACL rules.
        umask: u16,
        /// Register the file as open.
        open: bool,
        /// Fail with EEXIST if the name is taken; else an existing regular file is opened.
        exclusive: bool,
    },
    /// A further hard link to `ino`. -> [`Reply::Attr`]
    Link { ino: Ino, parent: Ino, name: Name },
    /// Removes a name that is no directory. -> [`Reply::Done`]
    Unlink { parent: Ino, name: Name },
    /// Removes an empty directory. -> [`Reply::Done`]
    Rmdir { parent: Ino, name: Name },
    /// rename(2) with [`RenameMode`]. -> [`Reply::Done`]
    Rename { from: Ino, name: Name, to: Ino, new_name: Name, mode: RenameMode },
    /// -> [`Reply::Attr`]
    SetAttr { ino: Ino, set: SetAttr },
    /// -> [`Reply::Done`]
    SetXattr { ino: Ino, name: Bytes, value: Bytes, mode: XattrMode },
    /// -> [`Reply::Done`]
    RemoveXattr { ino: Ino, name: Bytes },
    /// Makes written bytes part of the file. EBUSY when one of its blocks has [`SLICES_PER_BLOCK_CAP`] slices and would
    /// get more: merge that block, and ask again. -> [`Reply::Attr`]
    Publish {
        ino: Ino,
        /// In the order written: a later one lies over an earlier one. At most [`SLICES_PER_PUBLISH_MAX`].
        slices: Vec<NewSlice>,
        /// The file is at least this long afterwards.
        size_min: Option<u64>,
        /// When the last of it was written, by the server's clock; clamped to the commit. `None` leaves it.
        mtime_ns: Option<i64>,
        /// Clear setuid and setgid.
        kill_priv: bool,
        /// A merge: replaces just the slices of one block up to `newest`, changes neither times nor size, and
        /// fails with EAGAIN if a newer slice is there.
        merge: Option<Merge>,
    },
    /// Everything committed before is durable when the reply comes. -> [`Reply::Instant`]
    Sync,
    /// A further range of object counters for the session. -> [`Reply::Grant`]
    Grant { count: u64 },
    /// In the past: whether some caller may do less with the directory now than at the instant, so that the modes of
    /// then do not say enough. -> [`Reply::Narrowed`]
    Narrowed { dir: Ino },
}

/// The condition of a merge.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Merge {
    /// The block.
    pub block: u32,
    /// Its newest slice when it was read.
    pub newest: SliceKey,
}

/// The most staged bytes that one reply carries.
pub const REPLY_BYTES_MAX: usize = 1 << 20;
/// How many slices a block may have before a client is asked to merge them.
pub const SLICES_PER_BLOCK_MAX: usize = 64;
/// With this many slices a block takes no more, until a client has merged them.
pub const SLICES_PER_BLOCK_CAP: usize = 1024;
/// The most slices of one publish. With [`SLICES_PER_BLOCK_CAP`] it bounds the slices of a block.
pub const SLICES_PER_PUBLISH_MAX: usize = 4096;

/// What [`Request::Create`] makes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NewNode {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link to a target of 1 to 4095 bytes.
    Symlink(Bytes),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device of this number.
    Char(u32),
    /// Block device of this number.
    Block(u32),
}

/// The flags of renameat2(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RenameMode {
    /// An existing target goes.
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
    /// RENAME_WHITEOUT: a character device 0:0 stays behind.
    Whiteout,
}

/// The flags of setxattr(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum XattrMode {
    /// Make or replace.
    Any,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}

/// A reply to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The attributes of the inode, after the request.
    Attr(Attr),
    /// Entries of a directory; `end` when no more follow.
    Entries { entries: Vec<DirEntry>, end: bool },
    /// A link's target or an attribute's value.
    Bytes(Bytes),
    /// Names of extended attributes.
    Names(Vec<Bytes>),
    /// Slices by key.
    Slices(Vec<PlacedSlice>),
    /// Stored bytes of staged slices, in the order asked, as far as the reply's budget goes (at least one).
    Staged(Vec<Bytes>),
    /// Figures of the volume.
    StatFs(StatFs),
    /// An open file; `slices` holds all of a small file's slices with their staged bytes, else `None`.
    Opened { attr: Attr, slices: Option<Vec<PlacedSlice>> },
    /// A version.
    Instant(Version),
    /// Object counters `first..end` are the session's.
    Grant { first: u64, end: u64 },
    /// Whether rights became fewer.
    Narrowed(bool),
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    /// Where to go on after it.
    pub cookie: u64,
    /// Its name; `.` and `..` are given here too.
    pub name: Bytes,
    /// Its inode.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// Its attributes, if asked for.
    pub attr: Option<Attr>,
}

/// What statfs(2) shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatFs {
    /// Bytes of allocated content.
    pub used_bytes: u64,
    /// Inodes.
    pub used_inodes: u64,
    /// Quota, if any.
    pub max_bytes: Option<u64>,
    /// Quota, if any.
    pub max_inodes: Option<u64>,
}

/// What a session may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scope {
    /// The volume token that it came with.
    pub token: uuid::Uuid,
    /// The directory that the token's path named when the session was opened; it may have another name since.
    pub root: Ino,
}

/// What a session did and a power cut took is still to come from it: it was not back while others replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Missed {
    /// The last commit that survived.
    pub recovered: Version,
    /// The last mark that survived: what the session was answered up to here is in the state.
    pub mark: Version,
}

/// What the metadata server asks of its own store. Logged and replayed like a client's request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SystemRequest {
    /// Makes the volume (and its root, owned by root, mode 0755) unless it is there.
    CreateVolume(VolumeSpec),
    /// Makes a volume, empty, in the place of one that was served before and is lost with the metadata.
    CreateVolumeAgain(VolumeSpec),
    /// Changes name, compression, retention and quotas.
    UpdateVolume(VolumeSpec),
    /// Marks the volume as deleted: it is out of reach, and keeps all that it holds.
    DeleteVolume { id: uuid::Uuid },
    /// A new session with its first grant. `client` is chosen by the client and makes the request repeatable.
    OpenSession {
        volume: uuid::Uuid,
        client: u128,
        at: Option<Version>,
        read_only: bool,
        ttl_ms: u32,
        scope: Scope,
    },
    /// Renews the lease of a session on an instant.
    RenewSession { session: SessionId },
    /// The session has published what it will of the objects with counters below `floor`.
    NoteFloor { session: SessionId, floor: u64 },
    /// The session is over: its lease goes, its grant is closed.
    EndSession { session: SessionId },
    /// Frees an inode without links that nobody has open any more.
    Reap { volume: uuid::Uuid, ino: Ino },
    /// Moves the past horizon of a volume forward.
    AdvanceHorizon { volume: uuid::Uuid, to: Version },
    /// Removes further rows of an inode that is gone and had more than one commit takes.
    Purge { volume: uuid::Uuid, ino: Ino },
    /// Notes what a session is still to replay, or that it has.
    NoteMissed { session: SessionId, missed: Option<Missed> },
    /// Notes the replayed calls that are lost and of which a session has not said that it knows.
    NoteParked { session: SessionId, calls: Vec<(u64, Errno)> },
    /// Looks at up to `limit` rows of the past of a volume, from the engine's key `from` on (empty: from the start), and
    /// forgets those that no protected instant can see.
    Expire { volume: uuid::Uuid, from: Bytes, limit: u32 },
    /// Condemns up to `limit` objects, and removes staged slices, that no row names since `before` or longer. If at
    /// least `brake` of them, and more than half of all, are retired, only those go that were released, and that is noted. What
    /// lost its last name before `from` is known to be gone, and is not looked for.
    Condemn { volume: uuid::Uuid, from: Version, before: Version, limit: u32, brake: u64 },
    /// Condemns those of these objects of the store that a session was granted and no row names, if it is over since
    /// `over_since` or longer.
    CondemnGarbage { volume: uuid::Uuid, objects: Vec<ObjectId>, over_since: Version },
    /// The store has deleted these condemned objects.
    Deleted { volume: uuid::Uuid, objects: Vec<ObjectId> },
    /// What no row names by now may go, however much it is.
    ReleaseBrake { volume: uuid::Uuid },
    /// Keeps the instants `at..=to` readable under an id of the caller's choice: with an end it is a hold, without one a
    /// pin. One that was `found` in the block store is kept even if some of it is forgotten already.
    Keep {
        volume: uuid::Uuid,
        id: uuid::Uuid,
        at: Version,
        to: Version,
        ends: Option<Version>,
        note: String,
        found: bool,
    },
    /// Keeps all that there is of a volume's past, under the first of two ids, and all that comes, under the second, as holds.
    KeepPast { volume: uuid::Uuid, ids: [uuid::Uuid; 2], ends: Version, note: String },
    /// Ends a hold or a pin.
    Release { volume: uuid::Uuid, id: uuid::Uuid },
    /// Names the next object of the volume that the server packs staged slices into. The one before is over.
    GrantPack { volume: uuid::Uuid },
    /// These staged slices lie in the object that was granted last, at these offsets: their bytes leave the metadata.
    /// Those that are not staged any more, or that no row names, are passed over. With the last of them it is over.
    MoveStaged { volume: uuid::Uuid, object: ObjectId, slices: Vec<(SliceId, u64)>, last: bool },
    /// Nothing more will be said to lie in the object that was granted last.
    EndPack { volume: uuid::Uuid },
    /// These slices, which lay in `from`, lie in the object `to` that was granted last. Of an object that a session put
    /// they are all that rows name; if anything has changed in that since `as_of`, nothing is moved.
    MoveSlices {
        volume: uuid::Uuid,
        from: ObjectId,
        to: ObjectId,
        as_of: Version,
        slices: Vec<MovedSlice>,
        last: bool,
    },
    /// The server was started on what had `survived` and has not read the volume's pins in its block store since: until
    /// then it does not know that its metadata is no old copy. `None`: it has read them.
    NoteUnproven { volume: uuid::Uuid, survived: Option<Version> },
    /// Takes a deleted volume back, as it was.
    UndeleteVolume { id: uuid::Uuid },
    /// From now on a deleted volume cannot be taken back, and what it holds is to go.
    GiveUpVolume { id: uuid::Uuid },
    /// Drops up to `limit` rows of a volume that is given up, live and past, from the engine's key `from` on (empty: from
    /// the start), unless sessions, holds or pins need it.
    DropRows { volume: uuid::Uuid, from: Bytes, limit: u32 },
    /// The store of a volume that is given up has no object of it any more.
    VolumeGone { id: uuid::Uuid },
    /// Keeps the sealed keys of an encrypted volume, unless newer ones are kept. The first make it one, which it is for ever;
    /// they are refused once there is anything in it.
    SetKeys { id: uuid::Uuid, revision: u64, sealed: String },
}

/// A slice that was put into another object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MovedSlice {
    /// The slice.
    pub id: SliceId,
    /// Where in the new object it begins.
    pub at: u64,
    /// Its stored bytes.
    pub len: u32,
    /// Rows, live and past, that name it; of one that was moved before always 1.
    pub rows: u32,
}

/// A mutation as the client keeps it until it is durable, to send it again after a power cut of the server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replayed {
    /// The request's id within the session.
    pub id: u64,
    /// The version it was answered with.
    pub version: Version,
    /// Who asked.
    pub caller: Caller,
    /// What was asked.
    pub request: Request,
    /// The inode its reply gave, if it was a create: a replay that would make another one is parked, because what
    /// follows names this one.
    pub made: Option<Ino>,
    /// It was a create that found its file, and was answered with the version of the call before it, perhaps that of the
    /// call that made the file: it comes behind it.
    pub found: bool,
}

impl Request {
    /// About how many bytes it takes, in memory and in a frame. What may be kept of mutations is counted with it on both
    /// sides.
    pub fn weight(&self) -> usize {
        const FIXED: usize = 512;
        const NAMES: usize = 4096;
        let carried = |new: &NewSlice| {
            let inline = match &new.slice.place {
                Place::Inline(_, bytes) => bytes.len(),
                _ => 0,
            };
            128 + inline + new.staged.as_ref().map_or(0, |bytes| bytes.len())
        };
        FIXED
            + match self {
                Request::Publish { slices, .. } => slices.iter().map(carried).sum(),
                Request::SetXattr { value, .. } => value.len(),
                request if request.mutates() => NAMES,
                _ => 0,
            }
    }

    /// Whether the request may change the volume, and so goes through the log.
    pub fn mutates(&self) -> bool {
        match self {
            Request::Lookup { .. }
            | Request::Parent { .. }
            | Request::GetAttr { .. }
            | Request::ReadDir { .. }
            | Request::ReadLink { .. }
            | Request::GetXattr { .. }
            | Request::ListXattr { .. }
            | Request::Slices { .. }
            | Request::Staged { .. }
            | Request::StatFs
            | Request::Access { .. }
            | Request::Open { .. }
            | Request::Close { .. }
            | Request::Sync
            | Request::Narrowed { .. } => false,
            Request::Create { .. }
            | Request::Link { .. }
            | Request::Unlink { .. }
            | Request::Rmdir { .. }
            | Request::Rename { .. }
            | Request::SetAttr { .. }
            | Request::SetXattr { .. }
            | Request::RemoveXattr { .. }
            | Request::Publish { .. }
            | Request::Grant { .. } => true,
        }
    }
}
