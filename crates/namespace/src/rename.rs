//! rename(2) and its flags.

use crate::ctx::Done;
use crate::look::{EXEC, S_ISGID, WRITE, check_sticky};
use crate::op::{LINKS_MAX, Op};
use crate::rows::{Body, Entry, Format, INODE, Inode, Node, ino_key};
use crate::slots;
use bytes::Bytes;
use chronofs_core::name::Position;
use chronofs_core::ops::{RenameMode, Reply};
use chronofs_core::{Errno, FileKind, Ino, Name};
use chronofs_engine::Reads;

/// One of the two names, with what it names.
struct Side {
    dir: Ino,
    dir_inode: Inode,
    position: Position,
    entry: Entry,
    inode: Inode,
}

impl<R: Reads + ?Sized> Op<'_, R> {
    pub(crate) fn rename(
        &mut self,
        from: Ino,
        name: &Name,
        to: Ino,
        new_name: &Name,
        mode: RenameMode,
    ) -> Done<Reply> {
        let from_inode = self.searchable(from)?;
        let to_inode = self.searchable(to)?;
        let source = self.side(from, from_inode, name)?.ok_or(Errno::ENOENT)?;
        let target = self.side(to, to_inode.clone(), new_name)?;
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        self.check_loops(&source, to, target.as_ref(), mode)?;
        if target.as_ref().is_some_and(|target| target.entry.ino == source.entry.ino) {
            return Ok(Reply::Done);
        }
        self.check_rights(&source, to, &to_inode, target.as_ref(), mode)?;
        self.check_links(&source, to, target.as_ref(), mode)?;
        match target {
            Some(target) if mode == RenameMode::Exchange => self.exchange(source, target)?,
            target => self.replace(source, to, new_name, target, mode)?,
        }
        Ok(Reply::Done)
    }

    fn searchable(&self, dir: Ino) -> Done<Inode> {
        let look = self.look();
        let inode = look.named_dir(dir)?;
        look.allow(dir, &inode, EXEC)?;
        Ok(inode)
    }

    fn side(&self, dir: Ino, dir_inode: Inode, name: &Name) -> Done<Option<Side>> {
        let look = self.look();
        let Some((position, entry)) = look.find(dir, name)?.hit else { return Ok(None) };
        let inode = look.target(entry.ino)?;
        Ok(Some(Side { dir, dir_inode, position, entry, inode }))
    }

    /// No directory may come to lie in itself, and none is replaced by what lies in it.
    fn check_loops(&self, source: &Side, to: Ino, target: Option<&Side>, mode: RenameMode) -> Done<()> {
        if source.dir == to {
            return Ok(());
        }
        let look = self.look();
        if source.inode.is_dir() && look.is_below(to, source.entry.ino)? {
            return Err(Errno::EINVAL.into());
        }
        if let Some(target) = target
            && target.inode.is_dir()
            && look.is_below(source.dir, target.entry.ino)?
        {
            let errno = if mode == RenameMode::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY };
            return Err(errno.into());
        }
        Ok(())
    }

    fn check_rights(
        &self,
        source: &Side,
        to: Ino,
        to_inode: &Inode,
        target: Option<&Side>,
        mode: RenameMode,
    ) -> Done<()> {
        let look = self.look();
        let caller = &self.ctx.caller;
        look.allow(source.dir, &source.dir_inode, WRITE | EXEC)?;
        check_sticky(caller, &source.dir_inode, &source.inode)?;
        look.allow(to, to_inode, WRITE | EXEC)?;
        let exchange = mode == RenameMode::Exchange;
        match target {
            None if look.dir(to)?.0.nlink == 0 => return Err(Errno::ENOENT.into()),
            None => {}
            Some(target) => {
                check_sticky(caller, to_inode, &target.inode)?;
                match (source.inode.is_dir(), target.inode.is_dir()) {
                    (true, false) if !exchange => return Err(Errno::ENOTDIR.into()),
                    (false, true) if !exchange => return Err(Errno::EISDIR.into()),
                    _ => {}
                }
            }
        }
        // A directory that moves gets another `..`, which is a change of it.
        if source.dir != to {
            let moved_back = target.filter(|_| exchange);
            for side in [Some(source), moved_back].into_iter().flatten() {
                if side.inode.is_dir() {
                    look.allow(side.entry.ino, &side.inode, WRITE)?;
                }
            }
        }
        Ok(())
    }

    fn check_links(&self, source: &Side, to: Ino, target: Option<&Side>, mode: RenameMode) -> Done<()> {
        let look = self.look();
        let exchange = mode == RenameMode::Exchange;
        let target_dir = target.filter(|target| target.inode.is_dir());
        let gains = |dir: Ino| -> Done<()> {
            if look.dir(dir)?.0.nlink >= LINKS_MAX { Err(Errno::EMLINK.into()) } else { Ok(()) }
        };
        if source.dir != to {
            if source.inode.is_dir() && target_dir.is_none() {
                gains(to)?;
            }
            if exchange && target_dir.is_some() && !source.inode.is_dir() {
                gains(source.dir)?;
            }
        }
        match target_dir {
            Some(target) if !exchange && look.dir(target.entry.ino)?.0.entries > 0 => {
                Err(Errno::ENOTEMPTY.into())
            }
            _ => Ok(()),
        }
    }

    /// The source takes the target's name; what had it loses it.
    fn replace(
        &mut self,
        mut source: Side,
        to: Ino,
        new_name: &Name,
        target: Option<Side>,
        mode: RenameMode,
    ) -> Done<()> {
        let ino = source.entry.ino;
        let is_dir = source.inode.is_dir();
        if mode == RenameMode::Whiteout {
            self.leave_whiteout(&source)?;
        } else {
            slots::remove::<Entry, _>(&mut self.txn, source.dir, source.position, source.entry.flags)?;
        }
        let target_is_dir = target.as_ref().is_some_and(|target| target.inode.is_dir());
        let entries = i64::from(target.is_none());
        // Found anew: taking away the source may have changed flags and slots of the same hash.
        let search = self.look().find(to, new_name)?;
        let entry = Entry {
            flags: 0,
            kind: source.entry.kind,
            ino,
            name: Bytes::copy_from_slice(new_name.as_bytes()),
        };
        let position = match search.hit {
            Some((position, old)) => {
                slots::replace(&mut self.txn, to, position, old.flags, entry)?;
                position
            }
            None => {
                let free = search.free.ok_or(Errno::ENOSPC)?;
                let position = free.position;
                slots::insert(&mut self.txn, to, free, entry)?;
                position
            }
        };
        if let Some(target) = target {
            if target_is_dir {
                self.drop_dir(target.entry.ino, &target.inode)?;
            } else {
                self.drop_link(target.entry.ino, target.inode, to, position)?;
            }
        }
        self.move_link(ino, &mut source.inode, (source.dir, source.position), (to, position))?;
        self.touch_inode(ino, &mut source.inode)?;
        self.put_inode(ino, &source.inode)?;
        let left = if mode == RenameMode::Whiteout { 0 } else { -1 };
        self.touch_dir(source.dir, left, -i32::from(is_dir))?;
        self.touch_dir(to, entries, i32::from(is_dir) - i32::from(target_is_dir))
    }

    /// A character device 0:0 takes the source's place.
    fn leave_whiteout(&mut self, source: &Side) -> Done<()> {
        let ino = self.new_ino()?;
        let now_ns = self.now_ns();
        let node = Node { nlink: 1, mtime_ns: now_ns, ctime_ns: now_ns };
        let inode = Inode {
            flags: 0,
            mode: 0,
            uid: self.ctx.caller.uid,
            gid: if source.dir_inode.mode & S_ISGID != 0 {
                source.dir_inode.gid
            } else {
                self.ctx.caller.gid
            },
            parent: source.dir,
            position: source.position,
            crtime_ns: now_ns,
            atime_ns: now_ns,
            body: Body::Special { node, kind: FileKind::Char, rdev: 0 },
        };
        self.txn.insert(INODE, &ino_key(ino), &inode.encode()?);
        let entry = Entry { flags: 0, kind: FileKind::Char, ino, name: source.entry.name.clone() };
        Ok(slots::replace(&mut self.txn, source.dir, source.position, source.entry.flags, entry)?)
    }

    /// Both names stay, what they name changes places.
    fn exchange(&mut self, mut source: Side, mut target: Side) -> Done<()> {
        let source_at = (source.dir, source.position);
        let target_at = (target.dir, target.position);
        for (at, old, new) in
            [(source_at, &source.entry, &target.entry), (target_at, &target.entry, &source.entry)]
        {
            let entry = Entry { flags: 0, kind: new.kind, ino: new.ino, name: old.name.clone() };
            slots::replace(&mut self.txn, at.0, at.1, old.flags, entry)?;
        }
        for (side, from, to) in [(&mut source, source_at, target_at), (&mut target, target_at, source_at)] {
            let ino = side.entry.ino;
            self.move_link(ino, &mut side.inode, from, to)?;
            self.touch_inode(ino, &mut side.inode)?;
            self.put_inode(ino, &side.inode)?;
        }
        let subdirs = i32::from(target.inode.is_dir()) - i32::from(source.inode.is_dir());
        self.touch_dir(source.dir, 0, subdirs)?;
        self.touch_dir(target.dir, 0, -subdirs)
    }
}
