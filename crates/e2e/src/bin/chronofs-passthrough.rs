//! A FUSE file system that passes every request on to a folder: the least that any FUSE file system costs here, to
//! measure chronofs beside.
//!
//! `chronofs-passthrough FOLDER MOUNT-POINT` runs until it is unmounted. It keeps a path for every inode it has shown
//! and knows only what the measured loops need; it is no file system for anybody's files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, SessionACL, TimeOrNow,
    WriteFlags,
};

/// How long the kernel may keep entries and attributes: as long as a mount of chronofs lets it.
const TTL: Duration = Duration::from_secs(1);
const GENERATION: Generation = Generation(0);

#[derive(Default)]
struct State {
    paths: HashMap<u64, PathBuf>,
    files: HashMap<u64, Arc<File>>,
    folders: HashMap<u64, Arc<Vec<(PathBuf, Metadata)>>>,
}

struct Passthrough {
    root: PathBuf,
    root_ino: u64,
    state: RwLock<State>,
    next_handle: AtomicU64,
}

impl Passthrough {
    fn new(root: PathBuf) -> io::Result<Passthrough> {
        let root_ino = fs::metadata(&root)?.ino();
        Ok(Passthrough { root, root_ino, state: RwLock::default(), next_handle: AtomicU64::new(1) })
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(self.root.clone());
        }
        self.state().paths.get(&ino.0).cloned().ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        self.state().files.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// The kernel knows the root as 1, whatever number its folder has.
    fn number(&self, ino: u64) -> INodeNo {
        if ino == self.root_ino { INodeNo::ROOT } else { INodeNo(ino) }
    }

    fn show(&self, path: PathBuf) -> Result<FileAttr, Errno> {
        let metadata = fs::symlink_metadata(&path)?;
        let attr = self.attr(&metadata);
        self.change().paths.insert(metadata.ino(), path);
        Ok(attr)
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.change().files.insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn attr(&self, m: &Metadata) -> FileAttr {
        let time = |s: i64, ns: i64| UNIX_EPOCH + Duration::new(s.unsigned_abs(), ns.unsigned_abs() as u32);
        FileAttr {
            ino: self.number(m.ino()),
            size: m.size(),
            blocks: m.blocks(),
            atime: time(m.atime(), m.atime_nsec()),
            mtime: time(m.mtime(), m.mtime_nsec()),
            ctime: time(m.ctime(), m.ctime_nsec()),
            crtime: UNIX_EPOCH,
            kind: kind(m),
            perm: (m.mode() & 0o7777) as u16,
            nlink: m.nlink() as u32,
            uid: m.uid(),
            gid: m.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn list(&self, ino: INodeNo) -> Result<FileHandle, Errno> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(ino)?)? {
            let entry = entry?;
            entries.push((entry.path(), entry.metadata()?));
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.change().folders.insert(handle, Arc::new(entries));
        Ok(FileHandle(handle))
    }

    fn listed(&self, handle: FileHandle) -> Result<Arc<Vec<(PathBuf, Metadata)>>, Errno> {
        self.state().folders.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn opened(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let access = flags.0 & 3;
        let file = OpenOptions::new().read(access != 1).write(access != 0).open(self.path(ino)?)?;
        Ok(self.keep(file))
    }

    fn created(&self, parent: INodeNo, name: &OsStr, mode: u32) -> Result<(FileAttr, FileHandle), Errno> {
        let path = self.child(parent, name)?;
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(mode & 0o7777).open(&path)?;
        Ok((self.show(path)?, self.keep(file)))
    }

    fn renamed(&self, from: PathBuf, to: PathBuf) -> Result<(), Errno> {
        fs::rename(&from, &to)?;
        let ino = fs::symlink_metadata(&to)?.ino();
        self.change().paths.insert(ino, to);
        Ok(())
    }
}

fn kind(metadata: &Metadata) -> FileType {
    let t = metadata.file_type();
    if t.is_dir() {
        FileType::Directory
    } else if t.is_symlink() {
        FileType::Symlink
    } else {
        FileType::RegularFile
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attr(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(errno),
    }
}

fn answer_open(reply: ReplyOpen, result: Result<FileHandle, Errno>) {
    match result {
        Ok(handle) => reply.opened(handle, FopenFlags::empty()),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(reply, self.child(parent, name).and_then(|path| self.show(path)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let metadata = self.path(ino).and_then(|path| Ok(fs::symlink_metadata(path)?));
        answer_attr(reply, metadata.map(|m| self.attr(&m)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = |path: PathBuf| {
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            Ok(self.attr(&fs::symlink_metadata(path)?))
        };
        answer_attr(reply, self.path(ino).and_then(set));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let make = |path: PathBuf| {
            fs::create_dir(&path)?;
            self.show(path)
        };
        answer_entry(reply, self.child(parent, name).and_then(make));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.child(parent, name).and_then(|path| Ok(fs::remove_file(path)?)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.child(parent, name).and_then(|path| Ok(fs::remove_dir(path)?)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let paths = self.child(parent, name).and_then(|from| Ok((from, self.child(to, new_name)?)));
        answer(reply, paths.and_then(|(from, to)| self.renamed(from, to)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer_open(reply, self.opened(ino, flags));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.created(parent, name, mode) {
            Ok((attr, handle)) => reply.created(&TTL, &attr, GENERATION, handle, FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = |file: Arc<File>| {
            let mut buffer = vec![0; size as usize];
            let len = file.read_at(&mut buffer, offset)?;
            buffer.truncate(len);
            Ok(buffer)
        };
        match self.file(handle).and_then(read) {
            Ok(buffer) => reply.data(&buffer),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(handle).and_then(|file| Ok(file.write_all_at(data, offset)?)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.change().files.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer(reply, self.file(handle).and_then(|file| Ok(file.sync_all()?)));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer_open(reply, self.list(ino));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.listed(handle) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (n, (path, metadata)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(self.number(metadata.ino()), n as u64 + 1, kind(metadata), name_of(path)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.listed(handle) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (n, (path, metadata)) in entries.iter().enumerate().skip(offset as usize) {
            let attr = self.attr(metadata);
            if reply.add(attr.ino, n as u64 + 1, name_of(path), &TTL, &attr, GENERATION) {
                break;
            }
            self.change().paths.insert(metadata.ino(), path.clone());
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.change().folders.remove(&handle.0);
        reply.ok();
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, place] = &arguments[..] else {
        anyhow::bail!("usage: chronofs-passthrough FOLDER MOUNT-POINT");
    };
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("passthrough".to_owned()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(4);
    Ok(fuser::mount(Passthrough::new(folder.clone())?, place, &config)?)
}
