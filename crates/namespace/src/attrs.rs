//! setattr: chmod, chown, utimensat, truncate.

use crate::acl::{ACCESS, Acl};
use crate::ctx::Done;
use crate::look::{Look, S_ISGID, WRITE, owns, without_privileges};
use crate::op::Op;
use crate::rows::{Body, Inode, Xattr};
use crate::slots;
use chronofs_core::ops::Reply;
use chronofs_core::{Caller, Errno, FileKind, Ino, SetAttr, SetTime};
use chronofs_engine::Reads;

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Done<Reply> {
        let look = self.look();
        let mut inode = look.named(ino)?;
        if *set == (SetAttr { by_handle: set.by_handle, ..SetAttr::default() }) {
            return Ok(Reply::Attr(look.attr_of(ino, &inode)?));
        }
        check(&look, ino, &inode, set)?;
        let before = inode.clone();
        if let Some(size) = set.size {
            self.resize(ino, &mut inode, size)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.change_owner(ino, &mut inode, set)?;
        }
        if set.kill_priv && !inode.is_dir() {
            inode.mode = without_privileges(&self.ctx.caller, inode.mode, inode.gid);
            self.drop_capability(ino, &mut inode)?;
        }
        if let Some(mode) = set.mode {
            self.change_mode(ino, &mut inode, mode)?;
        }
        self.change_times(ino, &mut inode, set)?;
        if inode != before {
            self.put_inode(ino, &inode)?;
        }
        Ok(Reply::Attr(self.look().attr_of(ino, &inode)?))
    }

    /// As on Linux a file loses its privileges whoever changes the owner.
    fn change_owner(&mut self, ino: Ino, inode: &mut Inode, set: &SetAttr) -> Done<()> {
        if !inode.is_dir() {
            inode.mode = without_privileges(&self.ctx.caller, inode.mode, inode.gid);
            self.drop_capability(ino, inode)?;
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        Ok(())
    }

    pub(crate) fn change_mode(&mut self, ino: Ino, inode: &mut Inode, mode: u16) -> Done<()> {
        let caller = &self.ctx.caller;
        let outsider = caller.uid != 0 && !caller.in_group(inode.gid);
        inode.mode = mode & 0o7777 & if outsider { !S_ISGID } else { !0 };
        if inode.flags & Inode::HAS_ACL == 0 {
            return Ok(());
        }
        let Some((position, row)) = self.look().find_xattr(ino, ACCESS)?.hit else { return Ok(()) };
        let Some(mut acl) = Acl::parse(&row.value)? else { return Ok(()) };
        acl.set_mode(inode.mode);
        let changed = Xattr { flags: 0, name: row.name.clone(), value: acl.encode().into() };
        Ok(slots::replace(&mut self.txn, ino, position, row.flags, changed)?)
    }

    fn change_times(&mut self, ino: Ino, inode: &mut Inode, set: &SetAttr) -> Done<()> {
        let now_ns = self.now_ns();
        let at_ns = |time: SetTime| match time {
            SetTime::Now => now_ns,
            SetTime::At(time_ns) => time_ns,
        };
        inode.atime_ns = set.atime.map_or(inode.atime_ns, at_ns);
        let mtime_ns = set.mtime.map(at_ns);
        match inode.node_mut() {
            Some(node) => {
                node.mtime_ns = mtime_ns.unwrap_or(node.mtime_ns);
                node.ctime_ns = now_ns;
            }
            None => self.change_dir(ino, |dir| {
                dir.mtime_ns = mtime_ns.unwrap_or(dir.mtime_ns);
                dir.ctime_ns = now_ns;
            })?,
        }
        Ok(())
    }
}

/// Whether the caller may change all that. Errors: EISDIR, EINVAL, EPERM, EACCES.
fn check<R: Reads + Copy>(look: &Look<'_, R>, ino: Ino, inode: &Inode, set: &SetAttr) -> Done<()> {
    let caller = &look.ctx.caller;
    if set.size.is_some() {
        match inode.kind() {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if !set.by_handle {
            look.allow(ino, inode, WRITE)?;
        }
    }
    if (set.mode.is_some() && !owns(caller, inode)) || !may_chown(caller, inode, set) {
        return Err(Errno::EPERM.into());
    }
    if !owns(caller, inode) {
        // Who may write may set both times to the present and nothing else, but what a truncation does to them
        // comes with the right to the size, which was asked for above.
        let both_now = (set.atime, set.mtime) == (Some(SetTime::Now), Some(SetTime::Now));
        let with_size =
            set.size.is_some() && !matches!(set.mtime, Some(SetTime::At(_))) && set.atime.is_none();
        if both_now {
            look.allow(ino, inode, WRITE)?;
        } else if !with_size && (set.atime.is_some() || set.mtime.is_some()) {
            return Err(Errno::EPERM.into());
        }
    }
    debug_assert!(set.size.is_none() || matches!(inode.body, Body::File { .. }));
    Ok(())
}

/// Root may give away; an owner may choose among its groups.
fn may_chown(caller: &Caller, inode: &Inode, set: &SetAttr) -> bool {
    let uid_ok = set.uid.is_none_or(|uid| caller.uid == inode.uid && uid == inode.uid);
    let gid_ok =
        set.gid.is_none_or(|gid| caller.uid == inode.uid && (gid == inode.gid || caller.in_group(gid)));
    caller.uid == 0 || (uid_ok && gid_ok)
}
