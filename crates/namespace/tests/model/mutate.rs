//! What each mutation does, by the rules of Linux, in the order in which Linux looks at them.

use crate::acl::{self, Acl};
use crate::state::*;
use chronofs_core::ops::{NewNode, RenameMode, Reply, Request, XattrMode};
use chronofs_core::slice::{NewSlice, Place};
use chronofs_core::{Caller, Errno, FileKind, Ino, Name, SetAttr, SetTime, Version};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a session may see: what lies below `root`, and of what has no links what is open.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub root: Ino,
    pub is_open: &'a dyn Fn(Ino) -> bool,
}

/// Around a request.
pub struct Around<'a> {
    pub caller: &'a Caller,
    pub now: Version,
    pub scope: Scope<'a>,
    pub read_only: bool,
    pub block_size: u64,
    /// The inode number that the namespace gave to what the request makes.
    pub given: &'a dyn Fn() -> Ino,
    /// The bytes that a slice shows.
    pub bytes_of: &'a dyn Fn(&NewSlice) -> Vec<u8>,
    /// The content of the block as the client read it that merges it, and when.
    pub merged: Option<(&'a BTreeMap<u64, u8>, Version)>,
    /// Whether the namespace refused the merge.
    pub merge_refused: bool,
}

type Answer = Result<Reply, Errno>;

impl State {
    pub fn mutate(&mut self, around: &Around<'_>, request: &Request) -> Answer {
        if around.read_only {
            return Err(Errno::EROFS);
        }
        self.version = around.now;
        match request {
            Request::Create { .. } => self.create(around, request),
            Request::Link { ino, parent, name } => self.link(around, *ino, *parent, name),
            Request::Unlink { parent, name } => self.unlink(around, *parent, name, false),
            Request::Rmdir { parent, name } => self.unlink(around, *parent, name, true),
            Request::Rename { from, name, to, new_name, mode } => {
                self.rename(around, (*from, name), (*to, new_name), *mode)
            }
            Request::SetAttr { ino, set } => self.set_attr(around, *ino, set),
            Request::SetXattr { ino, name, value, mode } => self.set_xattr(around, *ino, name, value, *mode),
            Request::RemoveXattr { ino, name } => self.remove_xattr(around, *ino, name),
            Request::Publish { .. } => self.publish(around, request),
            _ => panic!("the generator makes no {request:?}"),
        }
    }

    /// Every inode named lies below the root of the session's scope.
    pub fn in_scope(&self, scope: Scope<'_>, ino: Ino) -> Result<(), Errno> {
        let node = self.node(ino)?;
        if scope.root == Ino::ROOT || scope.root == ino {
            return Ok(());
        }
        let links = self.links(ino);
        let inside = match node.is_dir() {
            true => self.below(ino, scope.root),
            false if links.is_empty() => (scope.is_open)(ino),
            false => links.into_iter().any(|dir| self.below(dir, scope.root)),
        };
        if inside { Ok(()) } else { Err(OUTSIDE) }
    }

    /// A directory to look a name up in: search permission comes first.
    fn searchable(&self, around: &Around<'_>, dir: Ino) -> Result<&Node, Errno> {
        self.in_scope(around.scope, dir)?;
        let node = self.dir(dir)?;
        node.check(around.caller, X)?;
        Ok(node)
    }

    /// A directory that gets a name.
    fn may_add(&self, caller: &Caller, dir: &Node) -> Result<(), Errno> {
        dir.check(caller, W | X)?;
        if dir.removed { Err(Errno::ENOENT) } else { Ok(()) }
    }

    fn may_remove(&self, caller: &Caller, dir: &Node, victim: Ino, as_dir: bool) -> Result<(), Errno> {
        dir.check(caller, W | X)?;
        let node = self.node(victim)?;
        if dir.mode & STICKY != 0 && !node.owned_by(caller) && !dir.owned_by(caller) {
            return Err(Errno::EPERM);
        }
        match (as_dir, node.is_dir()) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            _ => Ok(()),
        }
    }

    fn touch_dir(&mut self, dir: Ino, now: Version) {
        let node = self.node_mut(dir);
        (node.mtime_ns, node.ctime_ns, node.data_version) =
            (now.as_file_time_ns(), now.as_file_time_ns(), now);
    }

    fn put_entry(&mut self, dir: Ino, name: &Name, child: Ino) {
        self.node_mut(dir).entries.insert(name.as_bytes().to_vec().into(), child);
        if self.nodes[&child].is_dir() {
            self.node_mut(child).parent = dir;
        }
    }

    /// `child` has just lost an entry.
    fn unlinked(&mut self, around: &Around<'_>, child: Ino) {
        let node = self.node_mut(child);
        node.ctime_ns = around.now.as_file_time_ns();
        node.removed = node.is_dir();
        if self.nlink(child, &self.nodes[&child]) == 0 && !(around.scope.is_open)(child) {
            self.nodes.remove(&child);
        }
    }

    /// What the server does when the last open of an inode without links has ended.
    pub fn reap(&mut self, ino: Ino, open: bool) {
        if !open && self.nodes.get(&ino).is_some_and(|node| self.nlink(ino, node) == 0) {
            self.nodes.remove(&ino);
        }
    }

    fn create(&mut self, around: &Around<'_>, request: &Request) -> Answer {
        let Request::Create { parent, name, node: what, mode, umask, open, exclusive } = request else {
            panic!("a create")
        };
        let dir = self.searchable(around, *parent)?;
        if let Some(found) = self.child(dir, name.as_bytes()) {
            let node = self.node(found)?;
            if *exclusive || *what != NewNode::File {
                return Err(Errno::EEXIST);
            }
            match node.kind {
                FileKind::File => {}
                FileKind::Dir => return Err(Errno::EISDIR),
                _ => return Err(Errno::EEXIST),
            }
            if !node.may(around.caller, R) {
                node.check(around.caller, W)?;
            }
            return Ok(opened(self.attr(found)?, *open));
        }
        self.may_add(around.caller, dir)?;
        let device = matches!(what, NewNode::Char(1..) | NewNode::Block(_));
        if device && around.caller.uid != 0 {
            return Err(Errno::EPERM);
        }
        let node = made(dir, around, what, *mode, *umask);
        if self.max_inodes.is_some_and(|max| self.used_inodes() + 1 > max) {
            return Err(FULL);
        }
        let ino = (around.given)();
        self.nodes.insert(ino, Arc::new(node));
        self.put_entry(*parent, name, ino);
        self.touch_dir(*parent, around.now);
        Ok(opened(self.attr(ino)?, *open))
    }

    fn link(&mut self, around: &Around<'_>, ino: Ino, parent: Ino, name: &Name) -> Answer {
        self.in_scope(around.scope, ino)?;
        let dir = self.searchable(around, parent)?;
        if self.child(dir, name.as_bytes()).is_some() {
            return Err(Errno::EEXIST);
        }
        self.may_add(around.caller, dir)?;
        let node = self.node(ino)?;
        if node.is_dir() {
            return Err(Errno::EPERM);
        }
        if self.nlink(ino, node) == 0 {
            return Err(Errno::ENOENT);
        }
        self.put_entry(parent, name, ino);
        self.node_mut(ino).ctime_ns = around.now.as_file_time_ns();
        self.touch_dir(parent, around.now);
        Ok(Reply::Attr(self.attr(ino)?))
    }

    fn unlink(&mut self, around: &Around<'_>, parent: Ino, name: &Name, as_dir: bool) -> Answer {
        let dir = self.searchable(around, parent)?;
        let victim = self.child(dir, name.as_bytes()).ok_or(Errno::ENOENT)?;
        self.may_remove(around.caller, dir, victim, as_dir)?;
        if as_dir && !self.node(victim)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.node_mut(parent).entries.remove(name.as_bytes());
        self.touch_dir(parent, around.now);
        self.unlinked(around, victim);
        Ok(Reply::Done)
    }

    fn rename(
        &mut self,
        around: &Around<'_>,
        (from, name): (Ino, &Name),
        (to, new_name): (Ino, &Name),
        mode: RenameMode,
    ) -> Answer {
        let old_dir = self.searchable(around, from)?;
        let new_dir = self.searchable(around, to)?;
        let source = self.child(old_dir, name.as_bytes()).ok_or(Errno::ENOENT)?;
        let target = self.child(new_dir, new_name.as_bytes());
        let exchange = mode == RenameMode::Exchange;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.below(to, source) {
            return Err(Errno::EINVAL);
        }
        if target.is_some_and(|target| self.below(from, target)) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(Reply::Done);
        }
        self.may_rename(around.caller, (from, source), (to, target), exchange)?;
        if let Some(target) = target
            && !exchange
            && !self.node(target)?.entries.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        let whiteout = mode == RenameMode::Whiteout;
        if whiteout && self.max_inodes.is_some_and(|max| self.used_inodes() + 1 > max) {
            return Err(FULL);
        }
        self.node_mut(from).entries.remove(name.as_bytes());
        self.put_entry(to, new_name, source);
        self.node_mut(source).ctime_ns = around.now.as_file_time_ns();
        match target {
            Some(target) if exchange => {
                self.put_entry(from, name, target);
                self.node_mut(target).ctime_ns = around.now.as_file_time_ns();
            }
            Some(target) => self.unlinked(around, target),
            None => {}
        }
        if whiteout {
            let mut node = made(&self.nodes[&from], around, &NewNode::Char(0), 0, 0);
            (node.acl, node.mode) = (None, 0);
            let ino = (around.given)();
            self.nodes.insert(ino, Arc::new(node));
            self.put_entry(from, name, ino);
        }
        self.touch_dir(from, around.now);
        self.touch_dir(to, around.now);
        Ok(Reply::Done)
    }

    fn may_rename(
        &self,
        caller: &Caller,
        (from, source): (Ino, Ino),
        (to, target): (Ino, Option<Ino>),
        exchange: bool,
    ) -> Result<(), Errno> {
        let source_is_dir = self.node(source)?.is_dir();
        self.may_remove(caller, self.node(from)?, source, source_is_dir)?;
        match target {
            None => self.may_add(caller, self.node(to)?)?,
            Some(target) => {
                let as_dir = if exchange { self.node(target)?.is_dir() } else { source_is_dir };
                self.may_remove(caller, self.node(to)?, target, as_dir)?;
            }
        }
        // A directory that gets another parent has its `..` written.
        if from != to {
            let moved = [Some(source), target.filter(|_| exchange)];
            for node in moved.into_iter().flatten().map(|ino| self.node(ino)) {
                if node?.is_dir() {
                    node?.check(caller, W)?;
                }
            }
        }
        Ok(())
    }

    fn set_attr(&mut self, around: &Around<'_>, ino: Ino, set: &SetAttr) -> Answer {
        self.in_scope(around.scope, ino)?;
        let (caller, node) = (around.caller, self.node(ino)?);
        if let Some(size) = set.size {
            match node.kind {
                FileKind::File => {}
                FileKind::Dir => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
            if !set.by_handle {
                node.check(caller, W)?;
            }
            if size > around.block_size << 32 {
                return Err(Errno::EFBIG);
            }
        }
        let owner = node.owned_by(caller);
        let chown = set.uid.is_some_and(|uid| caller.uid != 0 && !(owner && uid == node.uid));
        let chgrp = set
            .gid
            .is_some_and(|gid| caller.uid != 0 && !(owner && (gid == node.gid || caller.in_group(gid))));
        if chown || chgrp || set.mode.is_some() && !owner {
            return Err(Errno::EPERM);
        }
        match (set.atime, set.mtime) {
            (None, None) => {}
            (Some(SetTime::Now), Some(SetTime::Now)) if !owner => node.check(caller, W)?,
            _ if owner => {}
            _ => return Err(Errno::EPERM),
        }
        self.change_attr(around, ino, set);
        Ok(Reply::Attr(self.attr(ino)?))
    }

    fn change_attr(&mut self, around: &Around<'_>, ino: Ino, set: &SetAttr) {
        let (caller, now) = (around.caller, around.now);
        let now_ns = now.as_file_time_ns();
        let node = self.node_mut(ino);
        if let Some(size) = set.size {
            node.resize(size, now);
            node.mtime_ns = now_ns;
        }
        if (set.uid.is_some() || set.gid.is_some()) && !node.is_dir() {
            node.drop_privileges(caller);
        }
        if set.kill_priv {
            node.drop_privileges(caller);
        }
        node.uid = set.uid.unwrap_or(node.uid);
        node.gid = set.gid.unwrap_or(node.gid);
        if let Some(mode) = set.mode {
            node.mode = mode;
            if !node.keeps_sgid(caller) {
                node.mode &= !SGID;
            }
            if let Some(acl) = &mut node.acl {
                acl.chmod(mode);
            }
        }
        let time = |set| match set {
            SetTime::Now => now_ns,
            SetTime::At(ns) => ns,
        };
        node.atime_ns = set.atime.map_or(node.atime_ns, time);
        node.mtime_ns = set.mtime.map_or(node.mtime_ns, time);
        node.ctime_ns = now_ns;
    }

    fn set_xattr(
        &mut self,
        around: &Around<'_>,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Answer {
        self.in_scope(around.scope, ino)?;
        check_xattr_name(name)?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(around, ino, name, Acl::parse(value)?);
        }
        self.node(ino)?.may_xattr(around.caller, name, W)?;
        match (mode, self.node(ino)?.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EEXIST),
            (XattrMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = self.node_mut(ino);
        node.xattrs.insert(name.to_vec().into(), value.to_vec().into());
        node.ctime_ns = around.now.as_file_time_ns();
        Ok(Reply::Done)
    }

    fn remove_xattr(&mut self, around: &Around<'_>, ino: Ino, name: &[u8]) -> Answer {
        self.in_scope(around.scope, ino)?;
        check_xattr_name(name)?;
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(around, ino, name, None);
        }
        self.node(ino)?.may_xattr(around.caller, name, W)?;
        let node = self.node_mut(ino);
        node.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        node.ctime_ns = around.now.as_file_time_ns();
        Ok(Reply::Done)
    }

    fn set_acl(&mut self, around: &Around<'_>, ino: Ino, name: &[u8], acl: Option<Acl>) -> Answer {
        let node = self.node(ino)?;
        if node.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        if name == acl::DEFAULT && !node.is_dir() {
            return if acl.is_some() { Err(Errno::EACCES) } else { Ok(Reply::Done) };
        }
        if !node.owned_by(around.caller) {
            return Err(Errno::EPERM);
        }
        if acl.as_ref().is_some_and(|acl| !acl.valid()) {
            return Err(Errno::EINVAL);
        }
        let there = if name == acl::DEFAULT { &node.default_acl } else { &node.acl };
        if acl.is_none() && there.is_none() {
            return Ok(Reply::Done);
        }
        let node = self.node_mut(ino);
        if name == acl::DEFAULT {
            node.default_acl = acl;
        } else {
            if let Some(acl) = &acl {
                node.mode = node.mode & !0o777 | acl.mode();
                if !node.keeps_sgid(around.caller) {
                    node.mode &= !SGID;
                }
            }
            node.acl = acl.filter(Acl::extended);
        }
        node.ctime_ns = around.now.as_file_time_ns();
        Ok(Reply::Done)
    }

    fn publish(&mut self, around: &Around<'_>, request: &Request) -> Answer {
        let Request::Publish { ino, slices, size_min, mtime_ns, kill_priv, merge } = request else {
            panic!("a publish")
        };
        self.in_scope(around.scope, *ino)?;
        let old = self.node(*ino)?;
        match old.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let (now, now_ns) = (around.now, around.now.as_file_time_ns());
        let mut node = old.clone();
        node.written = now;
        if let Some(merge) = merge {
            let start = u64::from(merge.block) * around.block_size;
            let mut rest = node.content.split_off(&start);
            let after = rest.split_off(&(start + around.block_size));
            let (read, read_at) = around.merged.expect("a merge comes with what was read");
            // What changed must not come back. What is as it was may be refused if something happened in between.
            if *read != rest || old.written > read_at && around.merge_refused {
                return Err(Errno::EAGAIN);
            }
            node.content.extend(after);
        }
        for new in slices {
            node.write(new, around);
        }
        if merge.is_none() {
            if !slices.is_empty() {
                node.data_version = now;
            }
            if let Some(size) = size_min.filter(|size| *size > node.size) {
                (node.size, node.data_version) = (size, now);
            }
            if let Some(mtime_ns) = mtime_ns {
                node.mtime_ns = (*mtime_ns).min(now_ns);
            }
            node.ctime_ns = now_ns;
            if *kill_priv {
                node.drop_privileges(around.caller);
            }
        }
        let grows = node.content.len() > old.content.len();
        let used = self.used_bytes() - old.content.len() as u64 + node.content.len() as u64;
        if grows && self.max_bytes.is_some_and(|max| used > max) {
            return Err(FULL);
        }
        self.nodes.insert(*ino, Arc::new(node));
        Ok(Reply::Attr(self.attr(*ino)?))
    }
}

impl Node {
    /// Whether `caller` may read or write the extended attribute `name`.
    pub fn may_xattr(&self, caller: &Caller, name: &[u8], want: u16) -> Result<(), Errno> {
        let refuse = |errno| Err(if want == W { errno } else { Errno::ENODATA });
        if name.starts_with(b"trusted.") {
            return if caller.uid == 0 { Ok(()) } else { refuse(Errno::EPERM) };
        }
        if name.starts_with(b"security.") {
            return if caller.uid == 0 || want == R { Ok(()) } else { Err(Errno::EPERM) };
        }
        if !matches!(self.kind, FileKind::File | FileKind::Dir) {
            return refuse(Errno::EPERM);
        }
        if self.is_dir() && self.mode & STICKY != 0 && want == W && !self.owned_by(caller) {
            return Err(Errno::EPERM);
        }
        self.check(caller, want)
    }

    fn write(&mut self, new: &NewSlice, around: &Around<'_>) {
        let start = u64::from(new.block) * around.block_size + u64::from(new.slice.offset);
        let end = start + u64::from(new.slice.len);
        match new.slice.place {
            Place::Hole => self.content = covered(&self.content, start, end),
            _ => self.content.extend((start..end).zip((around.bytes_of)(new))),
        }
        if new.slice.place != Place::Hole {
            self.size = self.size.max(end);
        }
    }
}

/// `content` with a hole from `start` to `end`.
fn covered(content: &BTreeMap<u64, u8>, start: u64, end: u64) -> BTreeMap<u64, u8> {
    content.iter().filter(|(at, _)| !(start..end).contains(*at)).map(|(at, byte)| (*at, *byte)).collect()
}

pub fn check_xattr_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > 255 {
        return Err(Errno::ERANGE);
    }
    let known = name == acl::ACCESS
        || name == acl::DEFAULT
        || [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix));
    if known { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

fn opened(attr: chronofs_core::Attr, open: bool) -> Reply {
    if open { Reply::Opened { attr, slices: None } } else { Reply::Attr(attr) }
}

/// A new inode in `dir`: owner, group, mode and ACLs.
fn made(dir: &Node, around: &Around<'_>, what: &NewNode, mode: u16, umask: u16) -> Node {
    let kind = match what {
        NewNode::File => FileKind::File,
        NewNode::Dir => FileKind::Dir,
        NewNode::Symlink(_) => FileKind::Symlink,
        NewNode::Fifo => FileKind::Fifo,
        NewNode::Socket => FileKind::Socket,
        NewNode::Char(_) => FileKind::Char,
        NewNode::Block(_) => FileKind::Block,
    };
    let mut node = Node::new(kind, around.caller, around.now);
    match what {
        NewNode::Symlink(target) => node.target = target.clone(),
        NewNode::Char(rdev) | NewNode::Block(rdev) => node.rdev = *rdev,
        _ => {}
    }
    if dir.mode & SGID != 0 {
        node.gid = dir.gid;
    }
    if kind == FileKind::Symlink {
        node.mode = 0o777;
        return node;
    }
    node.mode = mode;
    let runs_as_group = mode & SGID != 0 && mode & 0o010 != 0;
    if dir.mode & SGID != 0 && kind != FileKind::Dir && runs_as_group && !node.keeps_sgid(around.caller) {
        node.mode &= !SGID;
    }
    match &dir.default_acl {
        None => node.mode &= !umask,
        Some(default) => {
            let (acl, mode) = default.inherit(node.mode);
            (node.acl, node.mode) = (Some(acl).filter(Acl::extended), mode);
            if kind == FileKind::Dir {
                node.default_acl = Some(default.clone());
            }
        }
    }
    if dir.mode & SGID != 0 && kind == FileKind::Dir {
        node.mode |= SGID;
    }
    node
}

/// What a request gets that names an inode outside the session's scope.
pub const OUTSIDE: Errno = Errno::ENOENT;
