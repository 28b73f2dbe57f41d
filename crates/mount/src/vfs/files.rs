//! Open files: from open to the last close, and all that reads and writes them.

use super::directories::DirHandle;
use super::meta_link::MetaLink;
use super::{Shown, Vfs, reply};
use crate::data::{ErrorMark, FileData, Seek};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, Request};
use chronofs_core::slice::PlacedSlice;
use chronofs_core::{Attr, Caller, Errno, Ino, Name, SetAttr};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The right to execute, as access(2) has it.
const EXEC: u8 = 1;

/// What an open file may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Every write is durable when it returns.
    pub(crate) sync: bool,
    /// It is a program to be run.
    pub(crate) exec: bool,
}

/// An open file.
pub(crate) struct FileHandle {
    ino: Ino,
    file: Arc<FileData<MetaLink>>,
    /// What this handle has been told of failures to publish.
    mark: ErrorMark,
    access: Access,
}

/// What open and create give.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Opened {
    /// Number of the handle.
    pub(crate) handle: u64,
    /// The kernel may keep the pages that it has of the file.
    pub(crate) keep_cache: bool,
}

/// Handles by number, and what is open by inode.
#[derive(Default)]
pub(crate) struct Files {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<FileHandle>>>,
    dirs: RwLock<HashMap<u64, Arc<DirHandle>>>,
    inodes: Mutex<HashMap<Ino, OpenInode>>,
}

#[derive(Default)]
struct OpenInode {
    handles: u32,
    /// Its last name is gone and nobody else can have it open: what is written to it, nobody will see.
    unlinked: bool,
}

impl Files {
    /// The last name of `ino` is gone.
    pub(super) fn unlinked(&self, ino: Ino) {
        if let Some(open) = self.inodes().get_mut(&ino) {
            open.unlinked = true;
        }
    }

    /// `ino` got a name.
    pub(super) fn linked(&self, ino: Ino) {
        if let Some(open) = self.inodes().get_mut(&ino) {
            open.unlinked = false;
        }
    }

    fn is_unlinked(&self, ino: Ino) -> bool {
        self.inodes().get(&ino).is_some_and(|open| open.unlinked)
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<Ino, OpenInode>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, handle: FileHandle) -> u64 {
        self.inodes().entry(handle.ino).or_default().handles += 1;
        let number = self.number();
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        number
    }

    fn file(&self, handle: u64) -> Result<Arc<FileHandle>, Errno> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// What is open.
    fn open(&self) -> Vec<Ino> {
        self.inodes().keys().copied().collect()
    }

    /// What is open for writing.
    fn written(&self) -> BTreeSet<Ino> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().filter(|open| open.access.write).map(|open| open.ino).collect()
    }

    /// Takes a handle out; whether it was the last one of an inode that is unlinked.
    fn remove(&self, handle: u64) -> Option<(Arc<FileHandle>, bool)> {
        let file = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&handle)?;
        let mut inodes = self.inodes();
        let mut gone = false;
        if let Some(open) = inodes.get_mut(&file.ino) {
            open.handles -= 1;
            gone = open.handles == 0 && open.unlinked;
            if open.handles == 0 {
                inodes.remove(&file.ino);
            }
        }
        Some((file, gone))
    }

    pub(super) fn add_dir(&self, dir: DirHandle) -> u64 {
        let number = self.number();
        self.dirs.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(dir));
        number
    }

    pub(super) fn dir(&self, handle: u64) -> Result<Arc<DirHandle>, Errno> {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        dirs.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn remove_dir(&self, handle: u64) {
        self.dirs.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Vfs {
    /// Opens `ino`.
    pub(crate) async fn open(&self, caller: Caller, ino: Ino, access: Access) -> Result<Opened, Errno> {
        if access.write {
            self.writable()?;
        }
        // Whether it may be run the kernel has asked, of the past however only by the mode of then.
        if access.exec && self.at.is_some() {
            self.access(caller.clone(), ino, EXEC).await?;
        }
        let request = Request::Open { ino, read: access.read, write: access.write };
        let restores = self.connection.restores();
        let opened = self.call(caller, request).await;
        // For ESTALE the kernel looks the name up again: it may be another file's by now.
        let (version, attr, slices) = reply::opened(opened.map_err(|errno| self.connection.lost_or(errno))?)?;
        if self.ttl().is_some() {
            self.cache.put_attr(&attr, version);
        }
        Ok(self.hold(&attr, slices, access, restores))
    }

    /// Makes a file (or opens the one that is there, unless `exclusive`) and opens it.
    pub(crate) async fn create(
        &self,
        caller: Caller,
        (parent, name): (Ino, Name),
        (mode, umask): (u16, u16),
        (exclusive, truncate): (bool, bool),
        access: Access,
    ) -> Result<(Shown, Opened), Errno> {
        self.writable()?;
        self.cache.naming(parent, &name);
        let request = Request::Create {
            parent,
            name: name.clone(),
            node: NewNode::File,
            mode,
            umask,
            open: true,
            exclusive,
        };
        let restores = self.connection.restores();
        let answer = self.call(caller.clone(), request).await?;
        let (version, attr, slices) = reply::opened(answer)?;
        self.made(parent, &name, &attr, version);
        let opened = self.hold(&attr, slices, access, restores);
        if truncate && attr.size > 0 {
            // Somebody else made the file a moment ago; the kernel takes it for new and does not truncate it.
            let set =
                SetAttr { size: Some(0), by_handle: true, kill_priv: caller.uid != 0, ..SetAttr::default() };
            let shown = self.setattr(caller, super::Change { ino: attr.ino, set }).await?;
            return Ok((shown, opened));
        }
        Ok((self.show(attr), opened))
    }

    /// A handle of what the server has opened, when it had been restored so often.
    fn hold(&self, attr: &Attr, slices: Option<Vec<PlacedSlice>>, access: Access, restores: u64) -> Opened {
        let file = self.data.file(attr);
        file.is_there(restores);
        file.opened(attr, slices);
        let keep_cache = self.at.is_some() || self.cache.opened(attr.ino, attr.data_version);
        let mark = file.error_mark();
        let handle = self.files.add(FileHandle { ino: attr.ino, file, mark, access });
        Opened { handle, keep_cache }
    }

    /// Files that programs have open.
    pub(super) fn open_files(&self) -> Vec<Ino> {
        self.files.open()
    }

    /// Files that programs may be changing, also through mappings.
    pub(crate) fn open_for_writing(&self) -> BTreeSet<Ino> {
        self.files.written()
    }

    /// Bytes of an open file, if they are at hand.
    pub(crate) fn try_read(&self, handle: u64, offset: u64, len: u32) -> Option<Result<Bytes, Errno>> {
        match self.files.file(handle) {
            Ok(open) => open.file.try_read(offset, len),
            Err(errno) => Some(Err(errno)),
        }
    }

    /// Bytes of an open file; fewer than `len` only at its end.
    pub(crate) async fn read(&self, handle: u64, offset: u64, len: u32) -> Result<Bytes, Errno> {
        self.files.file(handle)?.file.read(offset, len).await
    }

    /// Writes to an open file, if that needs no waiting. `None`: nothing was done.
    pub(crate) fn try_write(&self, handle: u64, write: &Write<'_>) -> Option<Result<(), Errno>> {
        let open = match self.files.file(handle) {
            Ok(open) => open,
            Err(errno) => return Some(Err(errno)),
        };
        if write.kill_priv || open.access.sync || (write.append && !write.from_pages) {
            return None;
        }
        open.file.try_write(write.offset, write.bytes, false)
    }

    /// Writes to an open file. Gives the offset that it was written at.
    pub(crate) async fn write(&self, handle: u64, write: &Write<'_>) -> Result<u64, Errno> {
        let open = self.files.file(handle)?;
        let at = if write.append && !write.from_pages {
            open.file.append(write.bytes, write.kill_priv).await?
        } else {
            open.file.write(write.offset, write.bytes, write.kill_priv).await?;
            write.offset
        };
        if open.access.sync {
            let connection = Arc::clone(&self.connection);
            // In a task of its own: this call may be dropped while it waits, and a publish must not be.
            let synced = tokio::spawn(async move {
                open.file.flush(&open.mark).await?;
                connection.call(Caller::ROOT, Request::Sync).await?;
                open.file.check(&open.mark)
            });
            synced.await.map_err(|_| Errno::EIO)??;
        }
        Ok(at)
    }

    /// close(2) of one descriptor: what was written is published when this returns.
    pub(crate) async fn flush(&self, handle: u64) -> Result<(), Errno> {
        let open = self.files.file(handle)?;
        if self.files.is_unlinked(open.ino) {
            return Ok(());
        }
        open.file.close(&open.mark).await
    }

    /// fsync(2): what was written is published and durable when this returns.
    pub(crate) async fn fsync(&self, handle: u64) -> Result<(), Errno> {
        let open = self.files.file(handle)?;
        open.file.flush(&open.mark).await?;
        self.sync().await?;
        // The server may have lost power in between, and with it what it had answered.
        open.file.check(&open.mark)
    }

    /// The last descriptor of a handle is gone.
    pub(crate) async fn release(&self, handle: u64) {
        let Some((open, unlinked)) = self.files.remove(handle) else { return };
        if unlinked {
            open.file.discard();
        } else if open.access.write {
            // Pages of a mapping are written after the descriptor was closed. A failure was logged where it was
            // found, and a later fsync of another handle hears of it.
            let _ = open.file.flush(&open.mark).await;
        }
        self.connection.cast(Caller::ROOT, Request::Close { ino: open.ino, count: 1 });
    }

    /// SEEK_DATA and SEEK_HOLE.
    pub(crate) async fn seek(&self, handle: u64, offset: u64, seek: Seek) -> Result<u64, Errno> {
        self.files.file(handle)?.file.seek(offset, seek).await
    }

    /// fallocate(2) without flags: the file is at least `end` long.
    pub(crate) async fn extend(&self, handle: u64, end: u64, kill_priv: bool) -> Result<(), Errno> {
        self.writable()?;
        self.files.file(handle)?.file.extend(end, kill_priv)
    }

    /// fallocate(2) that punches a hole or zeroes a range; with `extend` the file grows to the range's end.
    pub(crate) async fn zero(
        &self,
        handle: u64,
        (offset, len): (u64, u64),
        extend: bool,
        kill_priv: bool,
    ) -> Result<(), Errno> {
        self.writable()?;
        self.files.file(handle)?.file.zero(offset, len, extend, kill_priv).await
    }
}

/// A write as it comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write<'a> {
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
    /// It goes to the end of the file: fcntl(2) may have changed that since the file was opened.
    pub(crate) append: bool,
    /// Clear setuid and setgid.
    pub(crate) kill_priv: bool,
    /// The kernel writes pages back that were changed through a mapping: they have their place already.
    pub(crate) from_pages: bool,
}
