//! Names that go: unlink and rmdir.

use crate::ctx::Done;
use crate::look::{EXEC, WRITE, check_sticky};
use crate::op::Op;
use crate::rows::{Entry, Inode};
use crate::slots;
use chronofs_core::name::Position;
use chronofs_core::ops::Reply;
use chronofs_core::{Errno, Ino, Name};
use chronofs_engine::Reads;

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn unlink(&mut self, parent: Ino, name: &Name) -> Done<Reply> {
        let (position, entry, inode) = self.removable(parent, name)?;
        if inode.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        slots::remove::<Entry, _>(&mut self.txn, parent, position, entry.flags)?;
        self.drop_link(entry.ino, inode, parent, position)?;
        self.touch_dir(parent, -1, 0)?;
        Ok(Reply::Done)
    }

    pub(crate) fn rmdir(&mut self, parent: Ino, name: &Name) -> Done<Reply> {
        let (position, entry, inode) = self.removable(parent, name)?;
        if !inode.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if self.look().dir(entry.ino)?.0.entries > 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        slots::remove::<Entry, _>(&mut self.txn, parent, position, entry.flags)?;
        self.drop_dir(entry.ino, &inode)?;
        self.touch_dir(parent, -1, -1)?;
        Ok(Reply::Done)
    }

    /// The entry, which the caller may remove.
    fn removable(&self, parent: Ino, name: &Name) -> Done<(Position, Entry, Inode)> {
        let look = self.look();
        let dir_inode = look.named_dir(parent)?;
        look.allow(parent, &dir_inode, EXEC)?;
        let (position, entry) = look.find(parent, name)?.hit.ok_or(Errno::ENOENT)?;
        look.allow(parent, &dir_inode, WRITE | EXEC)?;
        let inode = look.target(entry.ino)?;
        check_sticky(&self.ctx.caller, &dir_inode, &inode)?;
        Ok((position, entry, inode))
    }
}
