//! What stat(2) shows of a file, what setattr may change, and who asks.

use crate::{Ino, Version};
use serde::{Deserialize, Serialize};

/// The type of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// The attributes of an inode. Times are nanoseconds since the epoch and may be negative.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// The twelve permission bits: setuid, setgid, sticky, rwxrwxrwx.
    pub mode: u16,
    /// Number of links; of a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of a directory the number of its entries.
    pub size: u64,
    /// Bytes of the file that are not holes, before compression.
    pub allocated: u64,
    /// Device number of a character or block device, as the kernel encodes it.
    pub rdev: u32,
    /// Last access, as last set; chronofs does not track reads.
    pub atime_ns: i64,
    /// Last change of the content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Birth.
    pub crtime_ns: i64,
    /// The version that last changed the content: what is cached of an older one is stale.
    pub data_version: Version,
}

/// A time to be set by setattr.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SetTime {
    /// The instant of the commit.
    Now,
    /// Nanoseconds since the epoch.
    At(i64),
}

/// What setattr changes; `None` leaves a field as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits (twelve).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The file is changed through an open descriptor with write access, so no permission is asked for `size`.
    pub by_handle: bool,
    /// Clear setuid and setgid as a write by a caller without CAP_FSETID does.
    pub kill_priv: bool,
}

/// Who asks: what the server checks permissions against.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Caller {
    /// The superuser.
    pub const ROOT: Caller = Caller { uid: 0, gid: 0, groups: Vec::new() };

    /// Whether `gid` is the caller's group or one of its supplementary groups.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
