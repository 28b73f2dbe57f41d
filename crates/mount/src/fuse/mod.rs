//! The FUSE face of the file system: takes the kernel's requests apart and hands them to the [`Vfs`].
//!
//! What a cache can answer is answered in the thread that read the request; everything else becomes a task. There is
//! no rule of the file system in here.

mod convert;
pub(crate) mod pages;
mod pending;
mod requests;

use crate::vfs::{Access, Callers, NewFile, Opened, Shown, Vfs};
use bytes::Bytes;
use chronofs_core::ops::StatFs;
use chronofs_core::{Caller, Errno, Ino, Name};
use convert::Numbers;
use fuser::{
    FileAttr, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyXattr,
    Request,
};
use pages::Pages;
use pending::{Fail, serve};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use tokio::runtime::Handle;

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
    pages: Pages,
}

impl Face {
    /// A face of `vfs` whose tasks run on `runtime`.
    pub(crate) fn new(vfs: Arc<Vfs>, runtime: Handle, pages: Pages) -> Self {
        let numbers = Numbers { root: vfs.root(), past: vfs.at().is_some() };
        let lost = pages.clone();
        vfs.on_wrong_pages(move |ino| lost.forget(INodeNo(ino.0)));
        Face { vfs, runtime, callers: Callers::default(), numbers, pages }
    }

    fn caller(&self, request: &Request) -> Caller {
        self.callers.caller(request.uid(), request.gid(), request.pid())
    }

    /// Begins `operation` and answers with its result. When the caller is interrupted before, `abandon` gets it.
    fn begin<R: Fail, T: Send + 'static, F>(
        &self,
        request: &Request,
        reply: R,
        operation: impl FnOnce(Arc<Vfs>) -> F,
        answer: impl FnOnce(R, T) + Send + 'static,
        abandon: impl FnOnce(T) + Send + 'static,
    ) where
        F: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        let operation = operation(Arc::clone(&self.vfs));
        self.runtime.spawn(serve(request.pid(), reply, operation, answer, abandon));
    }

    /// As [`Face::begin`], where nobody misses the result of what was abandoned.
    fn later<R: Fail, T: Send + 'static, F>(
        &self,
        request: &Request,
        reply: R,
        operation: impl FnOnce(Arc<Vfs>) -> F,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        F: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        self.begin(request, reply, operation, answer, drop);
    }

    /// As [`Face::later`], for what answers with an entry.
    fn entry<F>(&self, request: &Request, reply: ReplyEntry, operation: impl FnOnce(Arc<Vfs>) -> F)
    where
        F: Future<Output = Result<Shown, Errno>> + Send + 'static,
    {
        let numbers = self.numbers;
        self.later(request, reply, operation, move |reply, shown| reply_entry(numbers, reply, &shown));
    }

    /// As [`Face::later`], for what is only done or not.
    fn done<F>(&self, request: &Request, reply: ReplyEmpty, operation: impl FnOnce(Arc<Vfs>) -> F)
    where
        F: Future<Output = Result<(), Errno>> + Send + 'static,
    {
        self.later(request, reply, operation, |reply, ()| reply.ok());
    }

    /// Closes a file that was opened for nobody.
    fn close_again(&self) -> impl FnOnce(Opened) + Send + 'static {
        let (runtime, vfs) = (self.runtime.clone(), Arc::clone(&self.vfs));
        move |opened| {
            runtime.spawn(async move { vfs.release(opened.handle).await });
        }
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: Result<NewFile, Errno>,
        reply: ReplyEntry,
    ) {
        let (caller, parent, name) = (self.caller(request), self.numbers.live(parent), entry_name(name));
        self.entry(request, reply, move |vfs| async move { vfs.make(caller, parent, name?, new?).await });
    }
}

fn entry_name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(Bytes::copy_from_slice(name.as_bytes()))
}

fn reply_entry(numbers: Numbers, reply: ReplyEntry, shown: &Shown) {
    match &shown.attr {
        Some(attr) => {
            reply.entry_with_ttls(&shown.ttl, &shown.name_ttl, &numbers.entry(attr), GENERATION);
        }
        None if shown.name_ttl.is_zero() => reply.fail(Errno::ENOENT),
        None => reply.entry(&shown.name_ttl, &convert::no_entry(), GENERATION),
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
    let exec = flags & FMODE_EXEC != 0;
    Access {
        read: mode != libc::O_WRONLY && !exec,
        write,
        exec,
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

/// `.` and `..` in readdirplus: the kernel takes number and type and nothing else.
fn dot_attr(numbers: Numbers, ino: Ino) -> FileAttr {
    FileAttr { ino: numbers.shown(ino), kind: fuser::FileType::Directory, ..convert::no_entry() }
}
