//! What each read shows.

use crate::acl;
use crate::mutate::{Scope, check_xattr_name};
use crate::state::*;
use bytes::Bytes;
use chronofs_core::ops::{Reply, Request, StatFs};
use chronofs_core::{Caller, Errno, FileKind, Ino};

/// Around a read. In the past the caller must be allowed as of then and, while the inode lives, as of now.
pub struct Reader<'a> {
    pub state: &'a State,
    pub present: Option<&'a State>,
    pub caller: &'a Caller,
    pub scope: Scope<'a>,
    pub read_only: bool,
}

impl Reader<'_> {
    /// The answer to a read. Directories and slices are compared elsewhere, by content: for them it is
    /// [`Reply::Done`].
    pub fn query(&self, request: &Request) -> Result<Reply, Errno> {
        let state = self.state;
        match request {
            Request::Lookup { parent: ino, .. }
            | Request::Parent { dir: ino }
            | Request::Narrowed { dir: ino }
            | Request::GetAttr { ino }
            | Request::ReadDir { dir: ino, .. }
            | Request::ReadLink { ino }
            | Request::GetXattr { ino, .. }
            | Request::ListXattr { ino }
            | Request::Slices { ino, .. }
            | Request::Access { ino, .. }
            | Request::Open { ino, .. } => state.in_scope(self.scope, *ino)?,
            _ => {}
        }
        match request {
            Request::Lookup { parent, name } => {
                let dir = state.dir(*parent)?;
                self.allow(*parent, X)?;
                let child = state.child(dir, name.as_bytes()).ok_or(Errno::ENOENT)?;
                Ok(Reply::Attr(state.attr(child)?))
            }
            Request::Parent { dir } => {
                let node = state.dir(*dir)?;
                self.allow(*dir, X)?;
                if node.removed {
                    return Err(Errno::ENOENT);
                }
                Ok(Reply::Attr(state.attr(if *dir == self.scope.root { *dir } else { node.parent })?))
            }
            Request::GetAttr { ino } => Ok(Reply::Attr(state.attr(*ino)?)),
            Request::ReadDir { dir, .. } => {
                let node = state.dir(*dir)?;
                self.allow(*dir, R)?;
                if node.removed { Err(Errno::ENOENT) } else { Ok(Reply::Done) }
            }
            Request::ReadLink { ino } => {
                let node = state.node(*ino)?;
                let link = node.kind == FileKind::Symlink;
                if link { Ok(Reply::Bytes(node.target.clone())) } else { Err(Errno::EINVAL) }
            }
            Request::GetXattr { ino, name } => self.xattr(*ino, name).map(Reply::Bytes),
            Request::ListXattr { ino } => Ok(Reply::Names(self.xattr_names(*ino)?)),
            Request::Slices { ino, .. } => match state.node(*ino)?.kind {
                FileKind::File => Ok(Reply::Done),
                FileKind::Dir => Err(Errno::EISDIR),
                _ => Err(Errno::EINVAL),
            },
            Request::StatFs => Ok(Reply::StatFs(StatFs {
                used_bytes: state.used_bytes(),
                used_inodes: state.used_inodes(),
                max_bytes: state.max_bytes,
                max_inodes: state.max_inodes,
            })),
            Request::Access { ino, mask } => {
                let node = state.node(*ino)?;
                if u16::from(*mask) & W != 0 && self.read_only && in_volume(node.kind) {
                    return Err(Errno::EROFS);
                }
                self.allow(*ino, u16::from(*mask))?;
                Ok(Reply::Done)
            }
            Request::Narrowed { dir } => {
                let then = state.dir(*dir)?;
                let now = self.present.and_then(|present| present.nodes.get(dir));
                Ok(Reply::Narrowed(now.is_some_and(|now| narrowed(then, now))))
            }
            Request::Open { ino, read, write } => self.open(*ino, *read, *write),
            _ => panic!("the generator makes no {request:?}"),
        }
    }

    fn allow(&self, ino: Ino, want: u16) -> Result<(), Errno> {
        self.state.node(ino)?.check(self.caller, want)?;
        match self.present.and_then(|present| present.nodes.get(&ino)) {
            Some(node) if self.caller.uid != 0 => node.check(self.caller, want),
            _ => Ok(()),
        }
    }

    fn open(&self, ino: Ino, read: bool, write: bool) -> Result<Reply, Errno> {
        let node = self.state.node(ino)?;
        match node.kind {
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Dir if write => return Err(Errno::EISDIR),
            _ => {}
        }
        if write && self.read_only && in_volume(node.kind) {
            return Err(Errno::EROFS);
        }
        self.allow(ino, if read { R } else { 0 } | if write { W } else { 0 })?;
        Ok(Reply::Opened { attr: self.state.attr(ino)?, slices: None })
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, Errno> {
        check_xattr_name(name)?;
        let node = self.state.node(ino)?;
        let acl = match name {
            acl::ACCESS => &node.acl,
            acl::DEFAULT => &node.default_acl,
            _ => {
                node.may_xattr(self.caller, name, R)?;
                if name.starts_with(b"user.") {
                    self.allow(ino, R)?;
                }
                return node.xattrs.get(name).cloned().ok_or(Errno::ENODATA);
            }
        };
        if node.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        acl.as_ref().map(|acl| acl.to_value()).ok_or(Errno::ENODATA)
    }

    /// The names in order.
    fn xattr_names(&self, ino: Ino) -> Result<Vec<Bytes>, Errno> {
        let node = self.state.node(ino)?;
        let shown = |name: &&Bytes| self.caller.uid == 0 || !name.starts_with(b"trusted.");
        let mut names: Vec<Bytes> = node.xattrs.keys().filter(shown).cloned().collect();
        names.extend(node.acl.iter().map(|_| Bytes::from_static(acl::ACCESS)));
        names.extend(node.default_acl.iter().map(|_| Bytes::from_static(acl::DEFAULT)));
        names.sort();
        Ok(names)
    }
}

/// Kinds whose bytes lie in the volume: a read-only one cannot be opened for writing.
fn in_volume(kind: FileKind) -> bool {
    matches!(kind, FileKind::File | FileKind::Dir | FileKind::Symlink)
}

/// Whether somebody may do less with the directory now than then, by a look at modes alone. If nobody does, every
/// caller who was allowed something still is.
fn narrowed(then: &Node, now: &Node) -> bool {
    let by_modes = (then.uid, then.gid) == (now.uid, now.gid) && then.acl.is_none() && now.acl.is_none();
    let narrowed = !by_modes || then.mode & !now.mode & 0o777 != 0;
    for (uid, gid) in (0..5).flat_map(|uid| (0..5).map(move |gid| (uid, gid))) {
        let caller = Caller { uid, gid, groups: Vec::new() };
        for want in [R, W, X] {
            assert!(
                narrowed || !then.may(&caller, want) || now.may(&caller, want),
                "{then:?} {now:?} {caller:?}"
            );
        }
    }
    narrowed
}
