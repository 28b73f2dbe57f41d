//! The FUSE face of the file system: takes the kernel's requests apart and hands them to the [`Vfs`].
//!
//! What a cache can answer is answered in the thread that read the request; everything else becomes a task. There is
//! no rule of the file system in here.

mod convert;
mod pending;

use crate::data::Seek;
use crate::vfs::{Access, Callers, Change, INSTANT_XATTR, Listing, NewFile, Opened, Shown, Vfs, Write};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode, StatFs};
use chronofs_core::{Caller, Errno, Ino, Name, SetAttr};
use convert::Numbers;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use pending::{Fail, serve};
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;

/// Largest write in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel may have under way without a thread waiting: read-ahead, writing back of mappings.
const BACKGROUND_MAX: u16 = 64;
/// The flag of open that execve(2) sets: the right to execute was checked, the right to read is not needed.
const FMODE_EXEC: i32 = 0x20;
/// An inode number is never used twice, so there is only one generation.
const GENERATION: Generation = Generation(0);

/// See the module.
pub(crate) struct Face {
    vfs: Arc<Vfs>,
    runtime: Handle,
    callers: Callers,
    numbers: Numbers,
    /// Inodes whose pages in the kernel are wrong.
    invalid: Sender<INodeNo>,
}

impl Face {
    /// A face of `vfs` whose tasks run on `runtime`.
    pub(crate) fn new(vfs: Arc<Vfs>, runtime: Handle, invalid: Sender<INodeNo>) -> Self {
        let numbers = Numbers { root: vfs.root(), past: vfs.at().is_some() };
        Face { vfs, runtime, callers: Callers::default(), numbers, invalid }
    }

    fn caller(&self, request: &Request) -> Caller {
        self.callers.caller(request.uid(), request.gid(), request.pid())
    }

    /// Answers with the result of `operation`, which nobody misses if the caller is interrupted.
    fn later<R: Fail, T: Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        operation: impl Future<Output = Result<T, Errno>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.runtime.spawn(serve(request.pid(), reply, operation, answer, drop));
    }

    fn entry(
        &self,
        request: &Request,
        reply: ReplyEntry,
        operation: impl Future<Output = Result<Shown, Errno>> + Send + 'static,
    ) {
        let numbers = self.numbers;
        self.later(request, reply, operation, move |reply, shown| reply_entry(numbers, reply, &shown));
    }

    fn done(
        &self,
        request: &Request,
        reply: ReplyEmpty,
        operation: impl Future<Output = Result<(), Errno>> + Send + 'static,
    ) {
        self.later(request, reply, operation, |reply, ()| reply.ok());
    }

    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, new: NewFile, reply: ReplyEntry) {
        let name = match entry_name(name) {
            Ok(name) => name,
            Err(errno) => return reply.fail(errno),
        };
        let (vfs, caller, parent) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(parent));
        self.entry(request, reply, async move { vfs.make(caller, parent, name, new).await });
    }
}

fn entry_name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(Bytes::copy_from_slice(name.as_bytes()))
}

fn reply_entry(numbers: Numbers, reply: ReplyEntry, shown: &Shown) {
    match &shown.attr {
        Some(attr) => reply.entry(&shown.ttl, &numbers.entry(attr), GENERATION),
        None if shown.ttl.is_zero() => reply.fail(Errno::ENOENT),
        None => reply.entry(&shown.ttl, &convert::no_entry(), GENERATION),
    }
}

fn reply_attr(numbers: Numbers, reply: ReplyAttr, shown: &Shown) {
    match &shown.attr {
        Some(attr) => reply.attr(&shown.ttl, &numbers.attr(attr)),
        None => reply.fail(Errno::ENOENT),
    }
}

/// Answers getxattr and listxattr: the bytes, or how many there are.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.fail(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

fn access_of(flags: i32) -> Access {
    let mode = flags & libc::O_ACCMODE;
    let write = mode == libc::O_WRONLY || mode == libc::O_RDWR;
    // The kernel turns O_SYNC of ordinary writes into fsync; direct ones come without.
    let direct = flags & libc::O_DIRECT != 0;
    Access {
        read: mode != libc::O_WRONLY && flags & FMODE_EXEC == 0,
        write,
        append: flags & libc::O_APPEND != 0,
        sync: direct && write && flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
    }
}

fn open_reply_flags(opened: &Opened, access: Access) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if !access.write {
        flags |= FopenFlags::FOPEN_NOFLUSH;
    }
    flags
}

/// The figures of df(1), in units of 4 KiB; without a quota a volume has room for a petabyte more.
fn reply_statfs(reply: ReplyStatfs, figures: &StatFs) {
    const UNIT: u64 = 4096;
    const ROOM_BYTES: u64 = 1 << 50;
    const ROOM_INODES: u64 = 1 << 40;
    let bytes = figures.max_bytes.unwrap_or(figures.used_bytes + ROOM_BYTES);
    let inodes = figures.max_inodes.unwrap_or(figures.used_inodes + ROOM_INODES);
    let free = bytes.saturating_sub(figures.used_bytes) / UNIT;
    let free_inodes = inodes.saturating_sub(figures.used_inodes);
    let unit = UNIT as u32;
    reply.statfs(bytes.div_ceil(UNIT), free, free, inodes, free_inodes, unit, Name::LEN_MAX as u32, unit);
}

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
        let (vfs, bytes) = (Arc::clone(&self.vfs), name.as_bytes());
        if bytes == b"." || bytes == b".." {
            let (caller, up) = (self.caller(request), bytes.len() == 2);
            return self.entry(request, reply, async move {
                if up { vfs.parent(caller, parent).await } else { vfs.getattr(caller, parent).await }
            });
        }
        match entry_name(name) {
            Err(errno) => reply.fail(errno),
            Ok(name) => match self.vfs.try_lookup(parent, &name) {
                Some(shown) => reply_entry(self.numbers, reply, &shown),
                None => {
                    let caller = self.caller(request);
                    self.entry(request, reply, async move { vfs.lookup(caller, parent, name).await });
                }
            },
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (numbers, ino) = (self.numbers, self.numbers.live(ino));
        match self.vfs.try_getattr(ino) {
            Some(shown) => reply_attr(numbers, reply, &shown),
            None => {
                let (vfs, caller) = (Arc::clone(&self.vfs), self.caller(request));
                self.later(
                    request,
                    reply,
                    async move { vfs.getattr(caller, ino).await },
                    move |reply, shown| reply_attr(numbers, reply, &shown),
                );
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
        let (vfs, caller) = (Arc::clone(&self.vfs), self.caller(request));
        self.later(request, reply, async move { vfs.setattr(caller, change).await }, move |reply, shown| {
            reply_attr(numbers, reply, &shown)
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        self.later(request, reply, async move { vfs.readlink(caller, ino).await }, |reply, target| {
            reply.data(&target)
        });
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
        match convert::new_node(mode, rdev) {
            Ok(node) => {
                let new = NewFile {
                    node,
                    mode: convert::permission_bits(mode),
                    umask: convert::permission_bits(umask),
                };
                self.make(request, parent, name, new, reply);
            }
            Err(errno) => reply.fail(errno),
        }
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
        let new = NewFile {
            node: NewNode::Dir,
            mode: convert::permission_bits(mode),
            umask: convert::permission_bits(umask),
        };
        self.make(request, parent, name, new, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let new = NewFile { node: NewNode::Symlink(target), mode: 0o777, umask: 0 };
        self.make(request, parent, name, new, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, caller, parent) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(parent));
        let name = entry_name(name);
        self.done(request, reply, async move { vfs.unlink(caller, parent, name?).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, caller, parent) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(parent));
        let name = entry_name(name);
        self.done(request, reply, async move { vfs.rmdir(caller, parent, name?).await });
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
        let (vfs, caller) = (Arc::clone(&self.vfs), self.caller(request));
        let (from, to) = (self.numbers.live(parent), self.numbers.live(new_parent));
        let (name, new_name) = (entry_name(name), entry_name(new_name));
        let mode: Result<RenameMode, Errno> = convert::rename_mode(flags);
        self.done(
            request,
            reply,
            async move { vfs.rename(caller, (from, name?), (to, new_name?), mode?).await },
        );
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (vfs, caller) = (Arc::clone(&self.vfs), self.caller(request));
        let (ino, parent, name) = (self.numbers.live(ino), self.numbers.live(parent), entry_name(name));
        self.entry(request, reply, async move { vfs.link(caller, ino, parent, name?).await });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        let access = access_of(flags.0);
        let operation = {
            let vfs = Arc::clone(&vfs);
            async move { vfs.open(caller, ino, access).await }
        };
        let answer = move |reply: ReplyOpen, opened: Opened| {
            reply.opened(FileHandle(opened.handle), open_reply_flags(&opened, access));
        };
        let runtime = self.runtime.clone();
        let abandon = move |opened: Opened| {
            runtime.spawn(async move { vfs.release(opened.handle).await });
        };
        self.runtime.spawn(serve(request.pid(), reply, operation, answer, abandon));
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
        let (vfs, caller, parent) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(parent));
        let (name, access, numbers) = (entry_name(name), access_of(flags), self.numbers);
        let modes = (convert::permission_bits(mode), convert::permission_bits(umask));
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let operation = {
            let vfs = Arc::clone(&vfs);
            async move { vfs.create(caller, (parent, name?), modes, (exclusive, truncate), access).await }
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
        let runtime = self.runtime.clone();
        let abandon = move |(_, opened): (Shown, Opened)| {
            runtime.spawn(async move { vfs.release(opened.handle).await });
        };
        self.runtime.spawn(serve(request.pid(), reply, operation, answer, abandon));
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
                let vfs = Arc::clone(&self.vfs);
                self.later(
                    request,
                    reply,
                    async move { vfs.read(handle.0, offset, size).await },
                    |reply, bytes| reply.data(&bytes),
                );
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
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = Write { offset, bytes: data, kill_priv, from_pages };
        match self.vfs.try_write(handle.0, &write) {
            Some(Ok(())) => reply.written(len),
            Some(Err(errno)) => reply.fail(errno),
            None => {
                let (vfs, bytes) = (Arc::clone(&self.vfs), Bytes::copy_from_slice(data));
                let invalid = self.invalid.clone();
                let operation = async move {
                    let write = Write { offset, bytes: &bytes, kill_priv, from_pages };
                    vfs.write(handle.0, &write).await
                };
                self.later(request, reply, operation, move |reply, at| {
                    reply.written(len);
                    if at != offset {
                        // Another mount appended too: the kernel put the bytes where the file ended before.
                        let _ = invalid.send(ino);
                    }
                });
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
        let vfs = Arc::clone(&self.vfs);
        self.done(request, reply, async move { vfs.flush(handle.0).await });
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
        let vfs = Arc::clone(&self.vfs);
        self.done(request, reply, async move { vfs.fsync(handle.0).await });
    }

    fn fsyncdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = Arc::clone(&self.vfs);
        self.done(request, reply, async move { vfs.fsyncdir().await });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.vfs.opendir(self.numbers.live(ino));
        let mut flags = FopenFlags::empty();
        if self.numbers.past {
            flags |= FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        }
        reply.opened(FileHandle(handle), flags);
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
        let (vfs, caller, numbers) = (Arc::clone(&self.vfs), self.caller(request), self.numbers);
        let operation = async move { vfs.readdir(caller, handle.0, offset, false).await };
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
        let (vfs, caller, numbers) = (Arc::clone(&self.vfs), self.caller(request), self.numbers);
        let operation = async move { vfs.readdir(caller, handle.0, offset, true).await };
        self.later(request, reply, operation, move |mut reply, listed: Vec<Listing>| {
            for Listing { entry, shown } in listed {
                let (attr, ttl) = match shown {
                    Some(Shown { attr: Some(attr), ttl }) => (numbers.attr(&attr), ttl),
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
        let vfs = Arc::clone(&self.vfs);
        self.later(request, reply, async move { vfs.statfs().await }, |reply, figures| {
            reply_statfs(reply, &figures)
        });
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
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        let pair = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
        let mode = convert::xattr_mode(flags);
        self.done(request, reply, async move { vfs.setxattr(caller, ino, pair, mode?).await });
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
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.later(
            request,
            reply,
            async move { vfs.getxattr(caller, ino, name).await },
            move |reply, value| reply_xattr(reply, size, &value),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        self.later(request, reply, async move { vfs.listxattr(caller, ino).await }, move |reply, names| {
            reply_xattr(reply, size, &names)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.done(request, reply, async move { vfs.removexattr(caller, ino, name).await });
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (vfs, caller, ino) = (Arc::clone(&self.vfs), self.caller(request), self.numbers.live(ino));
        self.done(request, reply, async move { vfs.access(caller, ino, (mask.bits() & 7) as u8).await });
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
        let (vfs, caller) = (Arc::clone(&self.vfs), self.caller(request));
        let kill_priv = request.uid() != 0;
        let Some(end) = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()) else {
            return reply.fail(Errno::EFBIG);
        };
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 if !keep => self.done(request, reply, async move { vfs.extend(caller, handle.0, end).await }),
            libc::FALLOC_FL_PUNCH_HOLE if keep => self.done(request, reply, async move {
                vfs.zero(handle.0, (offset, length), false, kill_priv).await
            }),
            libc::FALLOC_FL_ZERO_RANGE => self.done(request, reply, async move {
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

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _handle_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _handle_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies by itself from then on.
        reply.fail(Errno::ENOSYS);
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
        let vfs = Arc::clone(&self.vfs);
        self.later(request, reply, async move { vfs.seek(handle.0, offset, seek).await }, |reply, found| {
            reply.offset(i64::try_from(found).unwrap_or(i64::MAX))
        });
    }
}

/// `.` and `..` in readdirplus: the kernel takes number and type and nothing else.
fn dot_attr(numbers: Numbers, ino: Ino) -> FileAttr {
    FileAttr { ino: numbers.shown(ino), kind: fuser::FileType::Directory, ..convert::no_entry() }
}
