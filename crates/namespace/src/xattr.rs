//! Extended attributes, and ACLs, which are set as such.

use crate::acl::{ACCESS, Acl, DEFAULT};
use crate::ctx::Done;
use crate::look::{Look, READ, S_ISVTX, WRITE, owns};
use crate::op::Op;
use crate::rows::{Format, Inode, Volume, XATTR, Xattr, ino_key};
use crate::slots::{self, Slot};
use bytes::Bytes;
use chronofs_core::ops::{Reply, XattrMode};
use chronofs_core::{Errno, FileKind, Ino};
use chronofs_engine::{ReadStop, Reads};

/// The longest name in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// The longest value in bytes.
pub const XATTR_VALUE_MAX: usize = 64 << 10;
const CAPABILITY: &[u8] = b"security.capability";
const PAGE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
    Access,
    Default,
}

/// Errors: ERANGE, EINVAL, EOPNOTSUPP.
fn space(name: &[u8], volume: &Volume) -> Result<Space, Errno> {
    if name.is_empty() || name.len() > volume.xattr_name_max() {
        return Err(Errno::ERANGE);
    }
    match name {
        ACCESS => return Ok(Space::Access),
        DEFAULT => return Ok(Space::Default),
        _ => {}
    }
    let spaces: [(&[u8], Space); 3] =
        [(b"user.", Space::User), (b"trusted.", Space::Trusted), (b"security.", Space::Security)];
    for (prefix, space) in spaces {
        if name.starts_with(prefix) {
            return if name.len() > prefix.len() { Ok(space) } else { Err(Errno::EINVAL) };
        }
    }
    Err(Errno::EOPNOTSUPP)
}

/// Reads an attribute. Errors: ENODATA, EACCES and those of the name.
pub(crate) fn get<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino, name: &Bytes) -> Done<Reply> {
    let inode = look.named(ino)?;
    let root = look.ctx.caller.uid == 0;
    match space(name, look.volume)? {
        Space::User if !matches!(inode.kind(), FileKind::File | FileKind::Dir) => {
            return Err(Errno::ENODATA.into());
        }
        Space::User => look.allow(ino, &inode, READ)?,
        Space::Trusted if !root => return Err(Errno::ENODATA.into()),
        Space::Access | Space::Default if inode.kind() == FileKind::Symlink => {
            return Err(Errno::EOPNOTSUPP.into());
        }
        _ => {}
    }
    if inode.flags & Inode::HAS_XATTR == 0 {
        return Err(Errno::ENODATA.into());
    }
    let (_, row) = look.find_xattr(ino, name)?.hit.ok_or(Errno::ENODATA)?;
    Ok(Reply::Bytes(row.value))
}

/// Names of all attributes; those of `trusted.` are shown to root alone.
pub(crate) fn list<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino) -> Done<Reply> {
    let inode = look.named(ino)?;
    let mut names = Vec::new();
    if inode.flags & Inode::HAS_XATTR == 0 {
        return Ok(Reply::Names(names));
    }
    let root = look.ctx.caller.uid == 0;
    let mut start = Vec::new();
    loop {
        let page = look.tables.scan(XATTR, &ino_key(ino), &start, PAGE)?;
        for (key, row) in &page {
            let row = Xattr::decode(XATTR, key, &row.value)?;
            if !row.is_tombstone() && (root || !row.name.starts_with(b"trusted.")) {
                names.push(row.name);
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => start = [&key[8..], &[0]].concat(),
            _ => return Ok(Reply::Names(names)),
        }
    }
}

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn set_xattr(
        &mut self,
        ino: Ino,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
    ) -> Done<Reply> {
        if value.len() > self.volume.xattr_value_max() {
            return Err(Errno::E2BIG.into());
        }
        let mut inode = self.look().named(ino)?;
        let space = space(name, self.volume)?;
        let acl = matches!(space, Space::Access | Space::Default);
        if acl && Acl::is_no_list(value) {
            return self.remove_xattr(ino, name);
        }
        if space == Space::Default && !inode.is_dir() && inode.kind() != FileKind::Symlink {
            // As on Linux, whoever asks.
            return Err(Errno::EACCES.into());
        }
        self.check_write(ino, &inode, space)?;
        match space {
            Space::Access => self.set_access(ino, &mut inode, value)?,
            Space::Default => self.set_default(ino, &mut inode, value)?,
            _ => self.put_xattr(ino, &mut inode, name, value, mode)?,
        }
        self.touch_inode(ino, &mut inode)?;
        self.put_inode(ino, &inode)?;
        Ok(Reply::Done)
    }

    pub(crate) fn remove_xattr(&mut self, ino: Ino, name: &Bytes) -> Done<Reply> {
        let mut inode = self.look().named(ino)?;
        let space = space(name, self.volume)?;
        let acl = matches!(space, Space::Access | Space::Default);
        if space != Space::Default || inode.is_dir() || inode.kind() == FileKind::Symlink {
            self.check_write(ino, &inode, space)?;
        }
        if !self.delete_xattr(ino, &mut inode, name)? {
            // To remove an ACL is to go back to the mode, which is where a file without one is already.
            return if acl { Ok(Reply::Done) } else { Err(Errno::ENODATA.into()) };
        }
        self.touch_inode(ino, &mut inode)?;
        self.put_inode(ino, &inode)?;
        Ok(Reply::Done)
    }

    /// Errors: EPERM, EACCES, EOPNOTSUPP.
    fn check_write(&self, ino: Ino, inode: &Inode, space: Space) -> Done<()> {
        let caller = &self.ctx.caller;
        let kind = inode.kind();
        match space {
            Space::User => {
                let plain = matches!(kind, FileKind::File | FileKind::Dir);
                let sticky = kind == FileKind::Dir && inode.mode & S_ISVTX != 0;
                if !plain || (sticky && !owns(caller, inode)) {
                    return Err(Errno::EPERM.into());
                }
                self.look().allow(ino, inode, WRITE)
            }
            Space::Trusted | Space::Security if caller.uid != 0 => Err(Errno::EPERM.into()),
            Space::Access | Space::Default if kind == FileKind::Symlink => Err(Errno::EOPNOTSUPP.into()),
            Space::Access | Space::Default if !owns(caller, inode) => Err(Errno::EPERM.into()),
            _ => Ok(()),
        }
    }

    /// An access ACL sets the mode; one that says no more than a mode is none.
    fn set_access(&mut self, ino: Ino, inode: &mut Inode, value: &Bytes) -> Done<()> {
        let Some(acl) = Acl::parse(value)? else {
            self.delete_xattr(ino, inode, ACCESS)?;
            return Ok(());
        };
        if acl.is_minimal() {
            self.delete_xattr(ino, inode, ACCESS)?;
        } else {
            let name = Bytes::from_static(ACCESS);
            self.put_xattr(ino, inode, &name, &acl.encode().into(), XattrMode::Any)?;
            inode.flags |= Inode::HAS_ACL;
        }
        self.change_mode(ino, inode, inode.mode & !0o777 | acl.mode())
    }

    fn set_default(&mut self, ino: Ino, inode: &mut Inode, value: &Bytes) -> Done<()> {
        match Acl::parse(value)? {
            None => {
                self.delete_xattr(ino, inode, DEFAULT)?;
            }
            Some(acl) => {
                let name = Bytes::from_static(DEFAULT);
                self.put_xattr(ino, inode, &name, &acl.encode().into(), XattrMode::Any)?;
                inode.flags |= Inode::HAS_DEFAULT_ACL;
            }
        }
        Ok(())
    }

    /// Errors: EEXIST, ENODATA, ENOSPC.
    fn put_xattr(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
    ) -> Done<()> {
        let row = Xattr { flags: 0, name: name.clone(), value: value.clone() };
        let search = self.look().find_xattr(ino, name)?;
        match search.hit {
            Some(_) if mode == XattrMode::Create => return Err(Errno::EEXIST.into()),
            None if mode == XattrMode::Replace => return Err(Errno::ENODATA.into()),
            Some((position, old)) => slots::replace(&mut self.txn, ino, position, old.flags, row)?,
            None => {
                let free = search.free.ok_or(Errno::ENOSPC)?;
                slots::insert(&mut self.txn, ino, free, row)?;
                inode.flags |= Inode::HAS_XATTR;
            }
        }
        Ok(())
    }

    /// Removes an attribute and the flags that say it is there; the caller puts the inode. Whether it was there.
    fn delete_xattr(&mut self, ino: Ino, inode: &mut Inode, name: &[u8]) -> Done<bool> {
        if inode.flags & Inode::HAS_XATTR == 0 {
            return Ok(false);
        }
        let Some((position, row)) = self.look().find_xattr(ino, name)?.hit else { return Ok(false) };
        slots::remove::<Xattr, _>(&mut self.txn, ino, position, row.flags)?;
        match name {
            ACCESS => inode.flags &= !Inode::HAS_ACL,
            DEFAULT => inode.flags &= !Inode::HAS_DEFAULT_ACL,
            _ => {}
        }
        if !self.sweep_xattrs(ino)? {
            inode.flags &= !Inode::HAS_XATTR;
        }
        Ok(true)
    }

    /// Whether attributes are left. If none are, their tombstones go.
    fn sweep_xattrs(&mut self, ino: Ino) -> Result<bool, ReadStop> {
        let mut tombstones = Vec::new();
        let mut start = Vec::new();
        loop {
            let page = self.tables().scan(XATTR, &ino_key(ino), &start, PAGE)?;
            for (key, row) in &page {
                if !Xattr::decode(XATTR, key, &row.value)?.is_tombstone() {
                    return Ok(true);
                }
                tombstones.push(key.clone());
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => start = [&key[8..], &[0]].concat(),
                _ => break,
            }
        }
        for key in tombstones {
            self.txn.delete(XATTR, &key)?;
        }
        Ok(false)
    }

    /// A file whose content or owner changes loses its capabilities; the caller puts the inode.
    pub(crate) fn drop_capability(&mut self, ino: Ino, inode: &mut Inode) -> Done<()> {
        self.delete_xattr(ino, inode, CAPABILITY)?;
        Ok(())
    }
}
