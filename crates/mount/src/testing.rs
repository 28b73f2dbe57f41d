//! What unit tests of several modules need.

use chronofs_core::{Attr, FileKind, Ino, Version};

/// A plain file.
pub(crate) fn attr(ino: u64) -> Attr {
    Attr {
        ino: Ino(ino),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: 0,
        allocated: 0,
        rdev: 0,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        crtime_ns: 0,
        data_version: Version(1),
    }
}
