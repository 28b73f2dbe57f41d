//! New names: files, directories, symbolic links, special files, and further links.

use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::ctx::Done;
use crate::look::{EXEC, Look, READ, S_ISGID, S_ISUID, WRITE};
use crate::op::{LINKS_MAX, Op};
use crate::rows::{Body, DIR, Dir, Entry, Format, INODE, Inode, Node, Xattr, ino_key};
use crate::slots::{self, Free};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, Reply};
use chronofs_core::{Attr, Errno, FileKind, Ino, Name};
use chronofs_engine::Reads;

/// The longest target of a symbolic link in bytes.
pub const TARGET_LEN_MAX: usize = 4095;

/// The fields of a create request.
pub(crate) struct NewEntry<'a> {
    pub(crate) parent: Ino,
    pub(crate) name: &'a Name,
    pub(crate) node: &'a NewNode,
    pub(crate) mode: u16,
    pub(crate) umask: u16,
    pub(crate) open: bool,
    pub(crate) exclusive: bool,
}

/// The ACLs a new inode starts with.
struct NewAcls {
    access: Option<Acl>,
    default: Option<Bytes>,
}

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn create(&mut self, new: &NewEntry<'_>) -> Done<Reply> {
        if new.open && *new.node != NewNode::File {
            return Err(Errno::EINVAL.into());
        }
        let look = self.look();
        let dir_inode = look.named_dir(new.parent)?;
        look.allow(new.parent, &dir_inode, EXEC)?;
        let search = look.find(new.parent, new.name)?;
        if let Some((_, entry)) = search.hit {
            return existing(&look, new, &entry);
        }
        look.allow(new.parent, &dir_inode, WRITE | EXEC)?;
        let (dir, _) = look.dir(new.parent)?;
        check_new(new.node, self.volume.target_max(), &dir, &self.ctx.caller)?;
        let free = search.free.ok_or(Errno::ENOSPC)?;
        let is_dir = *new.node == NewNode::Dir;
        let attr = self.make(new, &dir_inode, free)?;
        self.touch_dir(new.parent, 1, i32::from(is_dir))?;
        Ok(if new.open { Reply::Opened { attr, slices: Some(Vec::new()) } } else { Reply::Attr(attr) })
    }

    /// Makes the inode and its entry.
    fn make(&mut self, new: &NewEntry<'_>, dir_inode: &Inode, free: Free<Entry>) -> Done<Attr> {
        let (mut mode, gid) = self.mode_and_group(new, dir_inode);
        let acls = self.inherit(new, dir_inode, &mut mode)?;
        let ino = self.new_ino()?;
        let now_ns = self.now_ns();
        let mut inode = Inode {
            flags: 0,
            mode,
            uid: self.ctx.caller.uid,
            gid,
            parent: new.parent,
            position: free.position,
            crtime_ns: now_ns,
            atime_ns: now_ns,
            body: self.body(new.node),
        };
        if let Some(acl) = acls.access {
            inode.flags |= Inode::HAS_XATTR | Inode::HAS_ACL;
            self.insert_xattr(ino, ACCESS, acl.encode().into())?;
        }
        if let Some(value) = acls.default {
            inode.flags |= Inode::HAS_XATTR | Inode::HAS_DEFAULT_ACL;
            self.insert_xattr(ino, DEFAULT, value)?;
        }
        let kind = inode.kind();
        let entry = Entry { flags: 0, kind, ino, name: Bytes::copy_from_slice(new.name.as_bytes()) };
        slots::insert(&mut self.txn, new.parent, free, entry)?;
        self.txn.insert(INODE, &ino_key(ino), &inode.encode()?);
        if inode.is_dir() {
            let row = Dir { flags: 0, mtime_ns: now_ns, ctime_ns: now_ns, nlink: 2, entries: 0 };
            self.txn.insert(DIR, &ino_key(ino), &row.encode()?);
            return Ok(inode.attr(ino, Some((&row, self.ctx.version))));
        }
        Ok(inode.attr(ino, None))
    }

    fn body(&self, node: &NewNode) -> Body {
        let now_ns = self.now_ns();
        let times = Node { nlink: 1, mtime_ns: now_ns, ctime_ns: now_ns };
        let special = |node, kind, rdev| Body::Special { node, kind, rdev };
        match node {
            NewNode::Dir => Body::Dir,
            NewNode::File => {
                Body::File { node: times, size: 0, allocated: 0, data_version: self.ctx.version }
            }
            NewNode::Symlink(target) => Body::Symlink { node: times, target: target.clone() },
            NewNode::Fifo => special(times, FileKind::Fifo, 0),
            NewNode::Socket => special(times, FileKind::Socket, 0),
            NewNode::Char(rdev) => special(times, FileKind::Char, *rdev),
            NewNode::Block(rdev) => special(times, FileKind::Block, *rdev),
        }
    }

    /// Mode before umask and ACLs, and group: a directory with setgid hands down its group, and to directories the
    /// bit as well.
    fn mode_and_group(&self, new: &NewEntry<'_>, dir_inode: &Inode) -> (u16, u32) {
        let caller = &self.ctx.caller;
        let inherits = dir_inode.mode & S_ISGID != 0;
        let gid = if inherits { dir_inode.gid } else { caller.gid };
        let mode = match new.node {
            NewNode::Symlink(_) => 0o777,
            NewNode::Dir => new.mode & !(S_ISUID | S_ISGID) & 0o7777 | if inherits { S_ISGID } else { 0 },
            _ => {
                let foreign = inherits && caller.uid != 0 && !caller.in_group(gid);
                let lost = if foreign && new.mode & 0o010 != 0 { S_ISGID } else { 0 };
                new.mode & 0o7777 & !lost
            }
        };
        (mode, gid)
    }

    /// Applies the directory's default ACL, or the umask where there is none.
    fn inherit(&self, new: &NewEntry<'_>, dir_inode: &Inode, mode: &mut u16) -> Done<NewAcls> {
        let none = NewAcls { access: None, default: None };
        if matches!(new.node, NewNode::Symlink(_)) {
            return Ok(none);
        }
        let row = if dir_inode.flags & Inode::HAS_DEFAULT_ACL != 0 {
            self.look().find_xattr(new.parent, DEFAULT)?.hit
        } else {
            None
        };
        let Some((_, row)) = row else {
            *mode &= !(new.umask & 0o777);
            return Ok(none);
        };
        let Some(acl) = Acl::parse(&row.value)? else { return Ok(none) };
        let access = acl.inherited(*mode);
        *mode = *mode & !0o777 | access.mode();
        let default = (*new.node == NewNode::Dir).then_some(row.value);
        Ok(NewAcls { access: (!access.is_minimal()).then_some(access), default })
    }

    /// Puts an attribute of a new inode.
    fn insert_xattr(&mut self, ino: Ino, name: &'static [u8], value: Bytes) -> Done<()> {
        let free = self.look().find_xattr(ino, name)?.free.ok_or(Errno::ENOSPC)?;
        let row = Xattr { flags: 0, name: Bytes::from_static(name), value };
        Ok(slots::insert(&mut self.txn, ino, free, row)?)
    }

    /// A further hard link.
    pub(crate) fn link(&mut self, ino: Ino, parent: Ino, name: &Name) -> Done<Reply> {
        let look = self.look();
        let mut inode = look.named(ino)?;
        let dir_inode = look.named_dir(parent)?;
        look.allow(parent, &dir_inode, EXEC)?;
        let search = look.find(parent, name)?;
        if search.hit.is_some() {
            return Err(Errno::EEXIST.into());
        }
        look.allow(parent, &dir_inode, WRITE | EXEC)?;
        if look.dir(parent)?.0.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        let now_ns = self.now_ns();
        let kind = inode.kind();
        let node = inode.node_mut().ok_or(Errno::EPERM)?;
        match node.nlink {
            0 => return Err(Errno::ENOENT.into()),
            LINKS_MAX.. => return Err(Errno::EMLINK.into()),
            _ => node.nlink += 1,
        }
        node.ctime_ns = now_ns;
        let free = search.free.ok_or(Errno::ENOSPC)?;
        self.add_link_row(ino, parent, free.position)?;
        let entry = Entry { flags: 0, kind, ino, name: Bytes::copy_from_slice(name.as_bytes()) };
        slots::insert(&mut self.txn, parent, free, entry)?;
        self.put_inode(ino, &inode)?;
        self.touch_dir(parent, 1, 0)?;
        Ok(Reply::Attr(inode.attr(ino, None)))
    }
}

/// The name is taken: an error, or the file that O_CREAT without O_EXCL finds.
fn existing<R: Reads + Copy>(look: &Look<'_, R>, new: &NewEntry<'_>, entry: &Entry) -> Done<Reply> {
    if new.exclusive || *new.node != NewNode::File {
        return Err(Errno::EEXIST.into());
    }
    match entry.kind {
        FileKind::File => {}
        FileKind::Dir => return Err(Errno::EISDIR.into()),
        _ => return Err(Errno::EEXIST.into()),
    }
    let inode = look.target(entry.ino)?;
    // How it is opened is not said here; who may neither read nor write has no business with it.
    if look.allow(entry.ino, &inode, READ).is_err() {
        look.allow(entry.ino, &inode, WRITE)?;
    }
    let attr = look.attr_of(entry.ino, &inode)?;
    Ok(if new.open { Reply::Opened { attr, slices: None } } else { Reply::Attr(attr) })
}

fn check_new(
    node: &NewNode,
    target_max: usize,
    dir: &Dir,
    caller: &chronofs_core::Caller,
) -> Result<(), Errno> {
    if dir.nlink == 0 {
        return Err(Errno::ENOENT);
    }
    match node {
        // The device 0:0 is a whiteout, which anybody may make.
        NewNode::Char(rdev) if *rdev != 0 && caller.uid != 0 => Err(Errno::EPERM),
        NewNode::Block(_) if caller.uid != 0 => Err(Errno::EPERM),
        NewNode::Symlink(target) if target.is_empty() => Err(Errno::ENOENT),
        NewNode::Symlink(target) if target.len() > target_max => Err(Errno::ENAMETOOLONG),
        NewNode::Dir if dir.nlink >= LINKS_MAX => Err(Errno::EMLINK),
        _ => Ok(()),
    }
}
