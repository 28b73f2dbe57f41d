//! From the kernel's types to the file system's, and back.

use crate::vfs::NewFile;
use chronofs_core::ops::{NewNode, RenameMode, XattrMode};
use chronofs_core::{Attr, Errno, FileKind, Ino, SetTime};
use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `st_blksize` says: programs that go by it should not make a request of every 4 KiB.
const PREFERRED_IO_BYTES: u32 = 64 << 10;

/// Inode numbers of a mount: the kernel's root is always 1, and those of the past carry a mark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) root: Ino,
    pub(crate) past: bool,
}

impl Numbers {
    /// The inode that the kernel means.
    pub(crate) fn live(self, number: INodeNo) -> Ino {
        if number == INodeNo::ROOT { self.root } else { Ino(number.0).live() }
    }

    /// The number that programs see.
    pub(crate) fn shown(self, ino: Ino) -> INodeNo {
        INodeNo(if self.past { ino.in_past().0 } else { ino.0 })
    }

    /// Attributes of `attr.ino` as stat(2) shows them.
    pub(crate) fn attr(self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: self.shown(attr.ino),
            size: attr.size,
            blocks: attr.allocated.div_ceil(512),
            atime: system_time(attr.atime_ns),
            mtime: system_time(attr.mtime_ns),
            ctime: system_time(attr.ctime_ns),
            crtime: system_time(attr.crtime_ns),
            kind: file_type(attr.kind),
            perm: attr.mode & 0o7777,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: PREFERRED_IO_BYTES,
            flags: 0,
        }
    }

    /// The same in the answer to a lookup, whose number is the kernel's own.
    pub(crate) fn entry(self, attr: &Attr) -> FileAttr {
        let ino = if attr.ino == self.root { INodeNo::ROOT } else { self.shown(attr.ino) };
        FileAttr { ino, ..self.attr(attr) }
    }
}

/// The answer to a lookup that says "there is no such name, and you may remember that": inode 0.
pub(crate) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
    }
}

/// What mknod(2) is asked to make.
pub(crate) fn new_node(mode: u32, rdev: u32) -> Result<NewNode, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(NewNode::File),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        libc::S_IFCHR => Ok(NewNode::Char(rdev)),
        libc::S_IFBLK => Ok(NewNode::Block(rdev)),
        _ => Err(Errno::EINVAL),
    }
}

/// The file that mknod(2) or mkdir(2) is to make of `node`.
pub(crate) fn new_file(node: Result<NewNode, Errno>, mode: u32, umask: u32) -> Result<NewFile, Errno> {
    Ok(NewFile { node: node?, mode: permission_bits(mode), umask: permission_bits(umask) })
}

pub(crate) fn permission_bits(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(crate) fn rename_mode(flags: RenameFlags) -> Result<RenameMode, Errno> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(RenameMode::Whiteout)
    } else {
        Err(Errno::EINVAL)
    }
}

pub(crate) fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Any),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(received_ns(time)),
    }
}

/// A time that came in through fuser. Of a time before 1970 fuser subtracts the nanoseconds that the kernel means to
/// be added; this undoes it.
fn received_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after.as_nanos() as i128),
        Err(error) => {
            let before = error.duration();
            clamp(i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * 1_000_000_000)
        }
    }
}

fn clamp(ns: i128) -> i64 {
    ns.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_root_is_one_to_the_kernel_whatever_directory_is_mounted() {
        let numbers = Numbers { root: Ino(77), past: false };
        assert_eq!(numbers.live(INodeNo(1)), Ino(77));
        assert_eq!(numbers.live(INodeNo(78)), Ino(78));
        assert_eq!(numbers.entry(&testing::attr(77)).ino, INodeNo(1));
        assert_eq!(numbers.attr(&testing::attr(77)).ino, INodeNo(77));
    }

    #[test]
    fn numbers_of_the_past_carry_the_mark_and_lose_it_on_the_way_in() {
        let numbers = Numbers { root: Ino::ROOT, past: true };
        let shown = numbers.shown(Ino(5));
        assert_eq!(shown, INodeNo(5 | 1 << 63));
        assert_eq!(numbers.live(shown), Ino(5));
    }

    #[test]
    fn times_before_1970_survive_the_way_through_fuser() {
        // utimensat with tv_sec -2 and tv_nsec 300000000 reaches us as the epoch minus 2.3 s.
        assert_eq!(received_ns(UNIX_EPOCH - Duration::new(2, 300_000_000)), -1_700_000_000);
        assert_eq!(received_ns(UNIX_EPOCH - Duration::new(2, 0)), -2_000_000_000);
        assert_eq!(received_ns(UNIX_EPOCH + Duration::new(2, 5)), 2_000_000_005);
        assert_eq!(system_time(-1_700_000_000), UNIX_EPOCH - Duration::new(1, 700_000_000));
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert_eq!(rename_mode(both), Err(Errno::EINVAL));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), Err(Errno::EINVAL));
        assert_eq!(new_node(libc::S_IFDIR, 0), Err(Errno::EINVAL));
        assert_eq!(new_node(libc::S_IFCHR, 259), Ok(NewNode::Char(259)));
    }
}
