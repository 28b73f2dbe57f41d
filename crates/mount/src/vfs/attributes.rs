//! Attributes: showing and changing them.

use super::{Shown, Vfs, reply};
use chronofs_core::ops::Request;
use chronofs_core::{Attr, Caller, Errno, Ino, SetAttr};

/// What setattr is asked to change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) ino: Ino,
    pub(crate) set: SetAttr,
}

impl Vfs {
    /// The attributes of `ino`, if the cache knows.
    pub(crate) fn try_getattr(&self, ino: Ino) -> Option<Shown> {
        self.ttl()?;
        self.cache.attr(ino).map(|attr| self.show(attr))
    }

    /// The attributes of `ino`.
    pub(crate) async fn getattr(&self, caller: Caller, ino: Ino) -> Result<Shown, Errno> {
        let asked = self.call(caller, Request::GetAttr { ino }).await;
        let (version, attr) = reply::attr(asked.map_err(|errno| self.connection.lost_or(errno))?)?;
        if self.ttl().is_some() {
            self.cache.put_attr(&attr, version);
        }
        Ok(self.show(attr))
    }

    /// Changes attributes; a new size truncates or extends.
    pub(crate) async fn setattr(&self, caller: Caller, change: Change) -> Result<Shown, Errno> {
        self.writable()?;
        let Change { ino, set } = change;
        let size = set.size;
        let only_atime = SetAttr { atime: set.atime, ..SetAttr::default() };
        let attr = match self.data.existing(ino) {
            // Bytes written before must not undo the change when they are published later.
            Some(file) if set != only_atime => {
                file.set_attr(&set, self.apply(caller, ino, set.clone())).await?
            }
            _ => {
                let attr = self.apply(caller, ino, set).await?;
                // A file that was opened in between has not heard of the new size.
                if let (Some(_), Some(file)) = (size, self.data.existing(ino)) {
                    file.opened(&attr, None);
                }
                attr
            }
        };
        Ok(self.show(attr))
    }

    async fn apply(&self, caller: Caller, ino: Ino, set: SetAttr) -> Result<Attr, Errno> {
        let content = set.size.is_some();
        let exclusive = self.connection.exclusive();
        let (version, attr) = reply::attr(self.call(caller, Request::SetAttr { ino, set }).await?)?;
        self.cache.changed(ino, version);
        let exclusive = exclusive && self.connection.exclusive();
        if content {
            self.cache.published(ino, exclusive.then_some(attr.data_version));
        }
        if exclusive {
            self.cache.put_attr(&attr, version);
        }
        Ok(attr)
    }
}
