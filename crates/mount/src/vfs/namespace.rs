//! Names: looking up, making, linking, removing, renaming.

use super::cache::CachedEntry;
use super::rights::Right;
use super::{Shown, Vfs, reply};
use bytes::Bytes;
use chronofs_core::ops::{NewNode, RenameMode, Reply, Request};
use chronofs_core::{Attr, Caller, Errno, FileKind, Ino, Name, Version};
use std::time::Instant;

/// A new inode: type, permission bits, and the caller's umask.
pub(crate) struct NewFile {
    pub(crate) node: NewNode,
    pub(crate) mode: u16,
    pub(crate) umask: u16,
}

impl Vfs {
    /// The entry `name` of `parent`, if the cache knows.
    pub(crate) fn try_lookup(
        &self,
        caller: impl FnOnce() -> Caller,
        parent: Ino,
        name: &Name,
    ) -> Option<Shown> {
        self.ttl()?;
        if self.at.is_some()
            && !(self.rights.known(parent) && self.rights.has(&caller(), parent, Right::Search))
        {
            return None;
        }
        self.cached(parent, name)
    }

    fn cached(&self, parent: Ino, name: &Name) -> Option<Shown> {
        match self.cache.entry(parent, name)? {
            CachedEntry::Missing => Some(self.show_in(parent, None)),
            CachedEntry::Names(ino) => Some(self.show_in(parent, Some(self.cache.attr(ino)?))),
        }
    }

    /// The entry `name` of `parent`.
    pub(crate) async fn lookup(&self, caller: Caller, parent: Ino, name: Name) -> Result<Shown, Errno> {
        let request = Request::Lookup { parent, name: name.clone() };
        let asked = Instant::now();
        let answer = if self.at.is_some() {
            if self.cached(parent, &name).is_some() {
                self.learn_rights(parent).await;
                if let Some(shown) = self.try_lookup(|| caller.clone(), parent, &name) {
                    return Ok(shown);
                }
            }
            // Both questions travel together.
            tokio::join!(self.ask(caller.clone(), request), self.learn_rights(parent)).0?
        } else {
            self.ask(caller.clone(), request).await?
        };
        let believed = self.ttl().is_some();
        if self.at.is_some() && matches!(answer.result, Ok(_) | Err(Errno::ENOENT)) {
            self.rights.granted(caller, parent, Right::Search, asked);
        }
        match answer.result {
            Ok(Reply::Attr(attr)) => {
                if believed {
                    self.cache.put_entry(parent, &name, CachedEntry::Names(attr.ino), answer.version);
                    self.cache.put_attr(&attr, answer.version);
                }
                Ok(self.show_in(parent, Some(attr)))
            }
            Err(Errno::ENOENT) => {
                if believed {
                    self.cache.put_entry(parent, &name, CachedEntry::Missing, answer.version);
                }
                Ok(self.show_in(parent, None))
            }
            Ok(other) => Err(reply::unexpected(&other)),
            Err(errno) => Err(errno),
        }
    }

    /// The directory above `dir`.
    pub(crate) async fn parent(&self, caller: Caller, dir: Ino) -> Result<Shown, Errno> {
        let (_, attr) = reply::attr(self.call(caller, Request::Parent { dir }).await?)?;
        Ok(self.show(attr))
    }

    /// The target of a symbolic link.
    pub(crate) async fn readlink(&self, caller: Caller, ino: Ino) -> Result<Bytes, Errno> {
        match self.call(caller, Request::ReadLink { ino }).await? {
            (_, Reply::Bytes(target)) => Ok(target),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    /// Makes anything but an open file.
    pub(crate) async fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: Name,
        new: NewFile,
    ) -> Result<Shown, Errno> {
        self.writable()?;
        self.cache.naming(parent, &name);
        let NewFile { node, mode, umask } = new;
        let request =
            Request::Create { parent, name: name.clone(), node, mode, umask, open: false, exclusive: true };
        let (version, attr) = reply::attr(self.call(caller, request).await?)?;
        self.made(parent, &name, &attr, version);
        if attr.kind == FileKind::Dir && self.ttl().is_some() {
            self.cache.made_dir(attr.ino, version);
        }
        Ok(self.show(attr))
    }

    /// A further hard link.
    pub(crate) async fn link(
        &self,
        caller: Caller,
        ino: Ino,
        parent: Ino,
        name: Name,
    ) -> Result<Shown, Errno> {
        self.writable()?;
        self.cache.naming(parent, &name);
        let request = Request::Link { ino, parent, name: name.clone() };
        let (version, attr) = reply::attr(self.call(caller, request).await?)?;
        self.cache.changed(ino, version);
        self.files.linked(ino);
        self.made(parent, &name, &attr, version);
        Ok(self.show(attr))
    }

    /// Removes a name that is no directory.
    pub(crate) async fn unlink(&self, caller: Caller, parent: Ino, name: Name) -> Result<(), Errno> {
        self.writable()?;
        let (version, _) = self.call(caller, Request::Unlink { parent, name: name.clone() }).await?;
        self.removed(parent, &name, version);
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) async fn rmdir(&self, caller: Caller, parent: Ino, name: Name) -> Result<(), Errno> {
        self.writable()?;
        let (version, _) = self.call(caller, Request::Rmdir { parent, name: name.clone() }).await?;
        self.removed(parent, &name, version);
        Ok(())
    }

    /// Renames `name` in `from` to `new_name` in `to`.
    pub(crate) async fn rename(
        &self,
        caller: Caller,
        (from, name): (Ino, Name),
        (to, new_name): (Ino, Name),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        self.writable()?;
        let replaces_nothing = self.cache.naming(to, &new_name);
        let request = Request::Rename { from, name: name.clone(), to, new_name: new_name.clone(), mode };
        let (version, _) = self.call(caller, request).await?;
        let moved = self.cache.changed_entry(from, &name, version);
        match moved {
            Some(CachedEntry::Names(ino)) => self.cache.changed(ino, version),
            _ => self.cache.changed_unknown(version),
        }
        if replaces_nothing {
            self.cache.changed_entry(to, &new_name, version);
        } else if mode == RenameMode::Exchange {
            match self.cache.changed_entry(to, &new_name, version) {
                Some(CachedEntry::Names(ino)) => self.cache.changed(ino, version),
                _ => self.cache.changed_unknown(version),
            }
        } else {
            self.removed(to, &new_name, version);
        }
        Ok(())
    }

    /// access(2) by the server's rules.
    pub(crate) async fn access(&self, caller: Caller, ino: Ino, mask: u8) -> Result<(), Errno> {
        self.call(caller, Request::Access { ino, mask }).await.map(drop)
    }

    /// `name` names `attr.ino` since `version`.
    pub(super) fn made(&self, parent: Ino, name: &Name, attr: &Attr, version: Version) {
        self.cache.changed_entry(parent, name, version);
        if self.ttl().is_some() {
            self.cache.put_entry(parent, name, CachedEntry::Names(attr.ino), version);
            self.cache.put_attr(attr, version);
        }
    }

    /// `name` names nothing since `version`, or something else.
    fn removed(&self, parent: Ino, name: &Name, version: Version) {
        let before = self.cache.changed_entry(parent, name, version);
        match before {
            Some(CachedEntry::Names(ino)) => {
                let last_link =
                    self.cache.attr(ino).is_some_and(|attr| attr.nlink <= 1 && attr.kind == FileKind::File);
                self.cache.changed(ino, version);
                if last_link && self.connection.exclusive() {
                    self.files.unlinked(ino);
                }
            }
            Some(CachedEntry::Missing) => {}
            None => self.cache.changed_unknown(version),
        }
    }
}
