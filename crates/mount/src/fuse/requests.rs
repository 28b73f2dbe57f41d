//! Each request of the kernel: its arguments in our types, the operation that serves it, and the shape of its answer.

use super::pending::{Fail, serve_or_drop};
use super::{
    Face, GENERATION, access_of, convert, dot_attr, entry_name, open_reply_flags, reply_attr, reply_entry,
    reply_statfs, reply_xattr,
};
use crate::data::Seek;
use crate::vfs::{Change, INSTANT_XATTR, Listing, NewFile, Opened, Shown, Vfs, Write};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode};
use chronofs_core::{Errno, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Largest write in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel may have under way without a thread waiting: read-ahead, writing back of mappings.
const BACKGROUND_MAX: u16 = 64;

// The trait decides how many arguments there are.
#[allow(clippy::too_many_arguments)]
impl Filesystem for Face {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::warn!("this kernel lacks {flag:?} of FUSE");
            }
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = self.numbers.live(parent);
        let bytes = name.as_bytes();
        if bytes == b"." || bytes == b".." {
            let (caller, up) = (self.caller(request), bytes.len() == 2);
            return self.entry(request, reply, move |vfs| async move {
                if up { vfs.parent(caller, parent).await } else { vfs.getattr(caller, parent).await }
            });
        }
        match entry_name(name) {
            Err(errno) => reply.fail(errno),
            Ok(name) => {
                match self.vfs.try_lookup(|| self.caller(request), parent, &name) {
                    Some(shown) => reply_entry(self.numbers, reply, &shown),
                    None => {
                        let caller = self.caller(request);
                        self.entry(request, reply, move |vfs| async move {
                            vfs.lookup(caller, parent, name).await
                        });
                    }
                }
            }
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (numbers, ino) = (self.numbers, self.numbers.live(ino));
        match self.vfs.try_getattr(ino) {
            Some(shown) => reply_attr(numbers, reply, &shown),
            None => {
                let caller = self.caller(request);
                let operation = move |vfs: Arc<Vfs>| async move { vfs.getattr(caller, ino).await };
                self.later(request, reply, operation, move |reply, shown| reply_attr(numbers, reply, &shown));
            }
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The kernel leaves it to us what becomes of setuid and setgid (HANDLE_KILLPRIV_V2): a truncation by
        // anybody but root takes them, a change of owner always does.
        let kill_priv = (size.is_some() && request.uid() != 0) || uid.is_some() || gid.is_some();
        let set = SetAttr {
            mode: mode.map(convert::permission_bits),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            by_handle: handle.is_some(),
            kill_priv,
        };
        let (numbers, change) = (self.numbers, Change { ino: self.numbers.live(ino), set });
        let (caller, pages) = (self.caller(request), self.pages.clone());
        let operation = move |vfs: Arc<Vfs>| async move { vfs.setattr(caller, change).await };
        let answer = move |reply: ReplyAttr, shown: Shown| reply_attr(numbers, reply, &shown);
        // The kernel was told that nothing was truncated, and keeps pages of what is gone.
        let abandon = move |_| {
            if size.is_some() {
                pages.forget(ino);
            }
        };
        self.begin(request, reply, operation, answer, abandon);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        self.later(
            request,
            reply,
            move |vfs| async move { vfs.readlink(caller, ino).await },
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let node = convert::new_node(mode, rdev);
        self.make(request, parent, name, convert::new_file(node, mode, umask), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, convert::new_file(Ok(NewNode::Dir), mode, umask), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let new = NewFile { node: NewNode::Symlink(target), mode: 0o777, umask: 0 };
        self.make(request, parent, name, Ok(new), reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent) = (self.caller(request), self.numbers.live(parent));
        let name = entry_name(name);
        self.done(request, reply, move |vfs| async move { vfs.unlink(caller, parent, name?).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent) = (self.caller(request), self.numbers.live(parent));
        let name = entry_name(name);
        self.done(request, reply, move |vfs| async move { vfs.rmdir(caller, parent, name?).await });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let caller = self.caller(request);
        let (from, to) = (self.numbers.live(parent), self.numbers.live(new_parent));
        let (name, new_name) = (entry_name(name), entry_name(new_name));
        let mode: Result<RenameMode, Errno> = convert::rename_mode(flags);
        self.done(request, reply, move |vfs| async move {
            vfs.rename(caller, (from, name?), (to, new_name?), mode?).await
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let caller = self.caller(request);
        let (ino, parent, name) = (self.numbers.live(ino), self.numbers.live(parent), entry_name(name));
        self.entry(request, reply, move |vfs| async move { vfs.link(caller, ino, parent, name?).await });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        let access = access_of(flags.0);
        let operation = move |vfs: Arc<Vfs>| async move { vfs.open(caller, ino, access).await };
        let answer = move |reply: ReplyOpen, opened: Opened| {
            reply.opened(FileHandle(opened.handle), open_reply_flags(&opened, access));
        };
        self.begin(request, reply, operation, answer, self.close_again());
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, parent) = (self.caller(request), self.numbers.live(parent));
        let (name, access, numbers) = (entry_name(name), access_of(flags), self.numbers);
        let modes = (convert::permission_bits(mode), convert::permission_bits(umask));
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let operation = move |vfs: Arc<Vfs>| async move {
            vfs.create(caller, (parent, name?), modes, (exclusive, truncate), access).await
        };
        let answer = move |reply: ReplyCreate, (shown, opened): (Shown, Opened)| match &shown.attr {
            Some(attr) => reply.created(
                &shown.ttl,
                &numbers.entry(attr),
                GENERATION,
                FileHandle(opened.handle),
                open_reply_flags(&opened, access),
            ),
            None => reply.fail(Errno::EIO),
        };
        let close_again = self.close_again();
        self.begin(request, reply, operation, answer, move |(_, opened)| close_again(opened));
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.vfs.try_read(handle.0, offset, size) {
            Some(Ok(bytes)) => reply.data(&bytes),
            Some(Err(errno)) => reply.fail(errno),
            None => {
                let operation = move |vfs: Arc<Vfs>| async move { vfs.read(handle.0, offset, size).await };
                self.later(request, reply, operation, |reply, bytes| reply.data(&bytes));
            }
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let append = flags.0 & libc::O_APPEND != 0;
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = Write { offset, bytes: data, append, kill_priv, from_pages };
        match self.vfs.try_write(handle.0, &write) {
            Some(Ok(())) => reply.written(len),
            Some(Err(errno)) => reply.fail(errno),
            None => {
                let (vfs, bytes) = (Arc::clone(&self.vfs), Bytes::copy_from_slice(data));
                let pages = self.pages.clone();
                let operation = async move {
                    let write = Write { offset, bytes: &bytes, append, kill_priv, from_pages };
                    vfs.write(handle.0, &write).await
                };
                // Interrupted, it must not lie over what the program writes next.
                let answer = move |reply: ReplyWrite, at| {
                    reply.written(len);
                    // Another mount appended too: the kernel put the bytes where the file ended before.
                    if at != offset {
                        pages.forget(ino);
                    }
                };
                self.runtime.spawn(serve_or_drop(request.pid(), reply, operation, answer));
            }
        }
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.done(request, reply, move |vfs| async move { vfs.flush(handle.0).await });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = Arc::clone(&self.vfs);
        // Nobody waits for it, so nobody can be interrupted.
        self.runtime.spawn(async move {
            vfs.release(handle.0).await;
            reply.ok();
        });
    }

    fn fsync(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.done(request, reply, move |vfs| async move { vfs.fsync(handle.0).await });
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.done(request, reply, move |vfs| async move { vfs.fsyncdir().await });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let ino = self.numbers.live(ino);
        let flags = if self.numbers.past {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        match self.vfs.try_opendir(|| self.caller(request), ino) {
            Some(handle) => reply.opened(FileHandle(handle), flags),
            None => {
                let (caller, vfs) = (self.caller(request), Arc::clone(&self.vfs));
                let operation = move |vfs: Arc<Vfs>| async move { vfs.opendir(caller, ino).await };
                let answer = move |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), flags);
                self.begin(request, reply, operation, answer, move |handle| vfs.releasedir(handle));
            }
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.releasedir(handle.0);
        reply.ok();
    }

    fn readdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let numbers = self.numbers;
        let operation = move |vfs: Arc<Vfs>| async move { vfs.readdir(handle.0, offset, false).await };
        self.later(request, reply, operation, move |mut reply, listed: Vec<Listing>| {
            for Listing { entry, .. } in listed {
                let name = OsStr::from_bytes(&entry.name);
                if reply.add(numbers.shown(entry.ino), entry.cookie, convert::file_type(entry.kind), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let numbers = self.numbers;
        let operation = move |vfs: Arc<Vfs>| async move { vfs.readdir(handle.0, offset, true).await };
        self.later(request, reply, operation, move |mut reply, listed: Vec<Listing>| {
            for Listing { entry, shown } in listed {
                let (attr, ttl) = match shown {
                    // There is one time for both, the name and the attributes.
                    Some(Shown { attr: Some(attr), name_ttl, .. }) => (numbers.attr(&attr), name_ttl),
                    _ => (dot_attr(numbers, entry.ino), Duration::ZERO),
                };
                let name = OsStr::from_bytes(&entry.name);
                if reply.add(attr.ino, entry.cookie, name, &ttl, &attr, GENERATION) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.later(
            request,
            reply,
            move |vfs| async move { vfs.statfs().await },
            |reply, figures| reply_statfs(reply, &figures),
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        let pair = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
        let mode = convert::xattr_mode(flags);
        self.done(request, reply, move |vfs| async move { vfs.setxattr(caller, ino, pair, mode?).await });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.vfs.try_getxattr(name.as_bytes()) {
            Some(Ok(value)) => return reply_xattr(reply, size, &value),
            Some(Err(errno)) => return reply.fail(errno),
            None => {}
        }
        if size == 0 && name == INSTANT_XATTR {
            // Its length is known, and it need not be made twice.
            return reply.size(chronofs_core::Version::ZERO.to_string().len() as u32);
        }
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        let pages = (name == INSTANT_XATTR).then(|| self.pages.clone());
        let name = Bytes::copy_from_slice(name.as_bytes());
        let operation = move |vfs: Arc<Vfs>| async move {
            if let Some(pages) = pages {
                pages.write_back(&vfs).await;
            }
            vfs.getxattr(caller, ino, name).await
        };
        self.later(request, reply, operation, move |reply, value| reply_xattr(reply, size, &value));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        self.later(
            request,
            reply,
            move |vfs| async move { vfs.listxattr(caller, ino).await },
            move |reply, names| reply_xattr(reply, size, &names),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.done(request, reply, move |vfs| async move { vfs.removexattr(caller, ino, name).await });
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (caller, ino) = (self.caller(request), self.numbers.live(ino));
        self.done(request, reply, move |vfs| async move {
            vfs.access(caller, ino, (mask.bits() & 7) as u8).await
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let kill_priv = request.uid() != 0;
        let Some(end) = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()) else {
            return reply.fail(Errno::EFBIG);
        };
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 if !keep => {
                self.done(
                    request,
                    reply,
                    move |vfs| async move { vfs.extend(handle.0, end, kill_priv).await },
                );
            }
            libc::FALLOC_FL_PUNCH_HOLE if keep => self.done(request, reply, move |vfs| async move {
                vfs.zero(handle.0, (offset, length), false, kill_priv).await
            }),
            libc::FALLOC_FL_ZERO_RANGE => self.done(request, reply, move |vfs| async move {
                vfs.zero(handle.0, (offset, length), !keep, kill_priv).await
            }),
            _ => reply.fail(Errno::EOPNOTSUPP),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.fail(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.fail(Errno::ENXIO) };
        self.later(
            request,
            reply,
            move |vfs| async move { vfs.seek(handle.0, offset, seek).await },
            |reply, found| reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
        );
    }
}
