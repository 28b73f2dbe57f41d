//! The data path's view of the server.

use super::cache::Cache;
use super::reply;
use crate::connection::Connection;
use crate::data::{Made, Meta, ParkedAt, Publish, PublishError, SliceList};
use bytes::Bytes;
use chronofs_core::ops::{Reply, Request};
use chronofs_core::{Attr, Caller, Errno, Ino, SessionId, SliceId};
use std::sync::Arc;

/// Asks on behalf of open files: whoever reads or writes was checked when the file was opened.
pub(crate) struct MetaLink {
    pub(crate) connection: Arc<Connection>,
    pub(crate) cache: Arc<Cache>,
}

impl Meta for MetaLink {
    async fn attributes(&self, ino: Ino) -> Result<Attr, Errno> {
        let asked = self.connection.call(Caller::ROOT, Request::GetAttr { ino }).await;
        let (_, attr) = reply::attr(asked.map_err(|errno| self.connection.lost_or(errno))?)?;
        Ok(attr)
    }

    fn boot(&self) -> u64 {
        self.connection.boot()
    }

    fn lost(&self, ino: Ino) -> u64 {
        self.connection.lost(ino)
    }

    async fn slices(&self, ino: Ino, first: u32, count: u32) -> Result<SliceList, Errno> {
        let request = Request::Slices { ino, first, count, staged: true };
        let asked = self.connection.call(Caller::ROOT, request).await;
        match asked.map_err(|errno| self.connection.lost_or(errno))? {
            (version, Reply::Slices(slices)) => Ok(SliceList { version, slices }),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    async fn staged(&self, ino: Ino, ids: Vec<SliceId>) -> Result<Vec<Bytes>, Errno> {
        match self.connection.call(Caller::ROOT, Request::Staged { ino, ids }).await? {
            (_, Reply::Staged(bytes)) => Ok(bytes),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    async fn publish(&self, publish: Publish) -> Result<Attr, PublishError> {
        let Publish { ino, slices, size_min, mtime_ns, kill_priv, merge } = publish;
        let exclusive = self.connection.exclusive();
        let session = self.connection.session();
        let mut sessions = slices.iter().filter_map(|new| Some(new.slice.place.seal()?.id.object.session));
        let named = sessions.next().unwrap_or(session);
        let request = Request::Publish { ino, slices, size_min, mtime_ns, kill_priv, merge };
        let asked = self.connection.ask(Caller::ROOT, request).await;
        // A new session may have begun before the data path hears of it.
        let now = self.connection.session();
        let failed = |error| if (session, named) == (now, now) { error } else { PublishError::SessionOver };
        let answer = asked.map_err(|errno| failed(PublishError::NoAnswer(errno)))?;
        let reply = answer.result.map_err(|errno| failed(PublishError::Answered(errno)))?;
        let (version, attr) = reply::attr((answer.version, reply)).map_err(PublishError::Answered)?;
        self.cache.changed(ino, version);
        // Without others the kernel's pages hold what was published; with others they may lack what those did.
        let exclusive = exclusive && self.connection.exclusive();
        self.cache.published(ino, exclusive.then_some(attr.data_version));
        if exclusive {
            self.cache.put_attr(&attr, version);
        }
        Ok(attr)
    }

    async fn grant(&self, count: u64) -> Result<(u64, u64), Errno> {
        let (first, end) = match self.connection.call(Caller::ROOT, Request::Grant { count }).await? {
            (_, Reply::Grant { first, end }) => (first, end),
            (_, other) => return Err(reply::unexpected(&other)),
        };
        // After a power cut that took the grant, nothing would explain what was stored under it.
        self.connection.call(Caller::ROOT, Request::Sync).await?;
        Ok((first, end))
    }

    fn published_below(&self, session: SessionId, floor: u64) {
        self.connection.published_below(session, floor);
    }

    fn restores(&self) -> u64 {
        self.connection.restores()
    }

    async fn park(&self, ino: Ino, made: &mut Made) -> Result<ParkedAt, Errno> {
        self.make_parked(ino, made).await
    }

    fn parked(&self, ino: Ino, path: &str, bytes: u64) {
        self.connection.tell_parked(ino, path, bytes);
    }

    fn now_ns(&self) -> i64 {
        self.connection.now_ns()
    }

    fn exclusive(&self) -> bool {
        self.connection.exclusive()
    }
}
